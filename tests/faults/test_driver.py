"""The driver, killed whenever it may be, and started again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from tests import datasets
from tests.faults.alone import ROOT
from tests.faults.work import Made

pytestmark = pytest.mark.slow

MOMENTS = 10


def driver(folder: Path, document: dict[str, Any], output: Path) -> subprocess.Popen[str]:
    """On the Ray of this process, where what a killed one left behind goes on for a while."""
    config = folder / f"{output.name}.yaml"
    config.write_text(yaml.safe_dump({**document, "output": str(output)}))
    with open(folder / f"{output.name}.log", "a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.work", str(config)],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


def test_at_any_moment(tmp_path: Path, ray_session: None) -> None:
    """At random over what a run takes. What is finished all the same begins anew."""
    document = datasets.write_merged(tmp_path)
    document["embed"] = {"unit_images": 4}
    start = time.monotonic()
    assert driver(tmp_path, document, tmp_path / "undisturbed").wait(300) == 0
    whole_s = time.monotonic() - start
    undisturbed = Made.under(tmp_path / "undisturbed")
    draw = random.Random(0)
    killed: Counter[str] = Counter()
    finished = 0
    while killed.total() < MOMENTS or (tmp_path / f"run-{finished}").exists():
        output = tmp_path / f"run-{finished}"
        process = driver(tmp_path, document, output)
        try:
            status = process.wait(draw.uniform(0, whole_s) if killed.total() < MOMENTS else 300)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed[_reached(output)] += 1
            continue
        assert status == 0, (tmp_path / f"run-{finished}.log").read_text()[-3000:]
        assert Made.under(output) == undisturbed
        finished += 1
    print(f"a run takes {whole_s:.1f} s; killed with {dict(killed)} made; {finished} finished")
    assert killed.total() == MOMENTS and finished >= 1


def _reached(output: Path) -> str:
    """What the run had made last."""
    for name in ("training/*", "coreset.parquet", "embeddings/*", "plan/*"):
        if any(output.glob(name)):
            return name.partition("/")[0]
    return "nothing"
