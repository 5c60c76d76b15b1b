"""`curate export`: bytes as they were, read by the tools that the formats are for."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow
from torchvision.datasets import ImageFolder

from curate.cli import EXPORTS, main
from curate.errors import CurateError
from curate.export import atlas, fiftyone, formats, stage
from curate.export.formats import Image
from curate.runfiles.embeddings import read_embeddings
from curate.runfiles.run import Run
from tests import datasets

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def run(merged_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images out of four sources: files, tars, a table, a list."""
    return Path(datasets.copy_run(merged_run[0], tmp_path_factory.mktemp("exported"))["output"])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "PIECE_ROWS", 17)


def digests(run: Path) -> list[str]:
    found: list[str] = pq.read_table(run / "coreset.parquet")["sha256"].to_pylist()
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def exported(run: Path, form: str, to: Path) -> Path:
    said = stage.export(str(run), form, str(to))
    assert said.startswith("40 images; ")
    assert json.loads((to / "export.json").read_text())["whole"] is True
    assert not (to / "exporting").exists()
    return to


def test_image_folder(run: Path, tmp_path: Path) -> None:
    folder = exported(run, "imagefolder", tmp_path / "folder")
    found = ImageFolder(str(folder))
    assert sorted(sha256(Path(path).read_bytes()) for path, _ in found.samples) == sorted(
        digests(run)
    )
    labels = pq.read_table(run / "coreset.parquet")["label"].to_pylist()
    assert len(found.classes) == len(set(labels))
    assert found[0][0].mode == "RGB"


@pytest.mark.parametrize("form", ["parquet", "hf"])
def test_parquet_in_the_manifests_order(run: Path, tmp_path: Path, form: str) -> None:
    folder = exported(run, form, tmp_path / form)
    files = sorted(folder.rglob("*.parquet"))
    assert len(files) == 3
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert [sha256(row["image"]["bytes"]) for row in rows] == digests(run)
    manifest = pq.read_table(run / "coreset.parquet").to_pylist()
    assert [{k: v for k, v in row.items() if k != "image"} for row in rows] == manifest
    features = json.loads(pq.read_schema(files[0]).metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    if form == "hf":
        assert (folder / "README.md").read_text().startswith("---\nconfigs:")
        assert files[-1].name == "train-00002-of-00003.parquet"


def test_datasets_opens_it(run: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("datasets")
    folder = exported(run, "hf", tmp_path / "hf")
    found = hub.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.num_rows == 40
    assert isinstance(found[0]["image"], Pillow.Image)
    assert found["sha256"][:] == digests(run)


def test_web_dataset(run: Path, tmp_path: Path) -> None:
    folder = exported(run, "webdataset", tmp_path / "tars")
    tars = sorted(folder.glob("*.tar"))
    assert [path.name for path in tars] == [f"shard-{n:06d}.tar" for n in range(3)]
    found = []
    for path in tars:
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
        for name, data in members.items():
            stem, _, extension = name.partition(".")
            if extension in ("json", "cls"):
                continue
            about = json.loads(members[f"{stem}.json"])
            assert about["sha256"] == sha256(data)
            assert members.get(f"{stem}.cls", b"").decode() == (about["label"] or "")
            found.append(sha256(data))
    assert found == digests(run)


def test_webdataset_opens_it(run: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    folder = exported(run, "webdataset", tmp_path / "tars")
    pattern = str(folder / "shard-{000000..000002}.tar")
    rows = list(wds.WebDataset(pattern, shardshuffle=False))
    assert [json.loads(row["json"])["sha256"] for row in rows] == digests(run)


def test_csv(run: Path, tmp_path: Path) -> None:
    folder = exported(run, "csv", tmp_path / "csv")
    with open(folder / "coreset.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sha256"] for row in rows] == digests(run)
    assert rows[0].keys() == set(pq.read_schema(run / "coreset.parquet").names)


def test_an_atlas(run: Path, tmp_path: Path) -> None:
    """Points and neighbours are those of the embeddings, row by row."""
    folder = exported(run, "atlas", tmp_path / "atlas")
    assert sorted(path.name for path in folder.iterdir()) == ["atlas.parquet", "export.json"]
    rows = pq.read_table(folder / "atlas.parquet").to_pylist()
    manifest = pq.read_table(run / "coreset.parquet").to_pylist()
    assert [{name: row[name] for name in manifest[0]} for row in rows] == manifest
    embeddings = embeddings_of(run)[[row["position"] for row in rows]]
    distance = np.clip(1 - embeddings @ embeddings.T, 0, 2)
    for number, row in enumerate(rows):
        near = row["neighbors"]
        assert len(set(near["ids"])) == 15
        assert near["distances"] == pytest.approx(distance[number, near["ids"]], abs=1e-5)
        assert near["distances"] == pytest.approx(np.sort(distance[number])[:15], abs=1e-5)
        with Pillow.open(io.BytesIO(row["image"]["bytes"])) as picture:
            assert picture.format == "JPEG" and max(picture.size) <= 128
    assert np.isfinite([[row["x"], row["y"]] for row in rows]).all()
    assert len({(row["x"], row["y"]) for row in rows}) > 30


def embeddings_of(run: Path) -> np.ndarray:
    shards = Run.open(str(run)).embedded().open
    return np.concatenate([b for one in shards for b in read_embeddings(one)]).astype(np.float32)


def test_an_atlas_keeps_the_rows_of_what_cannot_be_read(run: Path, tmp_path: Path) -> None:
    """Neighbours are counted by rows. A column of the manifest gives way to the atlas's own."""
    table = pq.read_table(run / "coreset.parquet").append_column("x", pa.array([*"ab"] * 20))
    of = atlas.map_of(np.eye(40, dtype=np.float16))
    made = atlas.table_of(table.slice(10, 5), 10, {11: b"picture"}, of).to_pylist()
    assert [row["image"] for row in made] == [None, {"bytes": b"picture"}, None, None, None]
    assert [row["x_"] for row in made] == ["a", "b", "a", "b", "a"]
    assert [row["neighbors"]["ids"][0] for row in made] == [10, 11, 12, 13, 14]


def test_an_atlas_of_too_many(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas, "MOST_IMAGES", 39)
    with pytest.raises(CurateError, match="40 images, of at most 39; name a smaller --manifest"):
        stage.export(str(run), "atlas", str(tmp_path / "atlas"))


def test_fifty_one(run: Path, tmp_path: Path) -> None:
    folder = exported(run, "fiftyone", tmp_path / "fiftyone")
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    assert [sha256((folder / one["filepath"]).read_bytes()) for one in samples] == digests(run)
    about = json.loads((folder / "metadata.json").read_text())
    assert about["media_type"] == "image" and "version" not in about
    for one, row in zip(samples, pq.read_table(run / "coreset.parquet").to_pylist(), strict=True):
        label = one.get("ground_truth", {"label": None})
        assert label["label"] == row["label"]
        assert one["key"] == row["key"] and one["round"] == row["round"]
        assert one["metadata"]["width"] == row["width"]
        assert None not in one.values()


def test_the_help_names_all_formats() -> None:
    assert ", ".join(formats.FORMATS) == EXPORTS


def test_names_that_fiftyone_has_taken() -> None:
    row = {"key": "a", "label": None, "size": 1, "width": 2, "height": 3}
    row |= {"tags": "x", "_id": 7, "taken": date(2020, 1, 2)}
    sample = fiftyone.sample_of(row, "data/a.png")
    assert sample["tags"] == [] and sample["tags_"] == "x" and sample["id_"] == 7
    assert json.loads(fiftyone.lines_of([sample]))["taken"] == "2020-01-02"


def test_cut_short_and_gone_on_with(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, so that it can be cut."""
    whole = exported(run, "parquet", tmp_path / "whole")
    written: list[int] = []

    class Here:
        @staticmethod
        def remote(job: Any, number: int, placed: None) -> None:
            if number == 2 and len(written) == 2:
                raise KeyboardInterrupt
            written.append(number)
            stage.write_piece(stage.ray.get(job), number)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "_write_piece", Here)
        patched.setattr(stage, "results", lambda made: made)
        with pytest.raises(KeyboardInterrupt):
            stage.export(str(run), "parquet", str(tmp_path / "cut"))
        (tmp_path / "cut" / "part-000000.parquet").write_bytes(b"not made again")
        written.append(-1)
        exported(run, "parquet", tmp_path / "cut")
    assert written == [0, 1, -1, 2]
    assert (tmp_path / "cut" / "part-000000.parquet").read_bytes() == b"not made again"
    for name in ("part-000001.parquet", "part-000002.parquet"):
        assert (whole / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert "exported before" in stage.export(str(run), "parquet", str(tmp_path / "cut"))
    with pytest.raises(CurateError, match="another export is there"):
        stage.export(str(run), "hf", str(tmp_path / "cut"))


@pytest.mark.parametrize("gone", [1, 40])
def test_images_that_are_gone(run: Path, tmp_path: Path, gone: int) -> None:
    """They are counted and named; too many of them end it."""
    table = pq.read_table(run / "coreset.parquet")
    rows = table.to_pylist()
    # An image by itself first, whose URI alone leads to it
    rows.sort(key=lambda row: (row["row"] is not None) + (row["offset"] is not None))
    lost = [{**row, "uri": str(tmp_path / "nowhere.jpg")} for row in rows[:gone]]
    other = tmp_path / "other.parquet"
    pq.write_table(pa.Table.from_pylist([*lost, *rows[gone:]], table.schema), other)
    arguments = (str(run), "imagefolder", str(tmp_path / "to"), str(other))
    if gone == 1:
        assert stage.export(*arguments).startswith("39 images, 1 could not be read")
    else:
        with pytest.raises(CurateError, match=r"max_rejected_fraction=.*: 40 of 40 images"):
            stage.export(*arguments)
    rejects = pq.read_table(tmp_path / "to" / "rejected.parquet").to_pylist()
    assert sorted(r["key"] for r in rejects) == sorted(row["key"] for row in lost)
    assert "no such file" in rejects[0]["reason"]


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = str(tmp_path / "to")
    assert main(["export", str(run), "--format", "csv", "--to", to]) == 0
    assert "40 images; " in capsys.readouterr().out
    assert main(["export", str(run), "--format", "zip", "--to", to]) == 1
    assert "--format zip: must be one of imagefolder, " in capsys.readouterr().err


def image_of(**row: Any) -> Image:
    buffer = io.BytesIO()
    Pillow.new("RGB", (4, 4)).save(buffer, row.pop("format", "JPEG"))
    return Image({"key": "k", "sha256": "ab" * 32, "label": None, **row}, 7, buffer.getvalue())


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("a/b/cat.jpg", "cat"),
        ("../../etc/passwd", "passwd"),
        ("a b\n.c?.png", "a_b_c"),
        ("…", "image"),
        ("CON", "CON"),
        ("x" * 300, "x" * formats.LONGEST),
        ("v1.2", "v1_2"),
    ],
)
def test_names_are_safe_on_any_system(key: str, name: str) -> None:
    assert image_of(key=key).name == f"{name}-{'ab' * 6}-000007"


def test_folders_of_labels_that_differ_differ() -> None:
    labels = ["cat", "cat/", "cat?", "..", "", "unlabelled", None, "a/b", "a_b"]
    folders = [formats.folder_of(label) for label in labels]
    assert len(set(folders)) == len(labels)
    assert folders[0] == "cat" and formats.folder_of(None) == "unlabelled"
    assert all(set(folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for folder in folders)


@pytest.mark.parametrize(
    ("format_", "extension"),
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
        ("WEBP", "webp"),
    ],
)
def test_extensions_are_the_bytes_own(format_: str, extension: str) -> None:
    assert image_of(key="x.jpg", format=format_).extension == extension
