"""What a training leaves of itself: metrics.jsonl, TensorBoard's events, a bar or lines."""

from __future__ import annotations

import io
import json
import logging
import os
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from curate import progress, storage
from curate.pretraining import journal as journal_module
from curate.pretraining.journal import Journal, TrainingProgress
from curate.runfiles.files import TrainingFiles


def record_of(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step // 10,
        "loss": 5.0 - step / 8,
        "learning_rate": 0.5**step,
        "seconds": 3.5 * step,
        **more,
    }


def lines_of(folder: str) -> list[dict[str, Any]]:
    text = storage.read_bytes(storage.join(folder, "metrics.jsonl")).decode()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def scalars_of(folder: str) -> dict[str, dict[int, float]]:
    """Name → step → value, as TensorBoard itself reads event files: a start at step s purges what
    earlier files have from there on."""
    found: dict[str, dict[int, float]] = {}
    events = storage.join(folder, "tensorboard")
    for name in sorted(storage.names_in(events)):
        for event in _events(storage.read_bytes(storage.join(events, name))):
            if event.HasField("session_log"):
                for steps in found.values():
                    for step in [step for step in steps if step >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def _events(data: bytes) -> list[Any]:
    """Records of length (8 bytes), its checksum (4), the event, and its checksum (4)."""
    events = []
    start = 0
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        events.append(Event.FromString(data[start + 12 : start + 12 + length]))
        start += 16 + length
    assert start == len(data), "whole records alone"
    return events


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    return f"memory://{tmp_path.name}-{os.getpid()}"


# Files


def test_every_record_is_written(folder: str) -> None:
    journal = Journal(TrainingFiles(folder), [])
    records = [record_of(step) for step in range(1, 8)]
    records[4]["knn"] = 0.25
    for record in records:
        journal.add(record)
        assert all(line in records for line in lines_of(folder)), "whole at any moment"
    journal.close()
    assert lines_of(folder) == records
    scalars = scalars_of(folder)
    assert set(scalars) == {"loss", "learning_rate", "knn"}, "time and place are no curves"
    assert scalars["loss"] == {r["step"]: pytest.approx(r["loss"]) for r in records}
    assert scalars["learning_rate"] == {r["step"]: pytest.approx(0.5 ** r["step"]) for r in records}
    assert scalars["knn"] == {5: 0.25}


def test_a_training_that_is_killed_has_written(folder: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(journal_module, "WRITE_EVERY_S", 0.0)
    journal = Journal(TrainingFiles(folder), [])
    for step in range(1, 4):
        journal.add(record_of(step))
        assert lines_of(folder) == [record_of(s) for s in range(1, step + 1)]
        losses = scalars_of(folder).get("loss", {})  # TensorBoard's may be late, and are whole
        assert all(losses[s] == record_of(s)["loss"] for s in losses)


def test_writing_is_no_every_step_affair(folder: str) -> None:
    journal = Journal(TrainingFiles(folder), [])
    for step in range(1, 4):
        journal.add(record_of(step))
    assert lines_of(folder) == [record_of(1)], "the rest waits for its time, or the end"
    journal.close()
    assert len(lines_of(folder)) == 3


def test_going_on_drops_what_came_after_the_checkpoint(folder: str, monkeypatch: Any) -> None:
    """Records up to step 5, a checkpoint at step 3: what followed is done again, another way."""
    monkeypatch.setattr(journal_module, "WRITE_EVERY_S", 0.0)
    first = Journal(TrainingFiles(folder), [])
    for step in range(1, 6):
        first.add(record_of(step))
    first.close()
    names = storage.names_in(storage.join(folder, "tensorboard"))
    earlier = lines_of(folder)[:3]
    second = Journal(TrainingFiles(folder), earlier)
    again = [record_of(step, loss=100.0 + step) for step in (4, 5, 6)]
    for record in again:
        second.add(record)
    second.close()
    assert lines_of(folder) == earlier + again
    assert len(earlier) == 3, "the checkpoint's own list is left as it is"
    assert names <= storage.names_in(storage.join(folder, "tensorboard"))
    losses = {r["step"]: pytest.approx(r["loss"]) for r in earlier + again}
    assert scalars_of(folder)["loss"] == losses


def test_going_on_when_all_is_done(folder: str) -> None:
    earlier = [record_of(step) for step in (1, 2)]
    Journal(TrainingFiles(folder), earlier).close()
    assert lines_of(folder) == earlier


# On the screen


def shown(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "steps": 50,
        "epoch": step // 10,
        "epochs": 5,
        "loss": 1.23456,
        "embedding_std": 0.98,
        "learning_rate": 0.012345,
        "images_per_s": 1234.5,
        "seconds_left": 75.0,
        **more,
    }


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watch(records: list[dict[str, Any] | None]) -> None:
    """A training that leaves these on the board, looked at after each."""
    board = records[:1]
    with TrainingProgress("pretrain", lambda: board[-1]) as training:
        for record in records:
            training.look()
            board.append(record)


def test_lines_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    records = [None, *(shown(step) for step in (12, 13, 14))]
    records.append(shown(50, knn=0.617, seconds_left=0.0))
    with caplog.at_level(logging.INFO, "curate"):
        watch(records)
    assert [record.getMessage() for record in caplog.records] == [
        "pretrain: epoch 1 of 5, step 12 of 50, loss 1.2346, deviation 0.98, rate 0.012, "
        "1,234 images/s, 75 s left",
        "pretrain: epoch 5 of 5, step 50 of 50, loss 1.2346, deviation 0.98, rate 0.012, "
        "1,234 images/s, kNN 61.7%, 0 s left",
    ]


def test_a_line_every_so_often(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, "curate"):
        watch([shown(step) for step in (1, 1, 2, 2, 2, 3, 3)])
    steps = [record.getMessage().split(", ")[1] for record in caplog.records]
    assert steps == ["step 1 of 50", "step 2 of 50", "step 3 of 50"], "what is new"


def test_a_line_by_the_clock_says_what_is_awaited(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is reported, and the lines come: by the thread, which ends with the `with`."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)
    monkeypatch.setattr(progress, "TICK_S", 0.01)
    monkeypatch.setattr(journal_module, "STANDSTILL_S", 0.1)
    before = set(threading.enumerate())
    record: dict[str, Any] | None = None
    with (
        caplog.at_level(logging.INFO, "curate"),
        TrainingProgress("pretrain", lambda: record),
    ):
        lines_after(caplog, 2)
        record = shown(12)
        lines_after(caplog, 2)
        record = shown(50)
        lines_after(caplog, 2)
    assert set(threading.enumerate()) == before
    messages = [entry.getMessage() for entry in caplog.records]
    waiting, twelve, last = (
        [message for message in messages if text in message]
        for text in ("no step yet", "step 12 of 50", "step 50 of 50")
    )
    assert messages == waiting + twelve + last
    assert set(waiting) == {
        "pretrain: no step yet: waiting for room on the cluster, and for the workers to start"
    }
    assert twelve[0].startswith("pretrain: epoch 1 of 5, step 12 of 50, loss")
    assert twelve[1] == "pretrain: step 12 of 50, for 0 s: waiting for the next"
    assert last[0].startswith("pretrain: epoch 5") and last[1].endswith("waiting for the end")


def lines_after(caplog: pytest.LogCaptureFixture, more: int) -> None:
    """Wait for so many more lines; the test's time is up long before that is for ever."""
    wanted, until = len(caplog.records) + more, time.monotonic() + 20
    while len(caplog.records) < wanted:
        assert time.monotonic() < until, "no line comes"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (5000, "83 min"),
        (5400, "1.5 h"),
        (1e6, "277.8 h"),
    ],
)
def test_time_that_is_left(
    seconds: float,
    text: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, "curate"):
        watch([shown(1, seconds_left=seconds)])
    assert caplog.records[0].getMessage().endswith(f", {text} left")


def test_a_bar_on_a_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    record: dict[str, Any] | None = None
    with (
        caplog.at_level(logging.INFO, "curate"),
        TrainingProgress("pretrain", lambda: record) as training,
    ):
        training.look()
        assert terminal.getvalue() == ""
        record = shown(12)
        training.look()
        assert "12/50" in terminal.getvalue() and "loss 1.2346" in terminal.getvalue()
        record = shown(40)
        training.look()
        record = shown(50)
    text = terminal.getvalue()
    assert "pretrain" in text and "40/50" in text and "50/50" in text
    assert text.rpartition("\r")[2].strip() == "", "the bar is taken away at the end"
    assert not caplog.records


def test_an_end_that_never_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that fails before its first step has nothing to show."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    watch([None])
    assert terminal.getvalue() == ""
