"""`curate compare` on real files and a real Ray: whole, interrupted, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError

from curate import storage
from curate.comparison import arms as arms_of
from curate.comparison import selections, stage
from curate.errors import CurateError
from curate.runfiles.status import Status
from curate.settings import ArmSettings, ComparisonSettings
from curate.settings import load as config
from tests.evaluate.test_stage import write_labelled

ROOT = Path(__file__).resolve().parents[2]
OPEN_CLASSES = ("blue", "green", "red", "stone", "wood")


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("compared")
    write_labelled(root / "train", 8, 0)
    write_labelled(root / "test", 6, 5000)
    write_labelled(root / "open", 8, 9000, OPEN_CLASSES)
    labelled = {
        name: {"kind": "image_folder", "path": str(root / name)} for name in ("train", "test")
    }
    return {
        "open": [{"name": "open", "kind": "image_folder", "path": str(root / "open")}],
        "encoder": {"backbone": "resnet18", "image_px": 32, "crop_fraction": 1.0},
        "coreset": {"clusters": 4, "tau": 0.99},
        "pretrain": {
            **{"method": "simclr", "preset": "simcore", "batch_size": 8},
            **{"optimizer": {"learning_rate": 0.01}, "precision": "float32"},
            "checkpoints": {"every": 2},
        },
        "targets": {
            "tints": {
                "target": labelled["train"],
                "evaluate": {
                    **labelled,
                    **{"k": [3], "seeds": 1, "oracle": ["blue", "green", "red"]},
                },
            }
        },
        "arms": ["x", {"kind": "random", "seeds": 2}, "simcore-k1", "untrained"],
        "steps": 5,
        "p": 10,
        "seeds": 1,
        "parallel": 2,
        "output": str(root / "whole"),
    }


def written(document: dict[str, Any], path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**document, **changes}))
    return path


def settings_of(document: dict[str, Any], tmp_path: Path, **changes: Any) -> ComparisonSettings:
    return config.load_comparison(str(written(document, tmp_path / "config.yaml", **changes)))


def figures(output: str | Path) -> list[dict[str, Any]]:
    """comparison.json's cells, which are to be the same whatever happened on the way."""
    cells: list[dict[str, Any]] = json.loads((Path(output) / "comparison.json").read_text())[
        "cells"
    ]
    return cells


def test_two_arms_and_nothing_twice(document, tmp_path: Path, ray_session) -> None:
    """What the long test below does with more arms, more seeds and an interruption."""
    arms = ["x", {"kind": "random", "seeds": 1}]
    settings = settings_of(document, tmp_path, arms=arms, steps=2, output=str(tmp_path / "two"))
    whole = stage.compare(settings)
    assert {(c.arm, c.images, c.seeds) for c in whole.cells} == {
        *(("x", 24, 1), ("random", 34, 1)),
    }
    assert [(row.arm, row.selected) for row in whole.selections] == [("random", 10)]
    assert figures(settings.output) == json.loads(
        json.dumps([asdict(cell) for cell in whole.cells])
    )
    status = Status.read(settings.output)
    assert status.state == "finished"
    assert [*status.seconds] == ["tints: run", "tints: select", "train and measure"]
    assert status.progress is not None
    assert (status.progress.done, status.progress.total, status.progress.unit) == (2, 2, "training")
    results = sorted((tmp_path / "two").glob("tints/arms/*/seed-0/result.json"))
    stamps = [path.stat().st_mtime_ns for path in results]
    assert stage.compare(settings).cells == whole.cells
    assert [path.stat().st_mtime_ns for path in results] == stamps and len(stamps) == 2


def test_without_trainings_selections_are_compared(document, tmp_path: Path, ray_session) -> None:
    arms = ["x", "random", "simcore", {"kind": "ratio", "p": 7}, "oracle"]
    changes = {"arms": arms, "seeds": 0, "output": str(tmp_path / "none")}
    found = stage.compare(settings_of(document, tmp_path, **changes))
    assert found.cells == [] and not list((tmp_path / "none").rglob("result.json"))
    taken = {row.arm: row for row in found.selections}
    assert {arm: row.selected for arm, row in taken.items()} == {
        **{"random": 10, "simcore": 10, "ratio": 7, "oracle": 24}
    }
    assert taken["oracle"].oracle_share == 1
    for row in found.selections:
        assert row.relevance is not None and row.clusters is not None and row.nearest is not None
    text = (tmp_path / "none" / "comparison.md").read_text()
    assert "| tints | ratio | 7 | " in text and "Mean ± standard deviation" not in text


def test_the_open_set_is_embedded_once_for_all_targets(
    document, tmp_path: Path, ray_session
) -> None:
    tints = document["targets"]["tints"]
    targets = {"shades": {**tints, "target": tints["evaluate"]["test"]}, "tints": tints}
    changes = {"arms": ["untrained"], "output": str(tmp_path / "shared")}
    settings = settings_of(document, tmp_path, targets=targets, **changes)
    assert stage.compare(settings).targets == list(targets)
    embedded = {
        name: json.loads((tmp_path / "shared" / name / "summary.json").read_text())["embedded_now"]
        for name in targets
    }
    assert embedded == {"shades": 18 + 40, "tints": 24}


@pytest.mark.slow
def test_interrupted_and_gone_on_with_it_gives_the_same_table(
    document, tmp_path: Path, ray_session, monkeypatch
) -> None:
    whole = stage.compare(settings_of(document, tmp_path))
    output = Path(document["output"])

    assert {(c.arm, c.images) for c in whole.cells} == {
        *(("x", 24), ("random", 34), ("simcore-k1", 34), ("untrained", 0)),
    }
    assert {c.arm: c.seeds for c in whole.cells}["random"] == 2
    assert {m.partition(",")[0] for m in whole.metrics} == {"linear probe", "kNN"}
    samples = [
        {row["key"] for row in pq.read_table(path).to_pylist()}
        for path in sorted(output.glob("tints/selections/random-*.parquet"))
    ]
    assert [len(sample) for sample in samples] == [10, 10] and samples[0] != samples[1]
    assert [(row.arm, row.selected) for row in whole.selections] == [
        *(("random", 10), ("random", 10), ("simcore-k1", 10)),
    ]
    assert all(row.base_share == 24 / 40 for row in whole.selections)
    assert "| x |" in (output / "comparison.md").read_text()

    cut = tmp_path / "cut"
    path = written(document, tmp_path / "cut.yaml", output=str(cut))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "curate.cli", "compare", str(path)], env=environment
    )
    deadline = time.monotonic() + 240
    while not list(cut.glob("tints/arms/*/seed-0/result.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(figures(cut)) < len(whole.cells)

    first = [p.stat().st_mtime_ns for p in sorted(cut.glob("tints/arms/*/seed-*/result.json"))]
    stage.compare(config.load_comparison(str(path)))
    assert figures(cut) == figures(output)
    assert len(first) < 5
    # A third call trains nothing
    results = sorted(cut.glob("tints/arms/*/seed-*/result.json"))
    before = [path.stat().st_mtime_ns for path in results]
    # and selects nothing but what is not there
    lost, *manifests = sorted(cut.glob("tints/selections/*.parquet"))
    rows = pq.read_table(lost)
    lost.unlink()
    selected = [path.stat().st_mtime_ns for path in manifests]
    third = stage.compare(config.load_comparison(str(path)))
    assert [path.stat().st_mtime_ns for path in results] == before and len(before) == 5
    assert [path.stat().st_mtime_ns for path in manifests] == selected and len(selected) == 2
    assert pq.read_table(lost) == rows
    assert third.selections == whole.selections

    # Another k is measured on the encoders that are there: no training is repeated
    encoders = sorted(cut.glob("tints/arms/*/seed-*/encoder.safetensors"))
    stamps = [p.stat().st_mtime_ns for p in encoders if "untrained" not in str(p)]
    target = document["targets"]["tints"]
    other = {"tints": {**target, "evaluate": {**target["evaluate"], "k": [5]}}}
    found = stage.compare(settings_of(document, tmp_path, output=str(cut), targets=other))
    assert "kNN, k = 5, top1" in found.metrics
    assert [p.stat().st_mtime_ns for p in encoders if "untrained" not in str(p)] == stamps

    with pytest.raises(CurateError, match=r"training.steps was 5, is 6"):
        stage.compare(settings_of(document, tmp_path, output=str(cut), steps=6))
    # Another p is another selection, and those trainings are not its own
    with pytest.raises(CurateError, match="start all over with"):
        stage.compare(settings_of(document, tmp_path, output=str(cut), p=12))
    assert {pq.read_metadata(path).num_rows for path in [lost, *manifests]} == {12}

    # Stopped between a manifest and what is kept beside it: the next call selects that one anew
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(selections, "selection_quality", stopped)
        stage.compare(settings_of(document, tmp_path, output=str(cut)))
    assert {pq.read_metadata(path).num_rows for path in [lost, *manifests]} == {10, 12}
    with pytest.raises(CurateError, match="start all over with"):
        stage.compare(settings_of(document, tmp_path, output=str(cut), p=12))
    assert {pq.read_metadata(path).num_rows for path in [lost, *manifests]} == {12}


def test_arms_select_what_they_say(document, tmp_path: Path) -> None:
    arms = [
        *("simcore", "simcore-k1", "simcore-stop", "random", "oracle", "os"),
        {"kind": "simcore", "name": "simcore-1%", "p": 0.01},
        {"kind": "simcore-stop", "name": "late", "tau": 0.5},
        "resample",
        {"kind": "gate", "ratio": "kernel", "gate": 3, "clusters": 2},
    ]
    settings = settings_of(document, tmp_path, arms=arms, p=0.05)
    chosen = {
        arm.title: arms_of.coreset_of(settings, arm, seed=3, labels=["blue"])
        for arm in settings.arms
    }
    assert chosen["os"] is None
    assert (chosen["simcore"].clusters, chosen["simcore"].tau) == (4, None)
    assert chosen["simcore"].budget == 0.05 and chosen["simcore-1%"].budget == 0.01
    assert chosen["simcore-k1"].clusters == 1
    stop = chosen["simcore-stop"]
    assert (stop.tau, stop.budget, stop.budget_times_target) == (0.99, None, 50)
    assert chosen["late"].tau == 0.5
    gate, resample = chosen["gate"], chosen["resample"]
    assert (gate.method, gate.ratio, gate.gate, gate.clusters) == ("gate", "kernel", 3, 2)
    assert (gate.tau, gate.budget) == (None, 0.05)
    assert (resample.method, resample.ratio, resample.budget) == ("resample", "linear", 0.05)
    assert (chosen["random"].method, chosen["random"].seed) == ("random", 3)
    assert (chosen["oracle"].labels, chosen["oracle"].budget) == (["blue"], None)


def test_what_no_arm_may_select(document, tmp_path: Path) -> None:
    """Neither a random one nor the oracle's: else they would be compared on other open sets."""
    bound = {"drop": ["open/a.png"], "where": "width > 3", "dedup": "exact", "keep": ["license"]}
    coreset = {**document["coreset"], **bound}
    arms = ["random", "oracle", "simcore", "simcore-stop", "ratio", "gate", "resample"]
    settings = settings_of(document, tmp_path, arms=arms, p=0.05, coreset=coreset)
    for arm in settings.arms:
        chosen = arms_of.coreset_of(settings, arm, seed=0, labels=["blue"])
        assert chosen is not None
        assert {name: getattr(chosen, name) for name in bound} == bound, arm.title


def test_arms_train_alike(document, tmp_path: Path) -> None:
    settings = settings_of(document, tmp_path)
    x = ArmSettings(kind="x")
    one = arms_of.training_of(settings, x, ["target"], seed=0)
    other = arms_of.training_of(settings, ArmSettings(kind="os"), ["open"], seed=2)
    assert (one.steps, other.steps) == (5, 5) and one.epochs is None
    assert (one.seed, other.seed) == (0, 2) and one.resources.workers == 1
    longer = settings_of(document, tmp_path, steps=1000, pretrain={"method": "dino"})
    # DINO warms up for 10 of its 100 epochs
    assert arms_of.training_of(longer, x, ["target"], seed=0).optimizer.warmup_steps == 100


def test_arms_with_a_share_and_a_beginning_of_their_own(document, tmp_path: Path) -> None:
    settings = settings_of(document, tmp_path, pretrain={"shares": None, "init": "timm"})
    both = ["target", "selection.parquet"]
    arm = ArmSettings(kind="simcore", share=0.3, init={"weights": "runs/a", "trained_blocks": 2})
    chosen = arms_of.training_of(settings, arm, both, seed=0)
    assert chosen.shares == [0.3, 0.7] and chosen.init is not None
    assert (chosen.init.weights, chosen.init.trained_blocks) == ("runs/a", 2)
    usual = arms_of.training_of(settings, ArmSettings(kind="simcore"), both, seed=0)
    assert usual.shares is None and usual.init is not None and usual.init.weights == "timm"
    with pytest.raises(ValidationError, match="arm x has no two"):
        ArmSettings(kind="x", share=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ["x", "x"]}, "arms: two are named x; give each its own name"),
        ({"arms": ["simcor"]}, r"arms.0.kind=simcor: must be 'x', 'os'"),
        ({"arms": []}, "arms: needs at least 1, has 0"),
        ({"targets": {}}, "targets: needs at least 1, has 0"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"pretrain": {"epochs": 3}}, "pretrain.epochs: every arm trains for `steps` steps"),
        ({"pretrain": {"data": ["open"]}}, "pretrain.data: each arm has its own"),
        (
            {"pretrain": {"optimizer": {"warmup_epochs": 1}}},
            "pretrain.optimizer.warmup_epochs: epochs of the arms differ in length; "
            "set pretrain.optimizer.warmup_steps",
        ),
        (
            {"pretrain": {"warmup_steps": 1}},
            "pretrain.warmup_steps: moved; set pretrain.optimizer.warmup_steps",
        ),
        ({"pretrian": {}}, "pretrian: unknown key; did you mean pretrain?"),
    ],
)
def test_what_is_no_comparison(document, tmp_path: Path, changes, message: str) -> None:
    with pytest.raises(CurateError, match=message):
        settings_of(document, tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"oracle": None}, "targets.tints.evaluate.oracle: missing; arm oracle needs labels"),
        ({"encoder": "x"}, "targets.tints: evaluate.encoder: each arm has its own"),
        ({"protocols": ["selection"]}, "targets.tints: evaluate.protocols: every arm's selection"),
        ({"oracel": ["blue"]}, "targets.tints.evaluate.oracel: unknown key; did you mean oracle"),
    ],
)
def test_what_no_arm_can_be_measured_by(document, tmp_path: Path, changes, message: str) -> None:
    target = document["targets"]["tints"]
    own = {"tints": {**target, "evaluate": {**target["evaluate"], **changes}}}
    with pytest.raises(CurateError, match=message):
        settings_of(document, tmp_path, arms=["oracle"], targets=own)


def test_a_target_set_to_null_is_left_out(document, tmp_path: Path) -> None:
    tints = document["targets"]["tints"]
    both = {"tints": tints, "other": None}
    assert list(settings_of(document, tmp_path, targets=both).targets) == ["tints"]
    with pytest.raises(CurateError, match="targets: needs at least 1, has 0"):
        settings_of(document, tmp_path, targets={"tints": None})


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(CurateError, match=r"result.json: damaged: .*; remove it and run again"):
        storage.read_json(str(tmp_path / "result.json"))
