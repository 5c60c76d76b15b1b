"""Several nodes, one of which is lost while it embeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from curate.pipeline import run
from curate.settings import load as config
from tests import datasets

ROOT = Path(__file__).resolve().parents[1]


def by_itself(module: str, *arguments: str) -> str:
    """What a module says in a process of its own: this one has a Ray already."""
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_node_removed_mid_embedding_gives_the_same_manifest(tmp_path, ray_session) -> None:
    document = datasets.write_merged(tmp_path)
    document["embed"] = {"unit_images": 2, "workers": 2}
    alone = {**document, "output": str(tmp_path / "alone")}
    run(config.parse(alone, "test"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    said = by_itself("tests.lose_a_node", str(tmp_path / "run.yaml"))
    assert "lost a node with units left" in said
    manifests = [tmp_path / name / "coreset.parquet" for name in ("alone", "run")]
    assert manifests[0].read_bytes() == manifests[1].read_bytes()


@pytest.mark.slow
def test_the_pool_follows_the_clusters_gpus() -> None:
    """It waits for the first, without failing, uses those that come, and outlives their loss."""
    assert "followed 240 rows" in by_itself("tests.grow_a_cluster")
