"""Nodes with GPUs, that come late and go."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.alone import said_by

KNOWN = ("workers", "apart")  # lines of what it says


@pytest.mark.slow
def test_the_pool_follows_the_clusters_gpus() -> None:
    """It waits for the first, without failing, uses those that come, and outlives their loss."""
    assert "followed 240 rows" in said_by("tests.faults.grow_a_cluster")


@pytest.mark.slow
def test_an_elastic_training_goes_on_with_whom_there_is(tmp_path: Path) -> None:
    """MAE, which has no BatchNorm: its losses are those of an undisturbed worker."""
    said = said_by("tests.faults.shrink_a_training", str(tmp_path))
    lines = dict(line.split(" ", 1) for line in said.splitlines() if line.split(" ")[0] in KNOWN)
    workers = [int(count) for count in lines["workers"].split()]
    assert workers[0] == workers[-1] == 3 and min(workers) == 2
    assert float(lines["apart"]) < 1e-3
