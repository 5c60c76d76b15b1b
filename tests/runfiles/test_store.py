"""Embeddings that several runs share: what is new is embedded, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curate.errors import CurateError
from curate.pipeline import run, run_all
from curate.runfiles import plan, store
from curate.runfiles.files import PlanFiles, RunFiles
from curate.runfiles.run import Run
from curate.settings import RunSettings, load
from tests import datasets


def write_sets(root: Path) -> dict[str, Any]:
    """Two targets, and an open set of a folder and a list."""
    datasets.write_folder(root / "pets", range(12))
    datasets.write_folder(root / "cars", range(20, 30))
    datasets.write_folder(root / "folder", range(100, 160))
    (root / "list.txt").write_text("".join(f"folder/a/{n:04d}.png\n" for n in range(100, 110, 2)))
    datasets.write_tar(root / "more.tar", range(200, 220))
    return {
        "target": {"kind": "image_folder", "path": str(root / "pets")},
        "open": [
            {"name": "folder", "kind": "image_folder", "path": str(root / "folder")},
            {"name": "list", "kind": "url_list", "path": str(root / "list.txt")},
        ],
        "encoder": {"backbone": "resnet18", "image_px": 32, "crop_fraction": 1.0},
        "embed": {"unit_images": 8},
        "coreset": {"clusters": 4, "tau": None, "budget": 25},
        "output": str(root / "pets-run"),
        "store": str(root / "store"),
    }


def digests_of(output: str) -> set[str]:
    return set(Run.open(output).plan.digests.to_pylist())


def rows_of(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / "coreset.parquet").to_pylist()


def test_what_is_new_is_embedded_and_the_manifest_is_a_fresh_runs(tmp_path, ray_session) -> None:
    document = write_sets(tmp_path)
    run(load.parse(document, "test"))
    before = digests_of(document["output"])

    # A file among the others, and a source
    (tmp_path / "folder" / "a" / "0101b.png").write_bytes(datasets.picture(999))
    tar = {"name": "more", "kind": "webdataset", "path": str(tmp_path / "more.tar")}
    document["open"].append(tar)
    again = run(load.parse(document, "test"))
    units = Run.open(document["output"]).plan.units()
    fresh = [one for one in units if one.unit.digest not in before]
    assert {one.source for one in fresh} == {"folder", "more"}
    changed = [one.unit.images for one in fresh if one.source == "folder"]
    assert len(changed) <= 3 and again.embedded_now == sum(changed) + 20

    # Another target, elsewhere, that uses the same store
    cars = {"kind": "image_folder", "path": str(tmp_path / "cars")}
    other = {**document, "target": cars, "output": str(tmp_path / "cars-run")}
    assert run(load.parse(other, "test")).embedded_now == 10

    # Both at once, from nothing
    both = {key: value for key, value in document.items() if key not in ("target", "store")}
    both |= {
        "targets": {"pets": document["target"], "cars": cars},
        "output": str(tmp_path / "both"),
    }
    path = tmp_path / "both.yaml"
    path.write_text(load.yaml.safe_dump(both))
    summaries = run_all(load.load_runs(str(path)))
    assert [one.embedded_now for one in summaries] == [12 + 61 + 5 + 20, 10]
    for name in ("pets", "cars"):
        alone, together = tmp_path / f"{name}-run", tmp_path / "both" / name
        assert rows_of(alone) == rows_of(together) and len(rows_of(alone)) == 25
        assert pq.read_table(alone / "rounds.parquet") == pq.read_table(together / "rounds.parquet")

    # Who names nothing any more: the units that the inserted file changed
    unused = store.prune(str(tmp_path / "store"), remove=False)
    gone = before - digests_of(document["output"]) - digests_of(other["output"])
    assert {uri.rpartition("/")[2].partition("-")[0] for uri in unused.uris} == gone != set()
    store.prune(str(tmp_path / "store"), remove=True)
    assert not store.prune(str(tmp_path / "store"), remove=True).uris
    assert run(load.parse(document, "test")).embedded_now == 0


@pytest.fixture
def planned(tmp_path, ray_session) -> tuple[dict[str, Any], RunSettings]:
    document = write_sets(tmp_path)
    document["open"].append(
        {"name": "more", "kind": "webdataset", "path": str(tmp_path / "more.tar")}
    )
    settings = load.parse(document, "test")
    Run.begin(settings, {"device": "cpu"})
    return document, settings


@pytest.mark.parametrize(
    ("happens", "named"),
    [
        ("a file is another", r"1 changed: .*/folder/a/0110\.png\."),
        ("a file is gone", r"1 gone: .*/folder/a/0110\.png\."),
        ("a tar is another", r"1 changed: .*/more\.tar\."),
        ("a line is another", r"1 changed: .*/list\.txt\."),
    ],
)
def test_what_is_not_as_it_was_is_named_and_the_user_decides(
    planned, tmp_path, happens, named
) -> None:
    document, settings = planned
    picture = tmp_path / "folder" / "a" / "0110.png"
    lines = tmp_path / "list.txt"
    if happens == "a file is another":
        picture.write_bytes(datasets.picture(5000))
    elif happens == "a file is gone":
        picture.unlink()
    elif happens == "a tar is another":
        datasets.write_tar(tmp_path / "more.tar", range(300, 310))
    else:
        lines.write_text(lines.read_text().replace("0104", "0106"))
    before = plan.newest(RunFiles(document["output"]))
    with pytest.raises(CurateError, match=named + " Put them back, or .* --accept-changes") as told:
        Run.begin(settings, {"device": "cpu"})
    assert "\n" not in str(told.value)
    assert plan.newest(RunFiles(document["output"])) == before
    assert len(list((tmp_path / "pets-run" / "plan").iterdir())) == 1, "nothing half-written"
    accepted = Run.begin(settings, {"device": "cpu"}, accept_changes=True)
    assert accepted.plan.table == plan.make(settings, PlanFiles(str(tmp_path / "p"))).table


def test_growth_and_other_settings_are_nobodys_loss(planned, tmp_path) -> None:
    document, settings = planned
    with open(tmp_path / "list.txt", "a") as file:
        file.write("folder/b/0101.png\n")
    (tmp_path / "folder" / "new.png").write_bytes(datasets.picture(1))
    assert Run.begin(settings, {"device": "cpu"}).plan.images is None  # as of tars
    fewer = {**document, "open": document["open"][:2]}
    fewer["open"][0]["limit"] = 9
    begun = Run.begin(load.parse(fewer, "test"), {"device": "cpu"})
    assert begun.plan.images == 12 + 9 + 6
    smaller = {**fewer, "embed": {"unit_images": 2}}
    assert len(Run.begin(load.parse(smaller, "test"), {"device": "cpu"}).plan) > len(begun.plan)


def test_another_encoder_finds_nothing_of_the_first_ones(planned, tmp_path, caplog) -> None:
    document, settings = planned
    with pytest.raises(CurateError, match=r"device was cpu, is gpu. Set another output, or"):
        Run.begin(settings, {"device": "gpu"})
    elsewhere = settings.model_copy(update={"output": str(tmp_path / "elsewhere")})
    with caplog.at_level("INFO"):
        other = Run.begin(elsewhere, {"device": "gpu"})
    assert "of 1 other encoders, none yet of this" in caplog.text
    assert other.embeddings.folder != Run.open(document["output"]).embeddings.folder
    assert not len(other.resumed().table)


def test_no_store_is_no_store(tmp_path) -> None:
    with pytest.raises(CurateError, match="no store of embeddings here"):
        store.prune(str(tmp_path), remove=True)
