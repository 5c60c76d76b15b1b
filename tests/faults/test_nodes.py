"""Nodes with GPUs, that come late and go."""

from __future__ import annotations

import pytest

from tests.faults.alone import said_by


@pytest.mark.slow
def test_the_pool_follows_the_clusters_gpus() -> None:
    """It waits for the first, without failing, uses those that come, and outlives their loss."""
    assert "followed 240 rows" in said_by("tests.faults.grow_a_cluster")
