"""A worker, a node, the memory, the disk: each lost in each stage, and nothing else with it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from curate.settings import load as config
from tests import datasets
from tests.faults.alone import said_by
from tests.faults.stages import MOST, STRUCK
from tests.faults.work import Made, work

pytestmark = pytest.mark.slow


@dataclass
class Runs:
    """Of one document, an output each."""

    folder: Path
    document: dict[str, Any]

    def struck(self, fault: str) -> dict[str, dict[str, Any]]:
        """Of each stage, what the run says that met the fault there."""
        path = self.folder / f"{fault}.yaml"
        path.write_text(yaml.safe_dump(self.document))
        said = said_by("tests.faults.stages", str(path), fault)
        lines = [line for line in said.splitlines() if line.startswith("{")]  # and Ray's
        return {one["stage"]: one for one in map(json.loads, lines)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("stages")
    document = datasets.write_merged(folder)
    document["embed"] = {"unit_images": 8, "workers": 1}
    return Runs(folder, document)


@pytest.fixture(scope="module")
def undisturbed(runs: Runs, ray_session: None) -> Made:
    output = str(runs.folder / "undisturbed")
    work(config.parse({**runs.document, "output": output}, "test"))
    return Made.under(output)


@pytest.mark.parametrize("fault", ["worker", "node", "memory"])
def test_what_is_lost_is_made_up_for(runs: Runs, undisturbed: Made, fault: str) -> None:
    if fault == "memory" and psutil.virtual_memory().available < MOST:
        pytest.skip("there is too little memory to exhaust it")
    said = runs.struck(fault)
    assert tuple(said) == STRUCK[fault]
    for stage, one in said.items():
        assert one["struck"], f"{stage}: nobody was struck"
        assert one["error"] is None, f"{stage}: {one['error']}"
        assert Made.under(runs.folder / f"{fault}-{stage}") == undisturbed, stage


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, with room for a run for each stage."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_is_named_and_waited_for_by_nobody(
    runs: Runs, undisturbed: Made, small_disk: Path
) -> None:
    """Full from the moment that a stage begins: the run ends by naming the file that it could not
    write. With room, the same command ends with the same files."""
    full = Runs(small_disk, {**runs.document, "output": str(small_disk / "run")})
    said = full.struck("disk")
    assert tuple(said) == STRUCK["disk"]
    for stage, one in said.items():
        assert one["struck"], f"{stage}: nobody was struck"
        error = one["error"] or ""
        assert f"{small_disk}/disk-" in error, f"{stage}: {error}"
        assert "No space left" in error and "\n" not in error, f"{stage}: {error}"
        assert Made.under(small_disk / f"disk-{stage}") == undisturbed, stage
