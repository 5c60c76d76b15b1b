"""Checkpoints: whole or absent, whatever happens to the disk or to the files."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from curate import storage
from curate.errors import CurateError
from curate.pretraining import checkpoints

ROOT = Path(__file__).resolve().parents[2]


def state_of(step: int, rows: int = 20) -> dict[str, Any]:
    """What a training saves, of no two steps the same."""
    rng = torch.Generator().manual_seed(step)
    return {
        "step": step,
        "method": {"weight": torch.randn(rows, 50, generator=rng), "count": torch.tensor(step)},
        "optimizer": {"state": {0: {"m": torch.randn(9, generator=rng)}}, "param_groups": [0.1]},
        "records": [{"step": step, "loss": 0.5, "knn": None}],
        "sums": torch.randn(4, dtype=torch.float64, generator=rng),
    }


def equal(a: Any, b: Any) -> bool:
    """Bit for bit, of any nesting."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "checkpoints")
    return f"memory://{tmp_path.name}-{os.getpid()}"


def steps_in(folder: str) -> list[int]:
    return sorted(int(name[5:13]) for name in storage.names_in(folder))


def test_nothing_saved_yet(folder: str) -> None:
    assert checkpoints.newest(folder) is None


def test_newest_few_are_kept(folder: str) -> None:
    for step in (9, 10, 100, 1000, 20_000):
        checkpoints.save(folder, step, state_of(step), keep=2)
        assert equal(checkpoints.newest(folder), state_of(step))
    assert steps_in(folder) == [1000, 20_000]
    checkpoints.save(folder, 20_001, state_of(20_001), keep=1)
    assert steps_in(folder) == [20_001]


def test_older_ones_go_after_the_new_one_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no moment is there less than there was."""
    checkpoints.save(str(tmp_path), 1, state_of(1), keep=1)
    seen: list[list[int]] = []
    remove = storage.remove_tree

    def watched(uri: str) -> None:
        seen.append(steps_in(str(tmp_path)))
        remove(uri)

    monkeypatch.setattr(storage, "remove_tree", watched)
    checkpoints.save(str(tmp_path), 2, state_of(2), keep=1)
    assert seen == [[1, 2]] and steps_in(str(tmp_path)) == [2]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "step-final.txt"):
        (tmp_path / name).write_text("mine")
    for step in (1, 2, 3):
        checkpoints.save(str(tmp_path), step, state_of(step), keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("notes.txt", "step-final.txt", "step-00000003.pt")
    }


# Damage


@pytest.mark.parametrize("damage", ["cut", "empty", "no archive", "bit", "other archive"])
def test_a_damaged_newest_one_falls_back(
    folder: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        checkpoints.save(folder, step, state_of(step), keep=2)
    uri = storage.join(folder, "step-00000002.pt")
    data = storage.read_bytes(uri)
    middle = data.index(state_of(2)["method"]["weight"].numpy().tobytes()) + 77
    spoilt = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "no archive": bytes(1000),
        # In a weight: torch itself takes it without a word
        "bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "other archive": b"PK\x05\x06" + bytes(18),
    }[damage]
    storage.write_bytes(uri, spoilt)
    with caplog.at_level(logging.WARNING):
        assert equal(checkpoints.newest(folder), state_of(1))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{uri}: damaged (")
    assert "\n" not in record.getMessage()


def test_all_damaged(folder: str) -> None:
    for step in (1, 2):
        checkpoints.save(folder, step, state_of(step), keep=2)
        storage.write_bytes(storage.join(folder, f"step-{step:08d}.pt"), b"PK")
    assert checkpoints.newest(folder) is None


def test_going_on_from_before_a_damaged_one(folder: str) -> None:
    """What is saved then is older than the damaged file, and must not be taken for the oldest."""
    for step in (10, 20):
        checkpoints.save(folder, step, state_of(step), keep=2)
    storage.write_bytes(storage.join(folder, "step-00000020.pt"), b"damaged")
    checkpoints.save(folder, 15, state_of(15), keep=1)
    assert equal(checkpoints.newest(folder), state_of(15))
    assert steps_in(folder) == [15]


def test_flipped_bits_are_noticed_or_harmless(tmp_path: Path) -> None:
    """Whatever unpickling makes of them."""
    checkpoints.save(str(tmp_path), 1, state_of(1), keep=1)
    path = tmp_path / "step-00000001.pt"
    data = path.read_bytes()
    rng = random.Random(0)
    noticed = 0
    for _ in range(300):
        spoilt = bytearray(data)
        for _ in range(rng.choice([1, 1, 4])):
            spoilt[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(spoilt)
        found = checkpoints.newest(str(tmp_path))
        noticed += found is None
        assert found is None or equal(found, state_of(1))
    assert noticed > 200


# A full disk

ON_A_SMALL_DISK = """
import os, subprocess, sys
import torch
from curate.pretraining import checkpoints
from curate.errors import CurateError
from tests.pretraining.test_checkpoints import equal, state_of

folder = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
checkpoints.save(folder, 1, state_of(1, rows=10_000), keep=1)  # 2 MB
before = os.listdir(folder)
try:
    checkpoints.save(folder, 2, state_of(2, rows=12_000), keep=1)
except CurateError as error:
    print(error)
else:
    raise SystemExit("it fitted")
assert os.listdir(folder) == before == ["step-00000001.pt"], os.listdir(folder)
assert equal(checkpoints.newest(folder), state_of(1, rows=10_000))
checkpoints.save(folder, 3, state_of(3, rows=5_000), keep=1)  # what fits goes on
assert os.listdir(folder) == ["step-00000003.pt"]
assert equal(checkpoints.newest(folder), state_of(3, rows=5_000))
"""


def test_full_disk(tmp_path: Path) -> None:
    """A file system of 4 MB of its own: what was there stays, and nothing half-written."""
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        trial = subprocess.run(
            [*namespace, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("no unshare")
    if trial.returncode:
        pytest.skip("this kernel lets users mount nothing")
    done = subprocess.run(
        [*namespace, sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "step-00000002.pt: cannot be written" in line and "No space left" in line
    assert line.endswith("choose another output or free the place")


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CurateError, match="cannot be written"):
        checkpoints.save(str(tmp_path / "file"), 1, state_of(1), keep=1)


# In the background


def test_a_saver_saves_the_state_that_was(folder: str) -> None:
    """Whatever training does to it meanwhile."""
    saver, state = checkpoints.Saver(folder, 2), state_of(1)
    expected = state_of(1)
    saver.save(1, state)
    state["method"]["weight"].zero_()
    state["records"].append("more")
    saver.wait()
    assert equal(checkpoints.newest(folder), expected)
    for step in (2, 3):
        saver.save(step, state_of(step))
    saver.wait()
    assert steps_in(folder) == [2, 3]


def test_a_saver_tells_of_what_failed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    saver = checkpoints.Saver(str(tmp_path / "file" / "checkpoints"), 2)
    saver.save(1, state_of(1))
    with pytest.raises((CurateError, OSError)):
        saver.save(2, state_of(2))
    saver.wait()  # told of once
