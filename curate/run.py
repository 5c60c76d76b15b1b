"""A whole run, stage by stage. Stages meet in files under `output`, so each can be resumed.

(pretrain on X →) plan → embed → count → centroids → select → manifest (→ pretrain on X ∪ I)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate import (
    __version__,
    accounting,
    centroids,
    embed,
    encoders,
    manifest,
    pretrain,
    resume,
    shards,
    storage,
)
from curate.accounting import Counts
from curate.coreset import baselines
from curate.coreset.distributed import Limits, select
from curate.coreset.rounds import Selection
from curate.embed import UnitCount
from curate.errors import CurateError
from curate.plan import PlannedUnit
from curate.settings import RunSettings
from curate.shards import Shard

log = logging.getLogger(__name__)

Summary = dict[str, Any]


def run(settings: RunSettings, *, fresh: bool = False) -> Summary:
    """Curate: from sources to a coreset manifest. Returns what summary.json holds.

    fresh: remove what an earlier run left under `output`, and start over.
    Raises CurateError where the run cannot be what the settings ask for.
    """
    output = settings.output
    seconds: dict[str, float] = {}
    trained_here = settings.encoder.pretrain_on_target is not None
    if trained_here:
        with _timed(seconds, "pretrain_on_target"):
            settings = _with_target_encoder(settings, fresh)
    with _timed(seconds, "plan"):
        encoder = encoders.build(settings.encoder)
        mark = resume.fingerprint(settings, encoder)
        if fresh:
            resume.remove_earlier(output, but="target_encoder" if trained_here else None)
        units = resume.plan_of(settings, mark)
    with _timed(seconds, "embed"):
        progress = embed.embed(settings, encoder, units)
    with _timed(seconds, "count"):
        found = embed.count(settings, units)
        counts = accounting.by_source(units, found, output)
        storage.write_json(storage.join(output, "summary.json"), {"sources": counts})
        accounting.check_rejected(
            counts, settings.images.max_rejected_fraction, storage.join(output, "rejected")
        )
    with _timed(seconds, "centroids"):
        by_rounds = settings.coreset.method == "simcore"
        centres = _centroids(settings, units, found) if by_rounds else None
    with _timed(seconds, "select"):
        shard_list, sources = _open_shards(output, units, found)
        selection = _select(settings, centres, shard_list, _budget(settings, counts))
    with _timed(seconds, "manifest"):
        table = manifest.of_selection(shard_list, sources, selection)
        outcome = _outcome(settings, selection)
        manifest.write(
            storage.join(output, "coreset.parquet"),
            table,
            {"curate": __version__, "fingerprint": resume.digest(mark), **outcome},
        )
        manifest.write_rounds(storage.join(output, "rounds.parquet"), selection.rounds)

    for pair in table["source"].value_counts().to_pylist():
        counts["open"][pair["values"]]["selected"] = pair["counts"]
    summary = {
        "sources": counts,
        **outcome,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "embedded_now": progress.images,
        "images_per_s": round(progress.images / seconds["embed"], 1) if progress.images else None,
    }
    accounting.check(summary)
    if settings.pretrain and "coreset" in settings.pretrain.data:
        with _timed(seconds, "pretrain"):
            summary["pretrain"] = pretrain.pretrain(settings)
        summary["seconds"]["pretrain"] = round(seconds["pretrain"], 3)
    storage.write_json(storage.join(output, "summary.json"), summary)
    return summary


def _with_target_encoder(settings: RunSettings, fresh: bool) -> RunSettings:
    """Step 1 of the algorithm; the settings then name its encoder as a checkpoint."""
    folder = pretrain.pretrain_on_target(settings, fresh=fresh)
    changes = {"checkpoint": folder, "pretrain_on_target": None}
    encoder = settings.encoder.model_copy(update=changes)
    return settings.model_copy(update={"encoder": encoder})


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - start


def _centroids(
    settings: RunSettings, units: list[PlannedUnit], found: list[UnitCount]
) -> NDArray[np.float32]:
    """Cluster the target set's embeddings, and keep the result as centroids.npy."""
    blocks = [
        block
        for unit, count in zip(units, found, strict=True)
        if unit.set == "target" and count.embedded
        for block in shards.read_embeddings(
            Shard(unit.embeddings_uri(settings.output), 0, count.embedded, 0)
        )
    ]
    coreset = settings.coreset
    try:
        centres = centroids.centroids(np.concatenate(blocks), coreset.clusters, coreset.seed)
    except ValueError as error:
        raise CurateError(f"coreset.clusters={coreset.clusters}: {error}") from error
    file = pa.BufferOutputStream()
    np.save(file, centres)
    storage.write_bytes(storage.join(settings.output, "centroids.npy"), file.getvalue())
    return centres


def _open_shards(
    output: str, units: list[PlannedUnit], found: list[UnitCount]
) -> tuple[list[Shard], list[str]]:
    """The open set's shards with their places in plan order, and the source of each."""
    shard_list: list[Shard] = []
    sources: list[str] = []
    first = 0
    for unit, count in zip(units, found, strict=True):
        if unit.set == "open" and count.embedded:
            shard_list.append(Shard(unit.embeddings_uri(output), 0, count.embedded, first))
            sources.append(unit.source)
            first += count.embedded
    return shard_list, sources


def _budget(settings: RunSettings, counts: Counts) -> int | None:
    """Images: the smaller of what `budget` and `budget_times_target` say; None for no limit."""
    coreset = settings.coreset
    budgets = []
    if isinstance(coreset.budget, float):
        budgets.append(round(coreset.budget * accounting.total(counts, "open", "embedded")))
    elif coreset.budget is not None:
        budgets.append(coreset.budget)
    if coreset.budget_times_target is not None:
        target = accounting.total(counts, "target", "embedded")
        budgets.append(round(coreset.budget_times_target * target))
    return min(budgets, default=None)


def _select(
    settings: RunSettings,
    centres: NDArray[np.float32] | None,
    shard_list: list[Shard],
    budget: int | None,
) -> Selection:
    coreset = settings.coreset
    if centres is not None:
        return select(
            shard_list,
            centres,
            Limits(coreset.tau, coreset.reference_round, budget),
            on_refill=lambda lists, length: log.info(
                "select: %d lists ran out and go on to %d images", lists, length
            ),
        )
    total = sum(shard.rows for shard in shard_list)
    if coreset.method == "random":
        return baselines.random_sample(np.arange(total), budget, coreset.seed)
    if coreset.method == "oracle":
        labelled = baselines.labelled(shard_list, coreset.labels or [])
        if not len(labelled):
            raise CurateError("coreset.labels: no image of the open set has any of them")
        return baselines.random_sample(labelled, budget, coreset.seed)
    return baselines.random_sample(np.arange(total), None, coreset.seed)


def _outcome(settings: RunSettings, selection: Selection) -> dict[str, Any]:
    """What the selection came to, without anything that differs between equal runs."""
    rounds = selection.rounds
    return {
        "coreset": settings.coreset.model_dump(mode="json"),
        "selected": len(selection.position),
        "rounds": len(rounds),
        "first_objective": rounds[0].objective if rounds else None,
        "last_objective": rounds[-1].objective if rounds else None,
        "stopping_objective": selection.stopping_objective,
        "stopped_because": selection.stopped_because,
    }
