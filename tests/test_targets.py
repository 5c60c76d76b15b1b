"""Many targets at once: one store, one scan, and each its own manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from curate.errors import CurateError
from curate.pipeline import run, run_all
from curate.settings import load
from tests import datasets


def write_sets(root: Path) -> dict[str, Any]:
    """Two targets, and an open set of a folder and a list."""
    datasets.write_folder(root / "pets", range(12))
    datasets.write_folder(root / "cars", range(20, 30))
    datasets.write_folder(root / "folder", range(100, 160))
    (root / "list.txt").write_text("".join(f"folder/a/{n:04d}.png\n" for n in range(100, 110, 2)))
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


def rows_of(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / "coreset.parquet").to_pylist()


def test_many_targets_select_what_each_selects_alone(tmp_path, ray_session) -> None:
    document = write_sets(tmp_path)
    cars = {"kind": "image_folder", "path": str(tmp_path / "cars")}
    run(load.parse(document, "test"))
    other = {**document, "target": cars, "output": str(tmp_path / "cars-run")}
    assert run(load.parse(other, "test")).embedded_now == 10

    both = {key: value for key, value in document.items() if key not in ("target", "store")}
    both |= {"targets": {"pets": document["target"], "cars": cars}}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(both | {"output": str(tmp_path / "both")}))
    runs = load.load_runs(str(tmp_path / "both.yaml"))
    assert [one.store for one in runs] == [str(tmp_path / "both" / "embeddings")] * 2
    summaries = dict(zip([Path(one.output).name for one in runs], run_all(runs), strict=True))
    assert sum(one.embedded_now for one in summaries.values()) == 12 + 10 + 60 + 5
    for name in ("pets", "cars"):
        alone, together = tmp_path / f"{name}-run", tmp_path / "both" / name
        assert rows_of(alone) == rows_of(together) and len(rows_of(alone)) == 25
        manifests = [folder / "coreset.parquet" for folder in (alone, together)]
        assert manifests[0].read_bytes() == manifests[1].read_bytes()
        assert pq.read_table(alone / "rounds.parquet") == pq.read_table(together / "rounds.parquet")


def test_one_that_is_empty_is_told_before_another_is_embedded(tmp_path, ray_session) -> None:
    document = write_sets(tmp_path)
    (tmp_path / "nothing").mkdir()
    targets = {"cars": document.pop("target"), "none": {"kind": "image_folder", "path": "nothing"}}
    targets["none"]["path"] = str(tmp_path / "nothing")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document | {"targets": targets}))
    with pytest.raises(CurateError, match=r"source none: no images at .*/nothing; check"):
        run_all(load.load_runs(str(path)))
    assert not list(tmp_path.rglob("*.arrow"))


def test_other_commands_take_one_target(tmp_path) -> None:
    document = write_sets(tmp_path)
    target = document.pop("target")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document | {"targets": {"pets": target}}))
    with pytest.raises(CurateError, match=r"targets: `curate run` alone takes several; set target"):
        load.load(str(path))
    path.write_text(yaml.safe_dump(document | {"targets": {"embeddings": target}}))
    with pytest.raises(CurateError, match=r"targets.embeddings: the store has that name"):
        load.load_runs(str(path))
    path.write_text(yaml.safe_dump(document | {"targets": {}, "target": target}))
    with pytest.raises(CurateError, match=r"target and targets: set one of them"):
        load.load_runs(str(path))
    path.write_text(yaml.safe_dump(document | {"targets": {}}))
    with pytest.raises(CurateError, match=r"targets: needs at least 1, has 0"):
        load.load_runs(str(path))
