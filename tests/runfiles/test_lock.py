"""One driver an output, tried with several real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate import storage
from curate.errors import CurateError
from curate.runfiles import lock
from curate.runfiles.lock import Owner, held

# Holds the lock of argv[1] until a line comes, says how it went; times are shortened as here
DRIVER = """
import sys, time
from curate.errors import CurateError
from curate.runfiles import lock
lock.BEAT_S, lock.STALE_S, lock.SETTLE_S = 0.1, 1.0, 0.5
lock._machine = lambda: sys.argv[2] or "here"
try:
    with lock.held(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.readline()
        time.sleep(0.1)  # where an interrupt comes to the main thread
    print("done", flush=True)
except CurateError as error:
    print("refused", error, flush=True)
"""


class Driver:
    def __init__(self, folder: str, machine: str = "") -> None:
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, folder, machine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ends(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.says()

    def end_with(self, number: int) -> None:
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(10)


@pytest.fixture
def drivers() -> Iterator[list[Driver]]:
    started: list[Driver] = []
    yield started
    for driver in started:
        driver.process.kill()
        driver.process.wait(10)
        for pipe in (driver.process.stdin, driver.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    monkeypatch.setattr(lock, "STALE_S", 1.0)
    monkeypatch.setattr(lock, "SETTLE_S", 0.1)


def lock_of(folder: str) -> str:
    return storage.join(folder, "run.lock")


def start(drivers: list[Driver], folder: str, machine: str = "") -> Driver:
    drivers.append(Driver(folder, machine))
    return drivers[-1]


def test_a_second_is_refused_and_told_who(tmp_path: Path, drivers: list[Driver]) -> None:
    folder = str(tmp_path / "out")
    first = start(drivers, folder)
    assert first.says() == "held"
    with pytest.raises(CurateError) as caught, held(folder):
        pass
    message = str(caught.value)
    assert message.startswith(f"{folder}: in use by curate run of ") and "\n" not in message
    assert f"pid {first.process.pid}, since 20" in message and "last heartbeat 20" in message
    assert message.endswith("; wait for it, stop it, or set another output")
    assert first.ends() == "done"
    assert os.listdir(folder) == []
    with held(folder, "compare"):
        assert json.loads(Path(lock_of(folder)).read_bytes())["what"] == "compare"
    assert os.listdir(folder) == []


def test_killed_here_is_stale_at_once(tmp_path: Path, drivers: list[Driver]) -> None:
    first, second = start(drivers, str(tmp_path)), None
    assert first.says() == "held"
    first.end_with(signal.SIGKILL)
    assert storage.exists(lock_of(str(tmp_path)))
    second = start(drivers, str(tmp_path))
    assert second.says() == "held" and second.ends() == "done"


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0, -3600.0])
def test_a_dead_one_elsewhere_is_watched(tmp_path: Path, ahead_s: float) -> None:
    """Its clock may be off: a beat that seems recent refuses, and so does one that changes."""
    folder, now = str(tmp_path), time.time()
    dead = Owner("id", "run", "far", "far", 1, "1", "u", "c", now, 7, now + ahead_s)
    storage.write_bytes(lock_of(folder), dead.to_bytes())
    if not ahead_s:
        with pytest.raises(CurateError, match="in use by curate run of u on far"), held(folder):
            pass
        time.sleep(lock.STALE_S)
    with held(folder):
        assert Owner.of(storage.read_bytes(lock_of(folder))) != dead
    assert not storage.exists(lock_of(folder))


def test_alive_elsewhere_with_another_clock(tmp_path: Path, drivers: list[Driver]) -> None:
    folder = str(tmp_path)
    now = time.time()
    alive = Owner("id", "run", "far", "far", 1, "1", "u", "c", now, 7, now - 3600)
    storage.write_bytes(lock_of(folder), alive.to_bytes())
    second = threading.Timer(
        0.3, storage.write_bytes, [lock_of(folder), alive.to_bytes().replace(b"7", b"8")]
    )
    second.start()
    with pytest.raises(CurateError, match="far"), held(folder):
        pass
    second.join()


def test_no_lock_of_ours_is_watched_too(tmp_path: Path) -> None:
    storage.write_bytes(lock_of(str(tmp_path)), b"something else")
    with held(str(tmp_path)):
        pass


def test_whose_lock_is_taken_stops(tmp_path: Path, drivers: list[Driver]) -> None:
    folder = str(tmp_path)
    first = start(drivers, folder, "elsewhere")
    assert first.says() == "held"
    first.end_with(signal.SIGSTOP)
    time.sleep(lock.STALE_S)
    with held(folder):
        taken = storage.read_bytes(lock_of(folder))
        first.end_with(signal.SIGCONT)
        said = first.says()
        assert said.startswith(f"refused {lock_of(folder)}: taken by curate run of ")
        assert said.endswith("; wait until it is done, then run the same command again")
        found = Owner.of(storage.read_bytes(lock_of(folder)))
        mine = Owner.of(taken)
        assert found and mine and found.id == mine.id, "and leaves the other's lock alone"


def test_of_many_that_take_over_one_does(tmp_path: Path, drivers: list[Driver]) -> None:
    folder = str(tmp_path)
    dead = Owner("id", "run", "h", "here", 1 << 30, "1", "u", "c", 0.0)
    storage.write_bytes(lock_of(folder), dead.to_bytes())
    for _ in range(4):
        start(drivers, folder)
    answers = [driver.says().split()[0] for driver in drivers]
    assert sorted(answers) == ["held", "refused", "refused", "refused"]
    assert drivers[answers.index("held")].ends() == "done"


def test_again_in_one_process(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with held(folder):
        first = Owner.of(storage.read_bytes(lock_of(folder)))
        with held(folder + "/", "pretrain"):
            pass
        inner = Owner.of(storage.read_bytes(lock_of(folder)))
        assert first and inner and first.id == inner.id and inner.what == "run"
    assert not storage.exists(lock_of(folder))


def test_the_heart_beats_and_minds_no_tidying(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with held(folder):
        for remove in (False, True, False):
            if remove:
                os.unlink(lock_of(folder))
            before = None if remove else storage.read_bytes(lock_of(folder))
            while not storage.exists(lock_of(folder)) or (
                storage.read_bytes(lock_of(folder)) == before
            ):
                time.sleep(0.01)
    assert not storage.exists(lock_of(folder))


def test_released_after_a_failure(tmp_path: Path) -> None:
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), held(str(tmp_path)):
            raise error
        assert not storage.exists(lock_of(str(tmp_path)))


def test_no_secrets_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["curate", "run", "output=https://u:secret@h/x?sig=secret"])
    with held(str(tmp_path)):
        assert b"secret" not in storage.read_bytes(lock_of(str(tmp_path)))


@pytest.mark.slow
def test_on_s3(bucket: str, drivers: list[Driver]) -> None:
    folder = f"{bucket}/{uuid.uuid4().hex}"
    first = start(drivers, folder, "elsewhere")
    assert first.says() == "held"
    second = start(drivers, folder)
    assert second.says().startswith(f"refused {folder}: in use by curate run of ")
    first.end_with(signal.SIGKILL)
    time.sleep(2 * lock.STALE_S)
    start(drivers, folder)
    start(drivers, folder)
    answers = [driver.says().split()[0] for driver in drivers[2:]]
    assert sorted(answers) == ["held", "refused"]
    assert drivers[2 + answers.index("held")].ends() == "done"
    assert not storage.exists(lock_of(folder))
