"""What is said of long work, and how often."""

from __future__ import annotations

import io
import logging
import sys
import threading
import time

import pytest

from curate import progress
from curate.progress import Progress


def test_one_line_every_so_often(monkeypatch, caplog) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    caplog.set_level(logging.INFO)
    with Progress("embed", units=10, done_before=4) as work:
        for _ in range(6):
            clock[0] += 20
            work.add(images=100, units=1)
    assert [record.message for record in caplog.records] == [
        "embed: 6 of 10 units, 200 images, 5 images/s, 80 s left",
        "embed: 8 of 10 units, 400 images, 5 images/s, 40 s left",
        "embed: 10 of 10 units, 600 images, 5 images/s, 0 s left",
        "embed: 10 of 10 units, 600 images, 5 images/s, 0 s left",
    ]


def test_lines_come_by_the_clock(monkeypatch, caplog) -> None:
    """Though no unit is completed: what is awaited is said. The thread ends with the `with`."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)
    monkeypatch.setattr(progress, "TICK_S", 0.01)
    caplog.set_level(logging.INFO)
    before = set(threading.enumerate())
    until = time.monotonic() + 20
    with pytest.raises(KeyError), Progress("embed", units=36, done_before=2) as work:
        while len(caplog.records) < 2 and time.monotonic() < until:
            time.sleep(0.005)
        work.add(images=500)
        while "500 images" not in caplog.text and time.monotonic() < until:
            time.sleep(0.005)
        raise KeyError
    assert set(threading.enumerate()) == before
    first, second, *_, last = [record.message for record in caplog.records]
    waiting = "embed: 2 of 36 units, no image yet: waiting for the first workers to start"
    assert first == second == waiting
    assert last.startswith("embed: 2 of 36 units, 500 images, ")
    assert last.endswith(" images/s, no unit yet")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("embed", units=4) as work:
        for _ in range(4):
            work.add(images=50, units=1)
    shown = terminal.getvalue()
    assert "embed:" in shown and "images/s" in shown and "0/4" in shown
