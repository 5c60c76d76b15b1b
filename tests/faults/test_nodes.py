"""Nodes with GPUs, that come late and go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.alone import said_by


@pytest.mark.slow
def test_the_pool_follows_the_clusters_gpus() -> None:
    """It waits for the first, without failing, uses those that come, and outlives their loss."""
    assert "followed 240 rows" in said_by("tests.faults.grow_a_cluster")


@pytest.mark.slow
def test_an_elastic_training_goes_on_with_whom_there_is(tmp_path: Path) -> None:
    """And its losses are those of one worker, undisturbed."""
    group, alone = (recorded(tmp_path, workers) for workers in ("3", "1"))
    workers = [record["workers"] for record in group]
    assert workers[0] == workers[-1] == 3 and min(workers) == 2
    assert [record["step"] for record in group] == [record["step"] for record in alone]
    for mine, undisturbed in zip(group, alone, strict=True):
        assert mine["loss"] == pytest.approx(undisturbed["loss"], rel=1e-4)


def recorded(folder: Path, workers: str) -> list[dict[str, Any]]:
    """Among what else Ray says."""
    said = said_by("tests.faults.shrink_a_training", str(folder), workers).splitlines()
    found: list[dict[str, Any]] = json.loads(next(one for one in said if one.startswith("[{")))
    return found
