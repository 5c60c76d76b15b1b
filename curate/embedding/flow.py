"""What a dataset gives, row by row, while an eye is kept on whether anything comes at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread

import ray
import ray.data

from curate.cluster import own_errors
from curate.errors import CurateError
from curate.progress import Progress
from curate.sources.base import Row

LOOK_EVERY_S = 5.0
STUCK_AFTER_S = 900.0  # without a row, with all the cluster there that the work asks for
ROWS_AHEAD = 1024


def rows_of(dataset: ray.data.Dataset, progress: Progress, gpu: bool) -> Iterator[Row]:
    """Every row. While nothing comes and the cluster has not what is asked for, nodes are being
    awaited: `progress` says so, and nothing fails.

    gpu: whether the work needs one.
    Raises CurateError where nothing comes though everything is there.
    """
    rows: Queue[Row | BaseException | None] = Queue(ROWS_AHEAD)
    stopped = Event()

    def give(one: Row | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return rows.put(one, timeout=1)
            except Full:
                continue

    def pump() -> None:
        try:
            for row in dataset.iter_rows():
                give(row)
            give(None)
        except BaseException as error:
            give(error)

    Thread(target=pump, name="embed: rows", daemon=True).start()
    last = time.monotonic()
    try:
        while True:
            try:
                row = rows.get(timeout=LOOK_EVERY_S)
            except Empty:
                lacking = _lacking(gpu)
                progress.awaits(lacking)
                if lacking:
                    last = time.monotonic()
                elif time.monotonic() - last > STUCK_AFTER_S:
                    raise CurateError(
                        f"embed: nothing has come for {STUCK_AFTER_S:.0f} s though the cluster has "
                        "room; run again, with --verbose to see what Ray does"
                    ) from None
                continue
            last = time.monotonic()
            progress.awaits(None)
            if row is None:
                return
            if isinstance(row, BaseException):
                with own_errors():
                    raise row
            yield row
    finally:
        stopped.set()
        executor = getattr(dataset, "_current_executor", None)  # there is no public way to stop it
        if executor is not None:
            executor.shutdown(force=True)


def _lacking(gpu: bool) -> str | None:
    """What the cluster has none of now."""
    there = ray.cluster_resources()
    needed = ("CPU", "GPU") if gpu else ("CPU",)
    return next(
        (f"waiting for a node with a {what}" for what in needed if not there.get(what)), None
    )
