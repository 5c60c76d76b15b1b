"""How a training is going: what rank 0 records, and what the driver shows of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence

from curate import storage
from curate.pretraining.board import Record
from curate.pretraining.trackers import tracker_of
from curate.progress import Display, Facts
from curate.runfiles.files import TrainingFiles
from curate.storage import Document

WRITE_EVERY_S = 20.0
NO_CURVES = ("step", "epoch", "seconds")
STANDSTILL_S = 30.0  # a step that takes longer is worth a line


class Journal:
    """metrics.jsonl, and what trackers show, from the records of a training."""

    def __init__(
        self,
        files: TrainingFiles,
        earlier: list[Record],
        trackers: Sequence[str] = ("tensorboard",),
        about: Document | None = None,
    ) -> None:
        """earlier: records up to the checkpoint that is gone on from; later ones are dropped.
        about: the training, for whoever compares some.

        Raises CurateError for a tracker that cannot be had.
        """
        self.files, self.records = files, list(earlier)
        self.written = 0.0
        first = earlier[-1]["step"] + 1 if earlier else 0
        self.trackers = [tracker_of(name, files, first, about or {}) for name in trackers]

    def add(self, record: Record) -> None:
        self.records.append(record)
        self._show({name: value for name, value in record.items() if name not in NO_CURVES}, record)
        if time.monotonic() - self.written > WRITE_EVERY_S:
            self.write()

    def amend(self, record: Record, figures: dict[str, float]) -> None:
        """What was found of a record's step later on."""
        record |= figures
        self._show(figures, record)

    def _show(self, figures: Mapping[str, float], record: Record) -> None:
        for tracker in self.trackers:
            tracker.add(record["step"], figures)

    def write(self) -> None:
        self._write_lines()
        for tracker in self.trackers:
            tracker.flush()
        self.written = time.monotonic()

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()
        self._write_lines()

    def _write_lines(self) -> None:
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        storage.write_bytes(self.files.metrics, text.encode())


class TrainingProgress(Display):
    """Shows what rank 0 last left on the board."""

    unit = "step"

    def __init__(self, what: str, latest: Callable[[], Record | None]) -> None:
        """latest: gives it: step, steps, epoch, epochs, loss, learning_rate, images_per_s,
        seconds_left; None before the first step."""
        super().__init__(what)
        self.latest = latest
        self.record: Record | None = None
        self.said: Record | None = None
        self.changed = self.started

    def look(self) -> None:
        record, first = self.latest(), self.record is None
        if record is not None and record != self.record:
            self.record, self.changed = record, time.monotonic()
        self.show(now=first and record is not None)

    def standing(self) -> tuple[int, int, str] | None:
        record = self.record
        return None if record is None else (record["step"], record["steps"], _figures(record))

    def facts(self) -> Facts | None:
        facts, record = super().facts(), self.record
        if facts is not None and record is not None:
            facts.images_per_s, facts.seconds_left = record["images_per_s"], record["seconds_left"]
        return facts

    def line(self) -> str | None:
        record, unchanged_s = self.record, time.monotonic() - self.changed
        if record is None:
            return "no step yet: waiting for room on the cluster, and for the workers to start"
        step = f"step {record['step']} of {record['steps']}"
        if record is self.said:
            awaited = "the end" if record["step"] == record["steps"] else "the next"
            still = f"{step}, for {unchanged_s:.0f} s: waiting for {awaited}"
            return still if unchanged_s > STANDSTILL_S else None
        self.said = record
        left = f"{_duration(record['seconds_left'])} left"
        return f"epoch {record['epoch']} of {record['epochs']}, {step}, {_figures(record)}, {left}"

    def end(self, error: BaseException | None) -> None:
        self.look()
        if self.record is not self.said:
            self.show(now=True)


def _figures(record: Record) -> str:
    text = (
        f"loss {record['loss']:.4f}, deviation {record['embedding_std']:.2f}, "
        f"rate {record['learning_rate']:.2g}, {record['images_per_s']:,.0f} images/s"
    )
    return text + (f", kNN {record['knn']:.1%}" if "knn" in record else "")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
