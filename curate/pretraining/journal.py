"""How a training is going: what rank 0 records, and what the driver shows of it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from curate import storage
from curate.pretraining.board import Record
from curate.runfiles.files import TrainingFiles

log = logging.getLogger(__name__)

LINE_EVERY_S = 30.0
WRITE_EVERY_S = 20.0


class Journal:
    """metrics.jsonl and TensorBoard's event files, from the records of a training."""

    def __init__(self, files: TrainingFiles, earlier: list[Record]) -> None:
        """earlier: records up to the checkpoint that is gone on from; later ones are dropped."""
        self.files, self.records = files, list(earlier)
        self.written = 0.0
        self.remote = not storage.is_local(files.folder)
        # Event files grow, which object stores' do not: made here, copied there
        self.local = (
            tempfile.mkdtemp(prefix="curate-events-")
            if self.remote
            else storage.filesystem(files.events)[1]
        )
        purge = earlier[-1]["step"] + 1 if earlier else 0
        # Files are named by the second, and a restart may be quicker
        self.writer = SummaryWriter(self.local, purge_step=purge, filename_suffix=f".{purge}")

    def add(self, record: Record) -> None:
        self.records.append(record)
        for name, value in record.items():
            if name not in ("step", "epoch", "seconds"):
                self.writer.add_scalar(name, value, record["step"])
        if time.monotonic() - self.written > WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        storage.write_bytes(self.files.metrics, text.encode())
        self.writer.flush()
        if self.remote:
            for name in os.listdir(self.local):
                with open(os.path.join(self.local, name), "rb") as file:
                    storage.write_bytes(storage.join(self.files.events, name), file.read())
        self.written = time.monotonic()

    def close(self) -> None:
        self.writer.close()  # first, since a flush alone leaves out what is still in its queue
        self.write()
        if self.remote:
            shutil.rmtree(self.local)


class TrainingProgress:
    """A bar on a terminal, a line every 30 s elsewhere."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.spoken = time.monotonic() - LINE_EVERY_S  # workers take seconds to start
        self.last: Record | None = None
        self.bar: tqdm[Any] | None = None

    def show(self, record: Record | None, *, ended: bool = False) -> None:
        """record: what rank 0 last reported: step, steps, epoch, epochs, loss, learning_rate,
        images_per_s, seconds_left."""
        if record is None and time.monotonic() - self.spoken > 3 * LINE_EVERY_S:
            self.spoken = time.monotonic()
            log.info("%s: waiting for the cluster to have room for the workers", self.what)
        if record is None or (record == self.last and not ended):
            return
        self.last = record
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar = tqdm(total=record["steps"], desc=self.what, unit="step", leave=False)
            self.bar.n = record["step"]
            self.bar.set_postfix_str(_figures(record))
            if ended:
                self.bar.close()
        elif ended or time.monotonic() - self.spoken > LINE_EVERY_S:
            self.spoken = time.monotonic()
            log.info(
                "%s: epoch %d of %d, step %d of %d, %s, %s left",
                *(self.what, record["epoch"], record["epochs"], record["step"], record["steps"]),
                *(_figures(record), _duration(record["seconds_left"])),
            )


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
