"""A training set read at random, from several files, in several processes and on other machines."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from curate import storage
from curate.dataset import cache
from curate.dataset.training_set import (
    SCHEMA,
    Index,
    Span,
    TrainingSet,
    read_index,
    write_part,
)
from curate.errors import CurateError
from curate.runfiles import columns


def write_set(
    folder: str,
    images: list[bytes],
    labels: list[str | None] | None = None,
    part_images: tuple[int, ...] = (3, 1, 5),
) -> Index:
    """A training set of these images, in parts of these sizes, the last one of what is left."""
    labels = labels or [None] * len(images)
    parts: list[tuple[str, int]] = []
    spans: list[Span] = []
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
            table = pa.Table.from_pylist(rows, SCHEMA)
            spans.append(write_part(storage.join(folder, name), table))
            parts.append((name, len(rows)))
        start += size
    digest = hashlib.sha256(b"".join(images)).hexdigest()
    index = Index({"set": repr(labels)}, parts, len(images), 0, 0, digest, spans)
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


class Metered(MemoryFileSystem):
    """A filesystem that is not this machine's, and counts the bytes that it gives by name."""

    protocol = "metered"
    store: ClassVar[dict[str, Any]] = {}
    given: ClassVar[Counter[str]] = Counter()
    gate = threading.Event()  # what is read whole waits for it

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        data: bytes = super().cat_file(path, start, end)
        self.given[path.rpartition("/")[2]] += len(data)
        return data

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb" and options.get("block_size", 0) > columns.BLOCK_BYTES:
            assert self.gate.wait(20)
            self.given[f"{path.rpartition('/')[2]} whole"] += 1
        return super()._open(path, mode, **options)


fsspec.register_implementation("metered", Metered, clobber=True)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder on a filesystem that is not this machine's, and a temporary folder for copies.
    Parts are copied from when the gate is open."""
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    Metered.store.clear()
    Metered.given.clear()
    Metered.gate.clear()
    yield f"metered://{tmp_path.name}"
    Metered.gate.set()
    end_filling()


def end_filling() -> None:
    """As this process' end would: copying ends, and its locks are free."""
    for filler in cache._fillers.values():
        filler.join()
    for lock in cache._held.values():
        lock.close()
    cache._fillers.clear()
    cache._held.clear()


def copies(tmp_path: Path) -> set[str]:
    """Parts that are on this machine."""
    return {path.name for path in (tmp_path / "copies").glob("*/part-*")}


def all_of(found: TrainingSet) -> list[bytes]:
    return [found.image(place) for place in range(len(found))]


def test_images_before_while_and_after_they_are_copied(remote: str, tmp_path: Path) -> None:
    images = some_bytes(20)
    index = write_set(remote, images, ["a", "b"] * 10)
    found = TrainingSet(remote)
    order = np.random.default_rng(1).permutation(20).tolist()
    assert [found.image(place) for place in order] == [images[place] for place in order]
    assert copies(tmp_path) == set(), "not one part was waited for"
    for (name, rows), span in zip(index.parts, index.spans, strict=True):
        of_images = span.size - 8 * rows
        assert 8 * rows < Metered.given[name] < of_images, "the places once, then images alone"
    assert found.classes == ["a", "b"] and found.labels.tolist() == [0, 1] * 10
    assert found.keys() == [str(place) for place in range(20)]
    Metered.gate.set()
    (filler,) = cache._fillers.values()
    while filler.is_alive():
        assert all_of(found) == images
    assert copies(tmp_path) == {name for name, _ in index.parts}
    assert all_of(found) == images
    for name, _ in index.parts:
        storage.remove_tree(storage.join(remote, name))
    assert all_of(found) == all_of(TrainingSet(remote)) == images


def test_another_process_reads_what_the_first_one_copies(remote: str, tmp_path: Path) -> None:
    """As a loader's: it has a part as soon as it is whole, and fetches none."""
    images = some_bytes(20)
    write_set(remote, images)
    found = TrainingSet(remote)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # all that it may do is to write and to end
        try:
            Metered.gate.set()
            before = all_of(found) == images
            os.write(writing, b"1" if before else b"0")
            while len(copies(tmp_path)) < 4:
                time.sleep(0.01)
            Metered.store.clear()
            os.write(writing, b"1" if all_of(found) == images else b"0")
        finally:
            os._exit(0)
    assert os.read(reading, 1) == b"1"
    Metered.gate.set()
    assert os.read(reading, 1) == b"1"
    os.waitpid(child, 0)


def test_workers_of_a_machine_copy_once(remote: str, tmp_path: Path) -> None:
    """Another process that opens the set waits for nothing, and copies when the first one ends."""
    images = some_bytes(20)
    index = write_set(remote, images)
    program = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True)"
    program += "; sys.stdin.read()"
    known = hashlib.sha256(storage.read_bytes(storage.join(remote, "index.json"))).hexdigest()
    lock = tmp_path / "copies" / f"curate-data-{known[:32]}.lock"
    first = subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout and first.stdin
    first.stdout.readline()
    Metered.gate.set()
    found = TrainingSet(remote)
    assert all_of(found) == images and copies(tmp_path) == set()
    first.communicate()
    while len(copies(tmp_path)) < len(index.parts):
        time.sleep(0.01)
    assert all_of(found) == images


def test_a_restart_fetches_what_is_missing(remote: str, tmp_path: Path) -> None:
    """Of parts that are here, cut short, begun, and not there."""
    images = some_bytes(20)
    index = write_set(remote, images)
    Metered.gate.set()
    TrainingSet(remote)
    end_filling()
    (folder,) = (path for path in (tmp_path / "copies").iterdir() if path.is_dir())
    names = [name for name, _ in index.parts]
    (folder / names[1]).write_bytes(b"half")
    (folder / names[2]).rename(folder / f".{names[2]}.begun")
    Metered.given.clear()
    assert all_of(TrainingSet(remote)) == images
    end_filling()
    assert {name for name in Metered.given if name.endswith("whole")} == {
        f"{names[1]} whole",
        f"{names[2]} whole",
    }
    assert {path.name for path in folder.iterdir()} == set(names)
    assert all_of(TrainingSet(remote)) == images


def test_no_more_is_kept_than_the_limit(remote: str, tmp_path: Path) -> None:
    images = some_bytes(20)
    index = write_set(remote, images)
    sizes = [span.size for span in index.spans]
    Metered.gate.set()
    for kept in (2, 0, 3, 1):
        found = TrainingSet(remote, cache_gb=(sum(sizes[:kept]) + 1) / 1e9)
        end_filling()
        assert copies(tmp_path) == {name for name, _ in index.parts[:kept]}
        assert all_of(found) == images


def test_other_sets_give_way(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest first, as far as there must be room; not one that is in use."""
    images = some_bytes(20)
    Metered.gate.set()
    folders: dict[str, Path] = {}
    for number, name in enumerate(("in use", "older", "newer")):
        index = write_set(storage.join(remote, name), images, ["a", name] * 10)
        TrainingSet(storage.join(remote, name))
        (folders[name],) = cache._fillers.keys() - set(folders.values())
        cache._fillers[folders[name]].join()
        os.utime(cache._lock_of(folders[name]), (number, number))
        if name != "in use":
            cache._held.pop(folders[name]).close()
    size = sum(span.size for span in index.spans)

    def usage(path: Path) -> Any:
        there = sum(file.stat().st_size for file in path.parent.glob("*/part-*"))
        return SimpleNamespace(free=3.3 * size - there)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    write_set(storage.join(remote, "new"), images)
    found = TrainingSet(storage.join(remote, "new"))
    end_filling()
    assert all_of(found) == images
    kept = {name for name, folder in folders.items() if folder.exists()}
    assert kept == {"in use", "newer"}
    assert len(list((tmp_path / "copies").glob("*/part-*"))) == 3 * len(index.parts)


def test_a_disk_that_is_full_ends_the_copying(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = some_bytes(20)
    write_set(remote, images)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    Metered.gate.set()
    found = TrainingSet(remote)
    end_filling()
    assert all_of(found) == images and copies(tmp_path) == set()
    assert "not kept on this disk any further" in caplog.text and "No space" in caplog.text


def test_sets_with_the_same_images_have_their_own_copies(remote: str) -> None:
    images = some_bytes(6)
    Metered.gate.set()
    for number, labels in enumerate((["a"] * 6, ["a", "b"] * 3)):
        folder = storage.join(remote, str(number))
        write_set(folder, images, labels)  # type: ignore[arg-type]
        found = TrainingSet(folder)
        assert found.classes == sorted(set(labels))
    assert len(cache._fillers) == 2


def test_a_part_that_is_gone_or_cut_is_named(remote: str) -> None:
    index = write_set(remote, some_bytes(20))
    found = TrainingSet(remote)
    uri = storage.join(remote, index.parts[2][0])
    storage.write_bytes(uri, storage.read_bytes(uri)[: index.spans[2].data])
    with pytest.raises(CurateError, match=rf"{index.parts[2][0]}: cut short; remove"):
        all_of(found)
    storage.remove_tree(uri)
    with pytest.raises(CurateError, match=rf"{index.parts[2][0]}: no such file"):
        all_of(TrainingSet(remote))


# What is wrong with it


def test_no_training_set(tmp_path: Path, remote: str) -> None:
    assert read_index(str(tmp_path)) is None
    for folder in (str(tmp_path), str(tmp_path / "missing"), remote):
        with pytest.raises(CurateError, match="no training set"):
            TrainingSet(folder)


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
