"""A training set read at random, from several files, in several processes and on other machines."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate import storage
from curate.dataset.training_set import SCHEMA, Index, TrainingSet, on_this_machine, read_index
from curate.errors import CurateError
from curate.runfiles import shards


def write_set(
    folder: str,
    images: list[bytes],
    labels: list[str | None] | None = None,
    part_images: tuple[int, ...] = (3, 1, 5),
) -> Index:
    """A training set of these images, in parts of these sizes, the last one of what is left."""
    labels = labels or [None] * len(images)
    parts: list[tuple[str, int]] = []
    start = 0
    for size in (*part_images, len(images)):
        rows: list[dict[str, Any]] = [
            {
                "source": "set",
                "key": str(place),
                "label": labels[place],
                "sha256": hashlib.sha256(images[place]).hexdigest(),
                "image": images[place],
            }
            for place in range(start, min(start + size, len(images)))
        ]
        if rows:
            name = f"part-{len(parts):06d}-000.arrow"
            shards.write_arrow(storage.join(folder, name), pa.Table.from_pylist(rows, SCHEMA))
            parts.append((name, len(rows)))
        start += size
    digest = hashlib.sha256(b"".join(images)).hexdigest()
    index = Index({"set": repr(labels)}, parts, len(images), 0, 0, digest)
    index.write(folder)
    return index


def some_bytes(n: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [rng.bytes(int(size)) for size in rng.integers(0, 300, n)]


@pytest.mark.parametrize("part_images", [(), (1,), (3, 1, 5), (1,) * 19, (20,)])
def test_random_access_is_sequential_access(tmp_path: Path, part_images: tuple[int, ...]) -> None:
    images = some_bytes(20)
    write_set(str(tmp_path), images, part_images=part_images)
    found = TrainingSet(str(tmp_path))
    assert len(found) == 20
    assert [found.image(place) for place in range(20)] == images
    order = np.random.default_rng(1).permutation(20)
    assert [found.image(int(place)) for place in order] == [images[place] for place in order]


def test_labels_and_classes(tmp_path: Path) -> None:
    labels = ["dog", None, "cat", "dog", "10", "9", None, "cat", "ant", "dog", "dog"]
    write_set(str(tmp_path), some_bytes(11), labels)
    found = TrainingSet(str(tmp_path))
    assert found.classes == ["10", "9", "ant", "cat", "dog"]
    assert found.labels.dtype == np.int64
    assert [None if n < 0 else found.classes[n] for n in found.labels] == labels


def test_no_labels_at_all(tmp_path: Path) -> None:
    write_set(str(tmp_path), some_bytes(4))
    found = TrainingSet(str(tmp_path))
    assert found.classes == [] and found.labels.tolist() == [-1] * 4


def test_images_stay_on_the_disk(tmp_path: Path) -> None:
    """A set is larger than memory, and every process that decodes opens it."""
    images = [bytes([i]) * (1 << 20) for i in range(24)]
    write_set(str(tmp_path), images, part_images=(10,))
    before = pa.total_allocated_bytes()
    found = TrainingSet(str(tmp_path))
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert found.image(17) == images[17]


def test_another_process_opens_it_itself(tmp_path: Path) -> None:
    images = some_bytes(20)
    write_set(str(tmp_path), images, ["a", "b"] * 10)
    sent = pickle.dumps(TrainingSet(str(tmp_path)))
    assert len(sent) < 1000, "the folder's name and no images"
    found = pickle.loads(sent)
    assert [found.image(place) for place in range(20)] == images
    assert found.labels.tolist() == [0, 1] * 10


# On other machines


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder on a filesystem that is not this machine's, and a temporary folder for copies."""
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    return f"memory://{tmp_path.name}-{id(tmp_path)}"


def test_local_sets_are_used_where_they_are(tmp_path: Path) -> None:
    assert on_this_machine(str(tmp_path)) == on_this_machine(f"file://{tmp_path}") == str(tmp_path)


def test_remote_sets_are_copied_once(remote: str) -> None:
    """All of a machine's workers ask at once; a machine that has the copy needs the parts no
    more."""
    images = some_bytes(20)
    index = write_set(remote, images, ["a", "b"] * 10)
    with ThreadPoolExecutor(4) as pool:
        (copy,) = set(pool.map(on_this_machine, [remote] * 8))
    found = TrainingSet(copy)
    assert [found.image(place) for place in range(20)] == images
    assert storage.names_in(copy) == {name for name, _ in index.parts} | {"index.json"}
    for name, _ in index.parts:
        assert Path(copy, name).read_bytes() == storage.read_bytes(storage.join(remote, name))
        storage.remove_tree(storage.join(remote, name))
    assert on_this_machine(remote) == copy


def test_copies_of_different_sets_are_different(remote: str) -> None:
    """Also of those that have the same images under other labels, or in other parts."""
    images = some_bytes(6)
    for number, labels in enumerate((["a"] * 6, ["a", "b"] * 3)):
        folder = storage.join(remote, str(number))
        write_set(folder, images, labels)  # type: ignore[arg-type]
        assert TrainingSet(on_this_machine(folder)).classes == sorted(set(labels))


def test_a_copy_that_was_cut_short_is_made_again(remote: str) -> None:
    images = some_bytes(20)
    index = write_set(remote, images)
    copy = Path(on_this_machine(remote))
    (copy / "index.json").unlink()
    (copy / index.parts[0][0]).write_bytes(b"half")
    assert on_this_machine(remote) == str(copy)
    assert TrainingSet(str(copy)).image(0) == images[0]


def test_a_part_that_is_gone_is_named(remote: str) -> None:
    index = write_set(remote, some_bytes(20))
    storage.remove_tree(storage.join(remote, index.parts[1][0]))
    with pytest.raises(CurateError, match=rf"{index.parts[1][0]}: not copied to .*TMPDIR"):
        on_this_machine(remote)


# What is wrong with it


def test_no_training_set(tmp_path: Path, remote: str) -> None:
    assert read_index(str(tmp_path)) is None
    for folder in (str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(CurateError, match="no training set"):
            TrainingSet(folder)
    with pytest.raises(CurateError, match="no training set"):
        on_this_machine(remote)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "{}", '{"parts": 3}', '{"parts": [], "images": 1}']
)
def test_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(CurateError, match=r"index\.json: damaged: .*--fresh$"):
        read_index(str(tmp_path))


def test_parts_that_do_not_fit_the_index(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), some_bytes(20))
    part = tmp_path / index.parts[1][0]
    kept = part.read_bytes()
    (tmp_path / index.parts[0][0]).rename(part)
    with pytest.raises(CurateError, match=rf"{index.parts[0][0]}: no such file"):
        TrainingSet(str(tmp_path))
    (tmp_path / index.parts[0][0]).write_bytes(kept)
    (tmp_path / index.parts[1][0]).write_bytes(kept)
    with pytest.raises(CurateError, match="its parts do not hold 20 images"):
        TrainingSet(str(tmp_path))
    part.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(CurateError, match=rf"{part.name}: not an Arrow IPC file"):
        TrainingSet(str(tmp_path))
