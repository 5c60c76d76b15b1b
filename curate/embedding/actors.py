"""The pool's actors: decoded parts of units in, shards of embeddings written."""

from __future__ import annotations

import os
import time

import numpy as np
import pyarrow as pa
import ray
import torch

from curate import storage
from curate.embedding.encoders import Embedder, rebuild
from curate.errors import CurateError
from curate.runfiles import shards
from curate.runfiles.files import EmbeddingFiles
from curate.runfiles.shards import Reject
from curate.settings import EncoderSettings
from curate.sources.base import Row

CPU_THREADS = 4  # of one CPU actor; beyond that, more actors scale better than more threads

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
    """An actor of the pool: parts in, shards written, a row a part of what came of it out."""

    def __init__(
        self, settings: EncoderSettings, weights_uri: str, batch_size: int, files: EmbeddingFiles
    ) -> None:
        gpu = bool(ray.get_gpu_ids())
        if not gpu:
            torch.set_num_threads(min(CPU_THREADS, os.cpu_count() or 1))
        encoder = rebuild(settings, weights_uri)
        self.side = settings.image_px
        self.embedder = Embedder(encoder, "cuda" if gpu else "cpu", batch_size)
        self.width = encoder.feature_dim
        self.files = files
        self.done: float | None = None  # when the part before was

    def __call__(self, parts: pa.Table) -> pa.Table:
        try:
            rows = [self._embed(parts.slice(i, 1)) for i in range(len(parts))]
        except CurateError as error:  # whose type Ray Data loses on the way to the driver
            rows = [{"fatal": str(error)}]
        return pa.Table.from_pylist(rows, PART_SCHEMA)

    def _embed(self, part: pa.Table) -> Row:
        started = time.monotonic()
        row = {name: part.column(name)[0] for name in part.column_names}
        told = {name: row[name].as_py() for name in ("trouble", "again")}
        if told["trouble"] is not None:
            return {"unit": row["unit"].as_py(), **told}
        images = pa.ipc.open_stream(row["images"].as_py()).read_all()
        refused = pa.ipc.open_stream(row["rejects"].as_py()).read_all().to_pylist()
        rejects = [Reject(**one) for one in refused]
        seen = len(images) + len(rejects)
        pixels = np.frombuffer(row["pixels"].as_buffer(), np.uint8)
        pixels = pixels.reshape(-1, self.side, self.side, 3)  # (N, H, W, 3)
        embeddings = self.embedder(pixels) if len(pixels) else np.empty((0, self.width), np.float16)
        computed = time.monotonic()
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
        wrote = time.monotonic()
        read = row["seconds"].as_py()
        waited = 0.0 if self.done is None else started - self.done
        spans = (read, row["held"].as_py(), waited, computed - started, wrote - computed)
        self.done = wrote
        return {
            **note,
            **told,
            "seconds": read + wrote - started,
            "bytes": size,
            "reasons": [one.reason for one in rejects],
            "feed": dict(zip(FEED, spans, strict=True)),
        }


def _dead(images: pa.Table) -> list[Reject]:
    """Rejects for images whose embedding is zero or not finite."""
    reason = "the encoder gives it no finite embedding"
    rows = images.select(["key", "uri"]).to_pylist()
    return [Reject("", r["key"], r["uri"], "embed", reason) for r in rows]
