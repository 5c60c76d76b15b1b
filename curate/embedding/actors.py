"""The pool's actors: decoded parts of units in, shards of embeddings written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from curate import storage
from curate.embedding.embedder import Embedder
from curate.embedding.encoders import rebuild
from curate.embedding.parts import pixels_of
from curate.errors import CurateError
from curate.images import Pixels
from curate.runfiles import shards
from curate.runfiles.files import EmbeddingFiles
from curate.runfiles.shards import Reject
from curate.settings import EncoderSettings
from curate.sources.base import Row

CPU_THREADS = 4  # of one CPU actor; beyond that, more actors scale better than more threads
CALLS = 4  # at once in an actor: one computes, one is ready, two write

# Where the seconds of readers and of actors went; a reader is held up while nobody takes its parts
FEED = ("read", "held up", "waited", "computed", "wrote")

PART_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("unit", "failed", "trouble", "fatal"), pa.string()),
        **dict.fromkeys(("part", "seen", "embedded", "rejected", "bytes"), pa.int64()),
        **dict.fromkeys(("last", "again"), pa.bool_()),
        "seconds": pa.float64(),
        "reasons": pa.list_(pa.string()),  # an image that was rejected each
        "feed": pa.struct([(name, pa.float64()) for name in FEED]),
    }
)


class EmbedParts:
    """An actor of the pool: parts in, shards written, a row a part of what came of it out.

    CALLS calls run at once, each in a thread that Ray gives it: one part is computed while others
    are unpacked or written. A call returns when its shard is there.
    """

    def __init__(
        self, settings: EncoderSettings, weights_uri: str, batch_size: int, files: EmbeddingFiles
    ) -> None:
        gpu = bool(ray.get_gpu_ids())
        encoder = rebuild(settings, weights_uri)
        self.seen = encoder.preprocessing
        self.embedder = Embedder(encoder, "cuda" if gpu else "cpu", batch_size)
        self.width = encoder.feature_dim
        self.files = files
        self.clock = DeviceClock()
        # One thread starts all that is computed: parts take turns, torch has one pool of threads
        threads = min(CPU_THREADS, os.cpu_count() or 1)
        self.device = ThreadPoolExecutor(1, "device", torch.set_num_threads, (threads,))

    def __call__(self, parts: pa.Table) -> pa.Table:
        try:
            with self.clock.call():
                rows = [self._embed(parts.slice(i, 1)) for i in range(len(parts))]
        except CurateError as error:  # whose type Ray Data loses on the way to the driver
            rows = [{"fatal": str(error)}]
        return pa.Table.from_pylist(rows, PART_SCHEMA)

    def _embed(self, part: pa.Table) -> Row:
        row = {name: part.column(name)[0] for name in part.column_names if name != "pixels"}
        told = {name: row[name].as_py() for name in ("trouble", "again")}
        if told["trouble"] is not None:
            return {"unit": row["unit"].as_py(), **told}
        images = pa.ipc.open_stream(row["images"].as_py()).read_all()
        refused = pa.ipc.open_stream(row["rejects"].as_py()).read_all().to_pylist()
        rejects = [Reject(**one) for one in refused]
        seen = len(images) + len(rejects)
        embeddings, waited, computed = self._computed(pixels_of(part, self.seen))
        begun = time.monotonic()
        good = np.isfinite(embeddings).all(axis=1)
        if not good.all():
            rejects += _dead(images.filter(pa.array(~good)))
            images, embeddings = images.filter(pa.array(good)), embeddings[good]
        # What does not differ between equal runs: shards are byte for byte the same
        note = {name: row[name].as_py() for name in ("unit", "part", "last", "failed")}
        note |= {"seen": seen, "embedded": len(images), "rejected": len(rejects)}
        uri = self.files.shard(note["unit"], note["part"])
        data = shards.to_ipc(shards.with_note(shards.table_of(images, embeddings), rejects, **note))
        size = data.size
        if not storage.create_bytes(uri, data):
            # Another was first, of this run or of one that shares the store: what it wrote counts
            note, size = shards.read_note(uri), storage.sizes_in(uri)[uri.rpartition("/")[2]]
        read, wrote = row["seconds"].as_py(), time.monotonic() - begun
        return {
            **note,
            **told,
            "seconds": read + computed + wrote,
            "bytes": size,
            "reasons": [one.reason for one in rejects],
            "feed": dict(
                zip(FEED, (read, row["held"].as_py(), waited, computed, wrote), strict=True)
            ),
        }

    def _computed(self, pixels: Pixels) -> tuple[NDArray[np.float16], float, float]:
        """pixels (N, H, W, C) → (N, D); seconds that the device waited before, and worked."""
        if not len(pixels):
            return np.empty((0, self.width), np.float16), 0.0, 0.0

        def start() -> tuple[float, Callable[[], NDArray[np.float16]]]:
            return time.monotonic(), self.embedder.start(pixels)

        started, result = self.device.submit(start).result()
        embeddings = result()
        return embeddings, *self.clock.worked(started, time.monotonic())


class DeviceClock:
    """What a device waited for its input, and worked, while calls overlap."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.calls = 0
        self.room = 0.0  # since when another call could have come
        self.done: float | None = None  # when the device was, with all before

    @contextmanager
    def call(self) -> Iterator[None]:
        with self.lock:
            self.calls += 1
        try:
            yield
        finally:
            with self.lock:
                if self.calls == CALLS:
                    self.room = time.monotonic()
                self.calls -= 1

    def worked(self, started: float, done: float) -> tuple[float, float]:
        """→ seconds waited before, and worked. Where all calls were writing, it waited for none."""
        with self.lock:
            before = started if self.done is None else self.done
            self.done = max(before, done)
            waited = started - max(before, self.room)
            return max(0.0, waited), max(0.0, done - max(before, started))


def _dead(images: pa.Table) -> list[Reject]:
    """Rejects for images whose embedding is zero or not finite."""
    reason = "the encoder gives it no finite embedding"
    rows = images.select(["key", "uri"]).to_pylist()
    return [Reject("", r["key"], r["uri"], "embed", reason) for r in rows]
