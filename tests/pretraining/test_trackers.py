"""Trackers, offline: each writes to files, which say what a training said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from curate.errors import CurateError
from curate.pretraining import trackers
from curate.pretraining.journal import Journal
from curate.runfiles.files import TrainingFiles

ABOUT = {"method": "simclr", "recipe": {"epochs": 4}}


def record_of(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": step, "seconds": 1.0, "loss": 1 / step, "learning_rate": 0.1}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    # Its small package has files alone, and wants to be told that these are meant
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    return tmp_path


def told(files: TrainingFiles, tracker: str, steps: range, earlier: list[dict[str, Any]]) -> None:
    """Records of these steps; the probe's accuracy of the first comes last."""
    journal = Journal(files, earlier, [tracker], ABOUT)
    records = [record_of(step) for step in steps]
    for record in records:
        journal.add(record)
    journal.amend(records[0], {"knn": 0.5})
    journal.close()


def test_mlflow(offline: Path) -> None:
    """One run for a training that was begun twice."""
    files = TrainingFiles(str(offline / "pets" / "pretrain"))
    told(files, "mlflow", range(1, 4), [])
    told(files, "mlflow", range(4, 6), [record_of(step) for step in range(1, 4)])
    client = MlflowClient()
    experiment = client.get_experiment_by_name("curate")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "pets/pretrain"
    assert run.data.params["recipe.epochs"] == "4" and run.data.params["output"] == files.folder
    losses = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "loss")}
    assert losses == {step: pytest.approx(1 / step) for step in range(1, 6)}
    knn = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "knn")}
    assert knn == {1: 0.5, 4: 0.5}


def test_wandb(offline: Path) -> None:
    files = TrainingFiles(str(offline / "pets" / "pretrain"))
    told(files, "wandb", range(1, 4), [])
    (written,) = offline.glob("wandb/offline-run-*/*.wandb")
    assert written.name == f"run-{trackers.identity(files)}.wandb"
    data = written.read_bytes()
    assert all(name in data for name in (b"loss", b"learning_rate", b"knn", b"simclr"))
    assert b"seconds" not in data.partition(b"learning_rate")[2][:200]


def test_one_that_is_not_installed(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(CurateError, match=r"^trackers: wandb: .*pip install 'curate\[wandb\]'$"):
        Journal(TrainingFiles(str(offline / "run")), [], ["wandb"])
