"""Training sets on disk, byte for byte what the sources hold, from real files on a real Ray."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate.dataset import copying, materialise, wanted
from curate.dataset.training_set import Index, TrainingSet, read_index
from curate.errors import CurateError
from curate.pipeline import run
from curate.runfiles import shards
from curate.runfiles.files import TrainingSetFiles
from curate.runfiles.summary import Summary
from curate.settings import RunSettings
from curate.settings import load as config
from tests import datasets

Document = dict[str, Any]


@pytest.fixture(scope="module")
def document(merged_run: tuple[Document, Summary]) -> Document:
    return merged_run[0]


@pytest.fixture(scope="module")
def finished(document: Document) -> Path:
    """The output of a run that selected 40 of the open images."""
    return Path(document["output"])


def settings_of(document: Document, **changes: Any) -> RunSettings:
    return config.parse({**document, **changes}, "test")


def root_of(document: Document) -> Path:
    return Path(document["output"]).parent


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def target_bytes(root: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((root / "target").rglob("*.png"), key=str)]


def open_bytes(root: Path) -> list[bytes]:
    """Every open image that there is, in the order in which the config lists them."""
    files = [f for f in sorted((root / "folder").rglob("*"), key=str) if f.is_file()]
    images = [file.read_bytes() for file in files]
    for name in ("one", "two"):
        with tarfile.open(root / "tars" / f"{name}.tar") as tar:
            members = sorted(n for n in tar.getnames() if n.endswith(".jpg"))
            images += [tar.extractfile(n).read() for n in members]  # type: ignore[union-attr]
    cells = [
        cell.as_py()
        for name in ("one", "two")
        for cell in pq.read_table(root / "tables" / f"{name}.parquet")["image"]
    ]
    images += cells[:36]  # the table's limit
    lines = (root / "list.txt").read_text().split()
    return images + [(root / line).read_bytes() for line in lines if "missing" not in line]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """What lies in the parts, in the order of the index."""
    index = read_index(str(folder))
    assert index is not None
    return [
        row
        for name, images in index.parts
        for row in _counted(pa.ipc.open_file(str(folder / name)).read_all(), images)
    ]


def _counted(table: pa.Table, images: int) -> list[dict[str, Any]]:
    assert len(table) == images
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def images_of(folder: Path) -> list[bytes]:
    return [row["image"] for row in rows_of(folder)]


def check_bytes(folder: Path, index: Index, expected: list[bytes]) -> None:
    """In the order of the plan, whole, with their digests, and counted."""
    rows = rows_of(folder)
    assert [row["image"] for row in rows] == expected
    assert all(sha256(row["image"]) == row["sha256"] for row in rows)
    assert index == read_index(str(folder)) and index.images == len(expected)


# Sources


def test_target(document: Document, tmp_path: Path) -> None:
    index = materialise.training_images(settings_of(document), ["target"], str(tmp_path))
    check_bytes(tmp_path, index, target_bytes(root_of(document)))
    assert (index.open_images, index.rejected) == (0, 0)
    assert {row["source"] for row in rows_of(tmp_path)} == {"target"}


def test_open_sets_of_every_kind(document: Document, tmp_path: Path) -> None:
    """What is no image is copied as well: only reading it counts here. What is not there is
    rejected, and everything listed is one or the other."""
    index = materialise.training_images(settings_of(document), ["open"], str(tmp_path))
    check_bytes(tmp_path, index, open_bytes(root_of(document)))
    assert index.open_images == index.images == 120
    assert index.images + index.rejected == sum(datasets.SEEN.values())
    (reject,) = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert (reject["source"], reject["stage"]) == ("list", "read")
    assert reject["key"] == "listed/missing.png" and reject["reason"] == "no such file"
    labels = {(row["source"], row["key"]): row["label"] for row in rows_of(tmp_path)}
    assert labels["tars", "0100"] == "class1" and labels["tables", "0201.png"] == "class0"
    assert labels["folder", "b/deeper/0001.png"] == "b"


def test_a_sample_of_the_open_set(document: Document, tmp_path: Path) -> None:
    """Of every kind of source; the same ones again; and no more than there are."""
    settings, all_of_it = settings_of(document), open_bytes(root_of(document))
    for folder in ("once", "again"):
        index = materialise.training_images(
            settings, ["target", "open"], str(tmp_path / folder), sample=40
        )
        assert (index.images - index.open_images, index.open_images + index.rejected) == (24, 40)
    first, again = (images_of(tmp_path / folder) for folder in ("once", "again"))
    assert first == again
    assert set(first[24:]) < set(all_of_it) and len(set(first[24:])) == index.open_images
    whole = materialise.training_images(settings, ["open"], str(tmp_path / "all"), sample=10**6)
    assert sorted(images_of(tmp_path / "all")) == sorted(all_of_it)
    assert index.fingerprint != whole.fingerprint


def test_large_images_are_made_smaller(document: Document, tmp_path: Path) -> None:
    """To the side that training looks at; by their own digests; what is small is as it was."""
    settings = settings_of(document)
    whole = target_bytes(root_of(document))
    side = 16
    index = materialise.training_images(settings, ["target"], str(tmp_path), side_px=side)
    assert index.reduced == len(whole)
    for row, before in zip(rows_of(tmp_path), whole, strict=True):
        assert row["sha256"] == sha256(before)
        old, new = (Image.open(io.BytesIO(data)) for data in (before, row["image"]))
        assert min(new.size) == side and new.format == "JPEG"
        assert new.width / new.height == pytest.approx(old.width / old.height, rel=0.05)
        small = np.asarray(old.convert("RGB").resize(new.size, Image.Resampling.BICUBIC), int)
        assert np.abs(np.asarray(new, int) - small).mean() < 4
    assert index == materialise.training_images(settings, ["target"], str(tmp_path), side_px=side)
    least = max(min(Image.open(io.BytesIO(data)).size) for data in whole)
    as_it_was = materialise.training_images(settings, ["target"], str(tmp_path), side_px=least)
    assert as_it_was.reduced == 0 and images_of(tmp_path) == whole


def test_union_in_the_order_that_was_asked_for(document: Document, tmp_path: Path) -> None:
    settings, root = settings_of(document), root_of(document)
    both = target_bytes(root) + open_bytes(root)
    first = materialise.training_images(settings, ["target", "open"], str(tmp_path))
    check_bytes(tmp_path, first, both)
    assert (first.images, first.open_images) == (144, 120)
    # The other way about is another set, and replaces this one
    second = materialise.training_images(settings, ["open", "target"], str(tmp_path))
    check_bytes(tmp_path, second, both[24:] + both[:24])
    assert second.fingerprint != first.fingerprint


def test_labelled_images_of_a_probe(document: Document, tmp_path: Path) -> None:
    settings = settings_of(document)
    index = materialise.labelled_images(settings, settings.open[1], str(tmp_path))
    assert (index.images, index.open_images) == (40, 0)
    images = TrainingSet(str(tmp_path))
    assert images.classes == ["class0", "class1", "class2"]
    assert images.labels.tolist() == [seed % 3 for seed in range(100, 140)]


# Manifests


def places(manifest: Path) -> list[tuple[Any, ...]]:
    rows = pq.read_table(manifest).to_pylist()
    return [(row["uri"], row["offset"], row["row"]) for row in rows]


def test_target_and_coreset(document: Document, finished: Path, tmp_path: Path) -> None:
    """The images are those of the manifest, each once; their order is nobody's concern."""
    index = materialise.training_images(settings_of(document), ["target", "coreset"], str(tmp_path))
    assert (index.images, index.open_images, index.rejected) == (64, 40, 0)
    rows = rows_of(tmp_path)
    assert [row["image"] for row in rows[:24]] == target_bytes(root_of(document))
    selected = pq.read_table(finished / "coreset.parquet").to_pylist()
    assert Counter(sha256(row["image"]) for row in rows[24:]) == Counter(
        row["sha256"] for row in selected
    )
    fields = ("source", "key", "label", "sha256")
    assert {tuple(row[f] for f in fields) for row in rows[24:]} == {
        tuple(row[f] for f in fields) for row in selected
    }


def test_manifests_that_share_images(document: Document, finished: Path, tmp_path: Path) -> None:
    """An image in both counts once, whichever manifest comes first."""
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    run(settings_of(document, output=str(other), coreset={"method": "random", "budget": 60}))
    manifests = [finished / "coreset.parquet", other / "coreset.parquet"]
    union = set(places(manifests[0])) | set(places(manifests[1]))
    assert 60 < len(union) < 100, "some shared, some not"
    settings = settings_of(document)
    for order in (manifests, manifests[::-1]):
        folder = tmp_path / order[0].parent.name / "data"
        index = materialise.training_images(settings, [str(m) for m in order], str(folder))
        assert index.images == index.open_images == len(union)
        keys = [(row["source"], row["key"]) for row in rows_of(folder)]
        assert len(set(keys)) == len(keys) == len(union)


def moved_manifest(finished: Path, folder: Path) -> tuple[Path, list[Path]]:
    """A manifest of files of its own that a test may spoil: the selected ones of the folder."""
    table = pq.read_table(finished / "coreset.parquet")
    rows = [row for row in table.to_pylist() if row["source"] == "folder"]
    files = []
    for number, row in enumerate(rows):
        files.append(folder / f"{number:03d}.png")
        shutil.copyfile(row["uri"], files[-1])
        row["uri"] = str(files[-1])
    path = folder / "moved.parquet"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    return path, files


def test_images_that_changed_or_went_after_selection(
    document: Document, finished: Path, tmp_path: Path
) -> None:
    manifest, files = moved_manifest(finished, tmp_path)
    assert len(files) > 3
    files[0].write_bytes(datasets.picture(7777))
    files[1].unlink()
    lenient = settings_of(document, images={"max_rejected_fraction": 0.9})
    index = materialise.training_images(lenient, [str(manifest)], str(tmp_path / "data"))
    assert (index.images, index.rejected) == (len(files) - 2, 2)
    assert [row["image"] for row in rows_of(tmp_path / "data")] == [
        file.read_bytes() for file in files[2:]
    ]
    rejects = pq.read_table(tmp_path / "data" / "rejected.parquet").to_pylist()
    assert {row["uri"]: row["reason"] for row in rejects} == {
        str(files[0]): "not the image that was selected: its bytes changed",
        str(files[1]): "no such file",
    }


def test_too_many_that_cannot_be_read(document: Document, finished: Path, tmp_path: Path) -> None:
    manifest, files = moved_manifest(finished, tmp_path)
    for file in files[: len(files) // 2]:
        file.unlink()
    data, n = tmp_path / "data", len(files) // 2
    for fraction, limit in (("0.1", {}), ("0.0", {"images": {"max_rejected_fraction": 0.0}})):
        settings = settings_of(document, **limit)
        with pytest.raises(
            CurateError, match=rf"^images\.max_rejected_fraction={fraction}: {n} of {len(files)} "
        ) as error:
            materialise.training_images(settings, [str(manifest)], str(data))
        assert str(data / "rejected.parquet") in str(error.value)
        assert pq.read_table(data / "rejected.parquet").num_rows == n
        assert read_index(str(data)) is None, "no set came of it"
    for file in files:
        file.unlink(missing_ok=True)
    anything = settings_of(document, images={"max_rejected_fraction": 1.0})
    with pytest.raises(CurateError, match=r"^images\.max_rejected_fraction=1\.0: "):
        materialise.training_images(anything, [str(manifest)], str(data))


def test_no_coreset_yet(document: Document, tmp_path: Path) -> None:
    settings = settings_of(document, output=str(tmp_path))
    with pytest.raises(
        CurateError,
        match=r"/coreset\.parquet: no such manifest; run `curate run` on this config first",
    ):
        materialise.training_images(settings, ["target", "coreset"], str(tmp_path / "data"))
    with pytest.raises(CurateError, match=r"/gone\.parquet: no such manifest; .*pretrain\.data"):
        materialise.training_images(
            settings, [str(tmp_path / "gone.parquet")], str(tmp_path / "data")
        )
    assert not (tmp_path / "data").exists()


def test_what_is_no_manifest(document: Document, finished: Path, tmp_path: Path) -> None:
    settings, path = settings_of(document), tmp_path / "m.parquet"

    def error() -> str:
        with pytest.raises(CurateError) as raised:
            materialise.training_images(settings, [str(path)], str(tmp_path / "data"))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    shutil.copyfile(root_of(document) / "tables" / "one.parquet", path)
    assert error() == (
        f"{path}: not a manifest: it has no column source, key, uri, offset, size, row, sha256"
    )
    path.write_bytes(b"PAR1 and no more")
    assert error().startswith(f"{path}: not a Parquet file: ")
    table = pq.read_table(finished / "coreset.parquet")
    nowhere = table.set_column(
        table.column_names.index("uri"), "uri", pa.nulls(len(table), pa.string())
    )
    pq.write_table(nowhere, path)
    key = table["key"][0].as_py()
    assert error() == f"{path}: {key} has no uri that leads to its image"


def test_a_manifest_is_what_it_says_of_its_images(finished: Path, tmp_path: Path) -> None:
    """Not how the file is written, and not what its footer or other columns say."""
    table, path = pq.read_table(finished / "coreset.parquet"), str(tmp_path / "m.parquet")
    known = wanted.digest_of(str(finished / "coreset.parquet"))
    again = table.replace_schema_metadata({b"curate": b"{}"}).append_column(
        "license", pa.array(["cc0"] * len(table))
    )
    pq.write_table(again, path, row_group_size=7, compression="snappy")
    assert wanted.digest_of(path) == known
    for other in (table.slice(1), table.take(pa.array(np.arange(len(table))[::-1]))):
        pq.write_table(other, path)
        assert wanted.digest_of(path) != known
    size = table.column_names.index("size")
    pq.write_table(table.set_column(size, "size", pc.add(table["size"], 1)), path)
    assert wanted.digest_of(path) != known


# Again


def stamps(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_same_request_uses_the_same_set(document: Document, tmp_path: Path) -> None:
    settings = settings_of(document)
    first = materialise.training_images(settings, ["target"], str(tmp_path))
    before = stamps(tmp_path)
    elsewhere = settings_of(document, output=str(tmp_path / "run"), embed={"batch_size": 3})
    again = materialise.training_images(elsewhere, ["target"], str(tmp_path))
    assert again == first and stamps(tmp_path) == before
    limited = {**document["target"], "limit": 5}
    other = materialise.training_images(
        settings_of(document, target=limited), ["target"], str(tmp_path)
    )
    check_bytes(tmp_path, other, target_bytes(root_of(document))[:5])
    assert {name for name, _ in other.parts} | {"index.json"} == set(stamps(tmp_path))


def test_another_manifest_under_the_same_name(
    document: Document, finished: Path, tmp_path: Path
) -> None:
    """What was selected is part of the request, not just the name of the file."""
    manifest = tmp_path / "m.parquet"
    table = pq.read_table(finished / "coreset.parquet")
    settings = settings_of(document)
    for rows in (10, 7):
        pq.write_table(table.slice(0, rows), manifest)
        index = materialise.training_images(settings, [str(manifest)], str(tmp_path / "data"))
        assert index.images == rows


def test_a_copy_that_was_cut_short_is_made_again(document: Document, tmp_path: Path) -> None:
    """Without an index nothing in the folder is trusted."""
    settings = settings_of(document)
    first = materialise.training_images(settings, ["target", "open"], str(tmp_path))
    whole = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "index.json").unlink()
    lost, cut = (tmp_path / name for name, _ in first.parts[:2])
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    (tmp_path / "part-999999-000.arrow").write_bytes(b"of another set")
    assert materialise.training_images(settings, ["target", "open"], str(tmp_path)) == first
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == whole


def test_parts_stay_small(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task's images go to several files, each image to one of them; what is done says where."""
    limit = 3 * len(datasets.picture(1000))
    monkeypatch.setattr(copying, "PART_BYTES", limit)
    settings, files = settings_of(document), TrainingSetFiles(str(tmp_path))
    listed = wanted.write_list._function(files, materialise._asked(settings, ["target"]))
    assert sum(listed.images) == 24
    copied = copying.copy(files, 0, {"target": settings.target}, settings.images)
    assert isinstance(copied, copying.Copied) and copied == copying.Copied.read(files.done(0))
    tables = [shards.read_arrow(files.part(part.name)) for part in copied.parts]
    images = [image for table in tables for image in table["image"].to_pylist()]
    assert images == target_bytes(root_of(document)) and not copied.rejects
    assert [len(table) for table in tables] == [part.images for part in copied.parts]
    sizes = [sum(map(len, table["image"].to_pylist())) for table in tables]
    assert len(sizes) > 4 and all(limit <= size < 2 * limit for size in sizes[:-1])
    found = {file.name for file in tmp_path.iterdir()}
    assert found == {part.name for part in copied.parts} | {"making"}


def test_where_images_lie_in_their_parts(document: Document, tmp_path: Path) -> None:
    """A reader that knows no Arrow finds each image by the index."""
    settings = settings_of(document)
    index = materialise.training_images(settings, ["target", "open"], str(tmp_path))
    found = []
    for (name, images), span in zip(index.parts, index.spans, strict=True):
        data = (tmp_path / name).read_bytes()
        assert len(data) == span.size
        ends = np.frombuffer(data, np.int64, images + 1, span.ends)
        found += [data[span.data + low : span.data + high] for low, high in pairwise(ends)]
    assert found == target_bytes(root_of(document)) + open_bytes(root_of(document))


def test_fingerprint_is_of_bytes_and_order(document: Document, tmp_path: Path) -> None:
    """Where the set and its sources lie is none of its business."""
    root = tmp_path / "elsewhere"
    shutil.copytree(root_of(document) / "target", root / "target")
    moved = settings_of(document, target={"kind": "image_folder", "path": str(root / "target")})
    folders = iter(range(100))

    def fingerprint(settings: RunSettings, data: list[str]) -> str:
        folder = tmp_path / f"data-{next(folders)}"
        return materialise.training_images(settings, data, str(folder)).fingerprint

    first = fingerprint(settings_of(document), ["target"])
    assert fingerprint(settings_of(document), ["target"]) == first
    assert fingerprint(moved, ["target"]) == first
    files = sorted((root / "target").rglob("*.png"), key=str)
    a, b = files[0].read_bytes(), files[5].read_bytes()
    files[0].write_bytes(b)
    files[5].write_bytes(a)
    assert fingerprint(moved, ["target"]) != first, "two images changed places"
    files[0].write_bytes(a)
    files[5].write_bytes(b)
    assert fingerprint(moved, ["target"]) == first
    files[3].write_bytes(files[3].read_bytes() + b"\0")
    assert fingerprint(moved, ["target"]) != first, "one byte more"


def test_index_survives_its_file(tmp_path: Path) -> None:
    index = Index({"target": {"path": "ü"}}, [("part-0.arrow", 3)], 3, 1, 2, "f" * 64)
    index.write(str(tmp_path))
    assert read_index(str(tmp_path)) == index != replace(index, images=4)
