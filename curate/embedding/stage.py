"""Plan units → embedding shards, rejects and the ledger, on Ray Data.

    units ── read tasks (CPU) ──> parts of uint8 pixels ── actor pool (GPU or CPU) ──> shards

Reading, decoding and resizing happen in the read tasks; full-size images never enter the object
store. A unit is usually one part; a large tar flows as several, each with a shard of its own.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from curate.cluster import on_this_node
from curate.embedding.actors import CALLS, CPU_THREADS, EmbedParts
from curate.embedding.careful import Bounds, Watch
from curate.embedding.encoders import Encoder
from curate.embedding.flow import rows_of
from curate.embedding.parts import Reading, read_parts
from curate.errors import CurateError
from curate.progress import Progress, spent
from curate.runfiles.files import RunFiles
from curate.runfiles.fingerprint import Device
from curate.runfiles.ledger import Ledger, PartRecord, first_of_each, unit_of
from curate.runfiles.memo import Memo
from curate.runfiles.plan import Plan, by_name
from curate.runfiles.run import Run
from curate.settings import EmbedSettings, RunSettings
from curate.sources import Unit
from curate.sources.base import Row

log = logging.getLogger(__name__)

UNITS_AT_ONCE = 20_000  # of one dataset: what the driver keeps of it stays small
BLOCK_IMAGES = 10_000  # that a reader lost with its node repeats at most
BLOCKS_PER_CPU = 16  # at least: while the last are read, cores may be idle
IN_STEP = 0.05  # of all seconds, that one may wait for the other
GUESSED_BYTES = 100_000  # of an image, where a unit does not know how many it has
FIRST_PAUSE_S = 5.0  # before units that could not be read are tried again; doubled each time
LONGEST_PAUSE_S = 120.0
BOUNDS = Bounds()
MOST_GPUS = 1 << 16
CALLS_AHEAD = 2  # of an actor
ACTOR_CPUS = 0.01  # enough to keep off a head node without CPUs


def embed(run: Run, encoder: Encoder) -> Progress:
    """Embed every unit that is not in the store yet; what comes of it goes into its ledger.

    Units that cannot be read are tried again, later and later. Raises CurateError for those that
    cannot be read at last, and for what stops the whole job; single images are rejected instead.
    """
    ledger = run.resumed()
    pending = _pending(run.plan, ledger)
    done = len(run.plan) - len(pending)
    attempts, gpu = run.settings.embed.attempts, run.fingerprint["device"] == "gpu"
    with Progress("embed", len(run.plan), done) as progress, ledger:
        if len(pending):
            # By a file, not through the object store: an actor restarted after its node was lost
            # needs it
            encoder.save(run.files.weights)
        failures: list[Failure] = []
        for attempt in range(1, attempts + 1):
            failures = []
            progress.tries_again()
            for start in range(0, len(pending), UNITS_AT_ONCE):
                rows = pending[start : start + UNITS_AT_ONCE]
                units = [planned.unit for planned in run.plan.units(rows)]
                dataset = _dataset(run, encoder, rows, last=attempt == attempts)
                failures += _follow(rows_of(dataset, progress, gpu), ledger, units, progress)
            if not any(failure.again for failure in failures) or attempt == attempts:
                break
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.75, 1.25)
            log.info("embed: %s; again in %.0f s", _told(failures), pause)
            time.sleep(pause)
            pending = _pending(run.plan, ledger)
    if progress.feed:
        log.info("embed: %s", _fed(progress.feed))
    if failures:
        raise CurateError(
            f"{_told(failures)}. Everything else is embedded; run the same command again to go on"
        )
    return progress


@dataclass(frozen=True)
class Failure:
    """A unit that could not be read. again: whether trying again in this run may help."""

    unit: Unit
    reason: str
    again: bool


def _fed(feed: Mapping[str, float]) -> str:
    """Where the seconds went, of all readers together and of all actors."""
    waited, held = feed["waited"], feed["held up"]
    if max(waited, held) < IN_STEP * sum(feed.values()):
        return f"{spent(feed)}; readers and actors keep step"
    short = "readers" if waited > held else "actors"
    return f"{spent(feed)}; {short} are what there is too little of"


def _told(failures: list[Failure]) -> str:
    images = sum(failure.unit.images or 0 for failure in failures)
    about = f" (of {images:,} images and more)" if images else ""
    return (
        f"{len(failures):,} units{about} could not be read now, the first for {failures[0].reason}"
    )


def _pending(plan: Plan, ledger: Ledger) -> pa.Array:
    """Rows of the plan that are not done, each unit once."""
    _, rows = ledger.rows_of(plan.digests)
    missing = pa.array(np.flatnonzero(rows < 0))
    return missing.filter(first_of_each(plan.digests.take(missing)).combine_chunks())


def _blocks(table: pa.Table, cpus: int) -> list[pa.Table]:
    """What one task reads: units of BLOCK_IMAGES together, fewer where there is more room."""
    guess = pc.max_element_wise(pc.divide(table["size"], GUESSED_BYTES), 1)
    images = pc.fill_null(table["images"], guess).to_numpy()
    most = min(BLOCK_IMAGES, images.sum() // (BLOCKS_PER_CPU * cpus))
    blocks, start, inside = [], 0, 0
    for row, own in enumerate(images.tolist()):
        if row > start and inside + own > most:
            blocks.append(table.slice(start, row - start))
            start, inside = row, 0
        inside += own
    return [*blocks, table.slice(start)]


def _dataset(run: Run, encoder: Encoder, rows: pa.Array, *, last: bool) -> ray.data.Dataset:
    """A row a part of what came of it."""
    settings = run.settings
    cluster = ray.cluster_resources()
    pool = pool_of(settings.embed, run.fingerprint["device"], cluster)
    cpus = max(1, int(cluster.get("CPU", 1)))
    reading = Reading(
        run.plan.files, by_name(settings), settings.images, encoder.preprocessing, last, BOUNDS
    )
    return parts_of(run.plan.table.take(rows), cpus, reading).map_batches(
        EmbedParts,
        batch_size=1,
        batch_format="pyarrow",
        # By their claims all actors would fit one node: Ray Data spreads them
        compute=ActorPoolStrategy(
            min_size=pool.min_size,
            max_size=pool.max_size,
            initial_size=pool.initial_size,
            max_concurrent_calls_per_actor=CALLS,
            # What an actor has not begun is brought to its node meanwhile
            max_tasks_in_flight_per_actor=CALLS + CALLS_AHEAD,
            enable_true_multi_threading=True,
        ),
        num_cpus=ACTOR_CPUS,
        num_gpus=pool.num_gpus,
        fn_constructor_kwargs={
            "settings": settings.encoder,
            "weights_uri": run.files.weights,
            "batch_size": settings.embed.batch_size,
            "files": run.embeddings,
        },
    )


def parts_of(table: pa.Table, cpus: int, reading: Reading) -> ray.data.Dataset:
    """Rows of the plan → a row a part, as readers give them."""
    # A part is one row, and soon a block of its own: what is read flows on at once
    DataContext.get_current().target_max_block_size = 1 << 20
    watch = Watch.options(scheduling_strategy=on_this_node()).remote()  # type: ignore[attr-defined]
    return ray.data.from_arrow(_blocks(table, cpus)).map_batches(
        read_parts,  # type: ignore[arg-type]
        batch_size=1,
        batch_format="pyarrow",
        # Two readers a core: one decodes while the other waits for a store. And Ray Data reserves a
        # share of the CPUs for each operator, which on a small machine is one CPU or none: a whole
        # CPU a reader would leave cores idle
        num_cpus=0.5,
        fn_kwargs={"reading": reading, "watch": watch},
    )


def _follow(
    rows: Iterator[Row], ledger: Ledger, units: list[Unit], progress: Progress
) -> list[Failure]:
    """Drive the dataset; a unit is in the ledger when its last part has come."""
    by_digest = {unit.digest: unit for unit in units}
    parts: dict[str, list[PartRecord]] = {}
    failures: list[Failure] = []
    for row in rows:
        trouble, again, fatal = row.pop("trouble"), row.pop("again"), row.pop("fatal")
        reasons, feed = row.pop("reasons"), row.pop("feed")
        if fatal is not None:
            raise CurateError(fatal)
        if trouble is not None:
            failures.append(Failure(by_digest.pop(row["unit"]), trouble, again))
            progress.fails(trouble)
            continue
        part = PartRecord(**row)
        own = parts.setdefault(part.unit, [])
        own.append(part)
        record = unit_of(own)
        if record is not None:
            ledger.add(record)
            del parts[part.unit], by_digest[part.unit]
        whole = int(record is not None)
        progress.add(images=part.seen, units=whole, rejected=reasons, feed=feed)
    if by_digest:
        lost = next(iter(by_digest.values()))
        raise CurateError(f"{len(by_digest)} units did not come back, first {lost.uri}; run again")
    return failures


# Placement


def device_of(settings: RunSettings) -> Device:
    """What the run's embeddings are made on. Those of a run that is gone on with stay of one kind.

    Raises CurateError for GPUs of a cluster that has none, and is not said to get any.
    """
    wanted = settings.embed.device
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if wanted == "gpu" and not gpus and settings.embed.workers is None:
        raise CurateError(
            "embed.device=gpu: the cluster has no GPU yet; set embed.workers to how many it "
            "should scale up to"
        )
    if wanted != "auto":
        return wanted
    made_from = (Memo(RunFiles(settings.output).memo).read() or {}).get("made_from") or {}
    before: Device | None = made_from.get("device")
    if before == "cpu" and gpus:
        log.info("embed: on CPUs, as this run began; embed.device=gpu --fresh begins it on GPUs")
    return before or ("gpu" if gpus else "cpu")


@dataclass(frozen=True)
class Pool:
    """The actors: how many at least, at first, and at most, and the GPUs each claims."""

    min_size: int
    initial_size: int
    max_size: int
    num_gpus: float


def pool_of(settings: EmbedSettings, device: Device, cluster: Mapping[str, float]) -> Pool:
    """actors_per_gpu a GPU, as many as there are and come to be, or one every CPU_THREADS CPUs.

    Actors claim next to no CPU: what feeds them needs it, and when a node is lost, the actors that
    move to the others would otherwise claim all there is, and wait for ever for something to do.
    """
    if device == "gpu":
        each = settings.actors_per_gpu
        most = settings.workers or MOST_GPUS * each
        now = min(max(1, int(cluster.get("GPU", 0))) * each, most)
        return Pool(1, now, most, 1 / each)
    actors = settings.workers or max(1, int(cluster.get("CPU", 1)) // CPU_THREADS)
    return Pool(actors, actors, actors, 0)
