"""Inputs that grow or change after a run, and runs that share their embeddings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from curate.errors import CurateError
from curate.images import PIXELS
from curate.pipeline import run
from curate.runfiles import fingerprint, plan, store
from curate.runfiles.files import RunFiles
from curate.runfiles.run import Run
from curate.settings import RunSettings
from curate.settings import load as config
from tests import datasets

UNIT_IMAGES = 20
LISTED = [f"listed/b/deeper/{seed:04d}.png" for seed in range(501, 561, 2)]
OPEN_IMAGES = 300 + len(LISTED) + 10


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> dict[str, Any]:
    """The document of a run that is done; its sources lie beside its output. Who changes one of
    them puts it back."""
    root = tmp_path_factory.mktemp("growing")
    datasets.write_folder(root / "target", range(1000, 1012))
    datasets.write_folder(root / "folder", range(0, 600, 2))  # so that there is room between
    datasets.write_folder(root / "listed", range(500, 570))
    datasets.write_tar(root / "one.tar", range(700, 710))
    (root / "list.txt").write_text("\n".join(LISTED) + "\n")
    document = {
        "target": {"kind": "image_folder", "path": str(root / "target")},
        "open": [
            {"name": "folder", "kind": "image_folder", "path": str(root / "folder")},
            {"name": "list", "kind": "url_list", "path": str(root / "list.txt")},
            {"name": "tar", "kind": "webdataset", "path": str(root / "one.tar")},
        ],
        "encoder": {"backbone": "resnet18", "image_px": 32, "crop_fraction": 1.0},
        "embed": {"unit_images": UNIT_IMAGES},
        "coreset": {"clusters": 5, "tau": None, "budget": 60},
        "store": str(root / "store"),
        "output": str(root / "run"),
    }
    assert run(config.parse(document, "test")).embedded_now == OPEN_IMAGES + 12
    return document


@pytest.fixture
def again(finished: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The document of a copy of the run, with a copy of the store, over the same sources."""
    copied = datasets.copy_run(finished, tmp_path)
    return {**copied, "store": str(shutil.copytree(finished["store"], tmp_path / "store"))}


@contextmanager
def put_back(*paths: Path) -> Iterator[None]:
    """Files as they were before, times and all."""
    before = {path: (path.read_bytes(), path.stat()) for path in paths if path.exists()}
    try:
        yield
    finally:
        for path in paths:
            if path in before:
                data, about = before[path]
                path.write_bytes(data)
                os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
            else:
                path.unlink(missing_ok=True)


def settings_of(document: dict[str, Any], **changes: Any) -> RunSettings:
    return config.parse({**document, **changes}, "test")


def root_of(document: dict[str, Any]) -> Path:
    return Path(document["target"]["path"]).parent


def manifest(output: Path | str) -> pa.Table:
    return pq.read_table(Path(output) / "coreset.parquet").replace_schema_metadata()


def fresh(document: dict[str, Any], root: Path, **changes: Any) -> pa.Table:
    """The manifest of a run that knows of no other."""
    run(settings_of(document, output=str(root / "fresh"), store=None, **changes))
    return manifest(root / "fresh")


def units_of(output: str) -> pa.Table:
    found = plan.newest(RunFiles(output))
    assert found is not None
    return found.table


def shards_in(folder: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("[!.]*.arrow")}


def test_what_was_added_is_embedded_and_nothing_else(
    finished: dict[str, Any], again: dict[str, Any], tmp_path: Path
) -> None:
    """An image among the others, lines below the others, another source."""
    root = root_of(finished)
    image, lines = root / "folder" / "a" / "deeper" / "0301.png", root / "list.txt"
    datasets.write_parquet(tmp_path / "more.parquet", range(800, 810))
    table = {"name": "more", "kind": "parquet", "path": str(tmp_path / "more.parquet")}
    before, kept = units_of(finished["output"]), shards_in(again["store"])
    with put_back(image, lines):
        image.write_bytes(datasets.picture(301))
        lines.write_text(lines.read_text() + "listed/a/deeper/0500.png\nlisted/a/deeper/0502.png\n")
        summary = run(settings_of(again, open=[*again["open"], table]))
        expected = fresh(again, tmp_path, open=[*again["open"], table])
    now = units_of(again["output"])
    new = now.filter(pc.invert(pc.is_in(now["digest"], value_set=before["digest"])))
    by_source = {name: new.filter(pc.equal(new["source"], name)) for name in ("folder", "list")}
    assert 1 <= len(by_source["folder"]) <= 2 and len(by_source["list"]) == 1
    assert summary.embedded_now == pc.sum(new["images"]).as_py()
    assert summary.sources.total("open", "embedded") == OPEN_IMAGES + 1 + 2 + 10
    assert kept.items() <= shards_in(again["store"]).items()
    assert manifest(again["output"]).equals(expected)


def test_nothing_is_taken_of_what_another_encoder_made(again: dict[str, Any]) -> None:
    kept = shards_in(again["store"])
    encoder = {**again["encoder"], "seed": 1}
    other = settings_of(again, encoder=encoder, output=again["output"] + "-other")
    assert run(other).embedded_now == OPEN_IMAGES + 12
    found = shards_in(again["store"])
    assert kept.items() <= found.items() and len(found) == 2 * len(kept)
    assert store.prune(again["store"], remove=False).uris == []


def test_nothing_is_taken_of_pixels_made_another_way(
    again: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a version has them that decodes or resizes otherwise."""
    kept = shards_in(again["store"])
    monkeypatch.setattr(fingerprint, "PIXELS", PIXELS + 1)
    with pytest.raises(CurateError, match=rf"pixels was {PIXELS}, is {PIXELS + 1}.*--fresh"):
        run(settings_of(again))
    other = settings_of(again, output=again["output"] + "-other")
    assert run(other).embedded_now == OPEN_IMAGES + 12
    found = shards_in(again["store"])
    assert kept.items() <= found.items() and len(found) == 2 * len(kept)


def test_no_store_to_prune(tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=r"nowhere: no store of embeddings here; name the folder"):
        store.prune(str(tmp_path / "nowhere"), remove=True)


CHANGES = {
    "touched": ("folder/a/deeper/0100.png", os.utime),
    "line gone": ("list.txt", lambda path: path.write_text("\n".join(LISTED[1:]))),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_named_and_nothing_is_done(again: dict[str, Any], what: str) -> None:
    name, change = CHANGES[what]
    path, before = root_of(again) / name, Run.open(again["output"])
    files = {p: p.stat().st_mtime_ns for p in Path(again["output"]).rglob("*") if p.is_file()}
    with put_back(path):
        change(path)
        with pytest.raises(CurateError, match=rf": 1 changed: {path}\. Put .* --accept-changes"):
            Run.begin(settings_of(again), before.fingerprint)
    after = {p: p.stat().st_mtime_ns for p in Path(again["output"]).rglob("*") if p.is_file()}
    assert after == files


def test_sources_that_the_user_changed_are_no_surprise(again: dict[str, Any]) -> None:
    """One taken out, one with a limit, and the order turned round."""
    folder, lines, _ = again["open"]
    before = Run.open(again["output"])
    changed = settings_of(again, open=[{**lines, "limit": 7}, folder])
    table = Run.begin(changed, before.fingerprint).plan.table
    images = table.group_by("source", use_threads=False).aggregate([("images", "sum")])
    assert [list(row.values()) for row in images.to_pylist()] == [
        ["target", 12],
        ["list", 7],
        ["folder", 300],
    ]
    of_folder = pc.equal(table["source"], "folder")
    earlier = before.plan.table
    assert table.filter(of_folder)["digest"].equals(
        earlier.filter(pc.equal(earlier["source"], "folder"))["digest"]
    )


def test_changes_that_are_accepted(
    finished: dict[str, Any], again: dict[str, Any], tmp_path: Path
) -> None:
    root = root_of(finished)
    changed, gone, lines = (
        root / name for name in ("folder/a/deeper/0100.png", "folder/a/deeper/0400.png", "list.txt")
    )
    before = units_of(finished["output"])
    with put_back(changed, gone, lines):
        changed.write_bytes(datasets.picture(9))
        gone.unlink()
        lines.write_text(lines.read_text().replace("b/deeper/0511", "a/deeper/0500"))
        summary = run(settings_of(again), accept_changes=True)
        expected = fresh(again, tmp_path)
    now = units_of(again["output"])
    new = now.filter(pc.invert(pc.is_in(now["digest"], value_set=before["digest"])))
    assert summary.embedded_now == pc.sum(new["images"]).as_py() < OPEN_IMAGES / 2
    assert summary.sources.total("open", "embedded") == OPEN_IMAGES - 1
    assert manifest(again["output"]).equals(expected)
