"""Plan units → embedding shards, rejects and the ledger, on Ray Data.

    units ── read tasks (CPU) ──> parts of uint8 pixels ── actor pool (GPU or CPU) ──> shards

Reading, decoding and resizing happen in the read tasks; full-size images never enter the object
store. An actor normalises, embeds, and writes. A unit is usually one part; a large tar flows as
several, each with a shard of its own.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext

from curate import storage
from curate.cluster import own_errors
from curate.embedding.encoders import Embedder, Encoder, rebuild
from curate.embedding.parts import read_parts
from curate.errors import CurateError
from curate.progress import Progress
from curate.runfiles import plan, shards
from curate.runfiles.ledger import Ledger, PartRecord, unit_of
from curate.runfiles.plan import PlannedUnit
from curate.runfiles.run import Run
from curate.runfiles.shards import Reject
from curate.settings import EmbedSettings, EncoderSettings

CPU_THREADS = 4  # of one CPU actor; beyond that, more actors scale better than more threads
ACTOR_CPUS = 0.01  # enough to keep off a head node without CPUs
MAX_BLOCKS = 1024  # of the plan: one of a million units goes round as blocks of a thousand


def embed(run: Run, encoder: Encoder) -> Progress:
    """Embed every unit that is not done yet; what comes of it goes into the run's ledger.

    Raises CurateError for what stops the whole job; single images are rejected instead.
    """
    ledger = run.resumed()
    pending = [unit for unit in run.units if unit.number not in ledger.records]
    done = len(run.units) - len(pending)
    with Progress("embed", len(run.units), done) as progress, ledger:
        if pending:
            # By a file, not through the object store: an actor restarted after its node was lost
            # needs it
            encoder.save(run.files.weights)
            with own_errors():
                _follow(_dataset(run, encoder, pending), ledger, pending, progress)
    return progress


def _dataset(run: Run, encoder: Encoder, pending: list[PlannedUnit]) -> ray.data.Dataset:
    """A row a part of what came of it."""
    settings = run.settings
    pool = _pool(settings.embed)
    table = plan.to_table(pending)
    per_block = -(-len(pending) // MAX_BLOCKS)
    blocks = [table.slice(i, per_block) for i in range(0, len(pending), per_block)]
    # A part is one row, and soon a block of its own: what is read flows on at once
    DataContext.get_current().target_max_block_size = 1 << 20
    return (
        ray.data.from_arrow(blocks)
        .map_batches(
            read_parts,  # type: ignore[arg-type]
            batch_size=1,
            batch_format="pyarrow",
            # Ray Data reserves a share of the CPUs for each operator, which on a small machine is
            # one CPU or none: a whole CPU a reader would leave cores idle
            num_cpus=0.5,
            fn_kwargs={
                "files": run.files,
                "sources": {
                    ("target", settings.target.name): settings.target,
                    **{("open", source.name): source for source in settings.open},
                },
                "images": settings.images,
                "preprocessing": encoder.preprocessing,
            },
        )
        .map_batches(
            EmbedParts,
            batch_size=1,
            batch_format="pyarrow",
            # By their claims all actors would fit one node: Ray Data spreads them
            compute=ActorPoolStrategy(min_size=pool.min_size, max_size=pool.max_size),
            num_cpus=ACTOR_CPUS,
            num_gpus=pool.num_gpus,
            fn_constructor_kwargs={
                "settings": settings.encoder,
                "weights_uri": run.files.weights,
                "batch_size": settings.embed.batch_size,
            },
        )
    )


def _follow(
    dataset: ray.data.Dataset, ledger: Ledger, pending: list[PlannedUnit], progress: Progress
) -> None:
    """Drive the dataset; a unit is in the ledger when its last part has come."""
    parts: dict[int, list[PartRecord]] = {}
    for row in dataset.iter_rows():
        part = PartRecord(**row)
        own = parts.setdefault(part.unit, [])
        own.append(part)
        record = unit_of(own)
        if record is not None:
            ledger.add(record)
            del parts[part.unit]
        progress.add(images=part.seen, units=int(record is not None))
    lost = [unit.number for unit in pending if unit.number not in ledger.records]
    if lost:
        raise CurateError(f"{len(lost)} units did not come back, first {lost[0]}; run again")


PART_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("unit", "part"), pa.int64()),
        "last": pa.bool_(),
        **dict.fromkeys(("seen", "embedded", "rejected"), pa.int64()),
        "seconds": pa.float64(),
        "bytes": pa.int64(),
        "failed": pa.string(),
    }
)


class EmbedParts:
    """An actor of the pool: parts in, shards written, a row a part of what came of it out."""

    def __init__(self, settings: EncoderSettings, weights_uri: str, batch_size: int) -> None:
        gpu = bool(ray.get_gpu_ids())
        if not gpu:
            torch.set_num_threads(min(CPU_THREADS, os.cpu_count() or 1))
        encoder = rebuild(settings, weights_uri)
        self.side = settings.image_px
        self.embedder = Embedder(encoder, "cuda" if gpu else "cpu", batch_size)
        self.width = encoder.feature_dim

    def __call__(self, parts: pa.Table) -> pa.Table:
        records = [asdict(self._embed(parts.slice(i, 1))) for i in range(len(parts))]
        return pa.Table.from_pylist(records, PART_SCHEMA)

    def _embed(self, part: pa.Table) -> PartRecord:
        started = time.monotonic()
        row = {name: part.column(name)[0] for name in part.column_names}
        images = pa.ipc.open_stream(row["images"].as_py()).read_all()
        rejects = pa.ipc.open_stream(row["rejects"].as_py()).read_all()
        seen = len(images) + len(rejects)
        pixels = np.frombuffer(row["pixels"].as_buffer(), np.uint8)
        pixels = pixels.reshape(-1, self.side, self.side, 3)  # (N, H, W, 3)
        embeddings = self.embedder(pixels) if len(pixels) else np.empty((0, self.width), np.float16)
        source, shard = row["source"].as_py(), row["shard"].as_py()
        good = np.isfinite(embeddings).all(axis=1)
        if not good.all():
            rejects = pa.concat_tables([rejects, _dead(source, images.filter(pa.array(~good)))])
            images, embeddings = images.filter(pa.array(good)), embeddings[good]
        # What does not differ between equal runs: shards are byte for byte the same
        note = {name: row[name].as_py() for name in ("unit", "part", "last", "failed")}
        note |= {"seen": seen, "embedded": len(images), "rejected": len(rejects)}
        # The embeddings come last: where they are, the part is done
        if len(rejects):
            shards.write_parquet(row["rejected"].as_py(), rejects)
        else:
            storage.remove_tree(row["rejected"].as_py())  # of an earlier embedding of the unit
        table = shards.with_note(shards.table_of(images, embeddings), **note)
        size = shards.write_arrow(shard, table)
        seconds = row["seconds"].as_py() + time.monotonic() - started
        return PartRecord(**note, seconds=seconds, bytes=size)


def _dead(source: str, images: pa.Table) -> pa.Table:
    """Rejects for images whose embedding is zero or not finite."""
    reason = "the encoder gives it no finite embedding"
    rows = images.select(["key", "uri"]).to_pylist()
    return shards.reject_table([Reject(source, r["key"], r["uri"], "embed", reason) for r in rows])


# Placement


@dataclass(frozen=True)
class _Pool:
    """The actors: how many at least and at most, and the GPUs each claims."""

    min_size: int
    max_size: int
    num_gpus: float


def _pool(settings: EmbedSettings) -> _Pool:
    """One actor a GPU where there are any, else one every CPU_THREADS CPUs.

    Actors claim next to no CPU: what feeds them needs it, and when a node is lost, the actors that
    move to the others would otherwise claim all there is, and wait for ever for something to do.
    """
    cluster = ray.cluster_resources()
    gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 1))
    if settings.device == "gpu" and not gpus and settings.workers is None:
        raise CurateError(
            "embed.device=gpu: the cluster has no GPU yet; set embed.workers to how many it "
            "should scale up to"
        )
    if settings.device == "gpu" or (settings.device == "auto" and gpus):
        actors = settings.workers or gpus
        return _Pool(actors if actors <= gpus else 1, actors, 1)
    actors = settings.workers or max(1, cpus // CPU_THREADS)
    return _Pool(actors, actors, 0)
