"""Plan units → embedding shards + rejects, on Ray Data.

    units ── read tasks (CPU) ──> parts of uint8 pixels ── actor pool (GPU or CPU) ──> shards

Reading, decoding and resizing happen in the read tasks; full-size images never enter the object
store. An actor normalises, embeds, and writes. A unit is usually one part; a large tar flows as
several, which are joined into its one file when the last has come.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch
from ray import ObjectRef
from ray.data import ActorPoolStrategy, DataContext

from curate import storage
from curate.cluster import own_errors, results
from curate.embedding.encoders import Embedder, Encoder, rebuild
from curate.embedding.parts import read_parts
from curate.errors import CurateError
from curate.progress import Progress
from curate.runfiles import plan as plans
from curate.runfiles import shards
from curate.runfiles.accounts import UnitCount
from curate.runfiles.plan import PlannedUnit
from curate.settings import EmbedSettings, EncoderSettings, RunSettings

CPU_THREADS = 4  # of one CPU actor; beyond that, more actors scale better than more threads
ACTOR_CPUS = 0.01  # enough to keep off a head node without CPUs
MAX_BLOCKS = 1024  # of the plan: one of a million units goes round as blocks of a thousand
COUNTED_AT_ONCE = 256  # units one counting task opens


def embed(settings: RunSettings, encoder: Encoder, plan: list[PlannedUnit]) -> Progress:
    """Embed every unit that is not done yet.

    Raises CurateError for what stops the whole job; single images are rejected instead.
    """
    output = settings.output
    done = {
        set_name: storage.names_in(storage.join(output, "embeddings", set_name))
        for set_name in ("target", "open")
    }
    pending = [
        unit for unit in plan if os.path.basename(unit.embeddings_uri(output)) not in done[unit.set]
    ]
    with Progress("embed", len(plan), len(plan) - len(pending)) as progress:
        if pending:
            _embed_pending(settings, encoder, pending, progress)
    return progress


def count(settings: RunSettings, plan: list[PlannedUnit]) -> list[UnitCount]:
    """What came of every unit, read back from its files."""
    slices = [plan[i : i + COUNTED_AT_ONCE] for i in range(0, len(plan), COUNTED_AT_ONCE)]
    groups = results([_count_units.remote(settings.output, units) for units in slices])
    return [found for group in groups for found in group]


@ray.remote
def _count_units(output: str, units: list[PlannedUnit]) -> list[UnitCount]:
    rejects = storage.names_in(storage.join(output, "rejected"))
    counts = []
    for unit in units:
        note = shards.read_note(unit.embeddings_uri(output))
        rejected_uri = unit.rejected_uri(output)
        rejected = 0
        if os.path.basename(rejected_uri) in rejects:
            rejected = shards.count_rows(rejected_uri)
        counts.append(UnitCount(note["seen"], note["embedded"], rejected))
    return counts


def weights_uri(output: str) -> str:
    return storage.join(output, "encoder.safetensors")


def _embed_pending(
    settings: RunSettings, encoder: Encoder, pending: list[PlannedUnit], progress: Progress
) -> None:
    for set_name in ("target", "open"):  # parts of an earlier run that was cut short
        storage.remove_tree(storage.join(settings.output, "embeddings", set_name, ".parts"))
    # By a file, not through the object store: an actor restarted after its node was lost needs it
    encoder.save(weights_uri(settings.output))
    pool = _pool(settings.embed)
    table = plans.to_table(pending)
    per_block = -(-len(pending) // MAX_BLOCKS)
    blocks = [table.slice(i, per_block) for i in range(0, len(pending), per_block)]
    # A part is one row, and soon a block of its own: what is read flows on at once
    DataContext.get_current().target_max_block_size = 1 << 20
    dataset = (
        ray.data.from_arrow(blocks)
        .map_batches(
            read_parts,  # type: ignore[arg-type]
            batch_size=1,
            batch_format="pyarrow",
            # Ray Data reserves a share of the CPUs for each operator, which on a small machine is
            # one CPU or none: a whole CPU a reader would leave cores idle
            num_cpus=0.5,
            fn_kwargs={
                "output": settings.output,
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
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=pool.min_size, max_size=pool.max_size),
            num_cpus=ACTOR_CPUS,
            num_gpus=pool.num_gpus,
            scheduling_strategy="SPREAD",  # by their claims all actors would fit one node
            fn_constructor_kwargs={
                "settings": settings.encoder,
                "weights_uri": weights_uri(settings.output),
                "batch_size": settings.embed.batch_size,
            },
        )
    )
    with own_errors():
        _follow(dataset, settings.output, {unit.number: unit for unit in pending}, progress)


def _follow(
    dataset: ray.data.Dataset, output: str, pending: dict[int, PlannedUnit], progress: Progress
) -> None:
    """Drive the dataset, and join the files of units that came in several parts."""
    parts_done: dict[int, int] = {}
    parts_all: dict[int, int] = {}
    joining: list[ObjectRef] = []
    for row in dataset.iter_rows():
        number = row["unit"]
        parts_done[number] = parts_done.get(number, 0) + 1
        if row["last"]:
            parts_all[number] = row["part"] + 1
        complete = parts_done[number] == parts_all.get(number)
        if complete and parts_all[number] > 1:
            unit = pending[number]
            shard, rejected = unit.embeddings_uri(output), unit.rejected_uri(output)
            joining.append(join_parts.remote(shard, rejected, parts_all[number]))
        progress.add(images=row["images"], units=int(complete))
    results(joining)
    lost = [n for n in pending if n not in parts_all or parts_done[n] != parts_all[n]]
    if lost:
        raise CurateError(f"{len(lost)} units did not come back, first {lost[0]}; run again")


class EmbedParts:
    """An actor of the pool: parts in, shards written, a row of counts out."""

    def __init__(self, settings: EncoderSettings, weights_uri: str, batch_size: int) -> None:
        gpu = bool(ray.get_gpu_ids())
        if not gpu:
            torch.set_num_threads(min(CPU_THREADS, os.cpu_count() or 1))
        encoder = rebuild(settings, weights_uri)
        self.side = settings.image_px
        self.embedder = Embedder(encoder, "cuda" if gpu else "cpu", batch_size)
        self.width = encoder.feature_dim

    def __call__(self, parts: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._embed(parts.slice(i, 1)) for i in range(len(parts))])

    def _embed(self, part: pa.Table) -> dict[str, Any]:
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
        table = shards.table_of(images, embeddings)
        number, last = row["part"].as_py(), row["last"].as_py()
        if number == 0 and last:
            _write_unit(shard, row["rejected"].as_py(), seen, table, rejects)
        else:
            shards.write_parquet(_part_uri(shard, number, "parquet"), rejects)
            shards.write_arrow(_part_uri(shard, number, "arrow"), table)
        return {"unit": row["unit"].as_py(), "part": number, "last": last, "images": seen}


def _dead(source: str, images: pa.Table) -> pa.Table:
    """Rejects for images whose embedding is zero or not finite."""
    reason = "the encoder gives it no finite embedding"
    rows = images.select(["key", "uri"]).to_pylist()
    return pa.Table.from_pylist(
        [shards.reject_row(source, row["key"], row["uri"], "embed", reason) for row in rows],
        shards.REJECT_SCHEMA,
    )


@ray.remote
def join_parts(shard: str, rejected: str, parts: int) -> None:
    """The parts of one unit into its files."""
    tables, rejects = [], []
    for number in range(parts):
        tables.append(shards.read_arrow(_part_uri(shard, number, "arrow")))
        with storage.open_seekable(_part_uri(shard, number, "parquet")) as file:
            rejects.append(pq.read_table(file))
    table, refused = pa.concat_tables(tables), pa.concat_tables(rejects)
    _write_unit(shard, rejected, len(table) + len(refused), table, refused)


def _write_unit(shard: str, rejected: str, seen: int, table: pa.Table, rejects: pa.Table) -> None:
    """The embeddings come last: where they are, the unit is done."""
    if len(rejects):
        shards.write_parquet(rejected, rejects)
    else:
        storage.remove_tree(rejected)  # of an earlier embedding of the unit
    shards.write_arrow(shard, shards.with_note(table, seen=seen, embedded=len(table)))


def _part_uri(shard: str, number: int, kind: str) -> str:
    """In a folder of its own, so that no pattern over the shards meets a part."""
    folder, _, name = shard.rpartition("/")
    return storage.join(folder, ".parts", f"{name.removesuffix('.arrow')}-{number:04d}.{kind}")


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
