"""A run's embeddings → a coreset's manifest, by any of coreset.method, as often as one likes.

embedding shards ──> centroids ──> select ──> manifest
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate import __version__, storage
from curate.coreset import baselines, centroids, manifest, whitened_shards
from curate.coreset.on_ray import Limits, select
from curate.coreset.rounds import Selection
from curate.embedding.stage import count as count_units
from curate.errors import CurateError
from curate.runfiles import accounts, fingerprint, plan, shards
from curate.runfiles.accounts import Counts, UnitCount
from curate.runfiles.plan import PlannedUnit
from curate.runfiles.shards import Shard
from curate.settings import CoresetSettings, RunSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """What a run embedded, as it is selected from: whitened where the settings say so."""

    target: list[Shard]
    open: list[Shard]  # with their places in plan order
    open_sources: list[str]  # of each open shard
    fingerprint: str  # of what decided the embeddings

    @property
    def target_images(self) -> int:
        return sum(shard.rows for shard in self.target)

    @property
    def open_images(self) -> int:
        return sum(shard.rows for shard in self.open)


def embedded(
    settings: RunSettings, units: list[PlannedUnit], found: list[UnitCount], fingerprint: str
) -> Embedded:
    """The shards that a run selects from, by its plan and what came of every unit."""
    output = settings.output
    sets: dict[str, list[Shard]] = {"target": [], "open": []}
    sources: list[str] = []
    first = {"target": 0, "open": 0}
    for unit, count in zip(units, found, strict=True):
        if count.embedded:
            shard = Shard(unit.embeddings_uri(output), 0, count.embedded, first[unit.set])
            sets[unit.set].append(shard)
            first[unit.set] += count.embedded
            if unit.set == "open":
                sources.append(unit.source)
    target, open_set = sets["target"], sets["open"]
    if settings.coreset.whiten is not None:
        folder = storage.join(output, whitened_shards.FOLDER)
        dims = settings.coreset.whiten
        target, open_set = whitened_shards.whitened(target, open_set, dims, folder, fingerprint)
    return Embedded(target, open_set, sources, fingerprint)


@dataclass(frozen=True)
class EarlierRun:
    """A finished run, from its files."""

    settings: RunSettings
    embedded: Embedded
    counts: Counts


def open_run(output: str) -> EarlierRun:
    """Raises CurateError where there is no run whose embedding is done."""
    written = fingerprint.written(output)
    settings = written.settings
    units = plan.read(storage.join(output, "plan.parquet"))
    found = count_units(settings, units)
    counts = accounts.by_source(units, found, output)
    there = embedded(settings, units, found, fingerprint.digest(written.fingerprint))
    return EarlierRun(settings, there, counts)


def centroids_of(there: Embedded, coreset: CoresetSettings) -> NDArray[np.float32] | None:
    """(K, D) unit rows from the target set's embeddings; None for methods that need none."""
    if coreset.method != "simcore":
        return None
    blocks = [block for shard in there.target for block in shards.read_embeddings(shard)]
    try:
        return centroids.centroids(np.concatenate(blocks), coreset.clusters, coreset.seed)
    except ValueError as error:
        raise CurateError(f"coreset.clusters={coreset.clusters}: {error}") from error


def save_centroids(uri: str, centres: NDArray[np.float32]) -> None:
    file = pa.BufferOutputStream()
    np.save(file, centres)
    storage.write_bytes(uri, file.getvalue())


def read_centroids(output: str) -> NDArray[np.float32]:
    """Those that the run under `output` selected by."""
    uri = storage.join(output, "centroids.npy")
    return np.asarray(shards.read_npy(uri, "centroids are a float matrix (K, D)"), np.float32)


def budget_of(coreset: CoresetSettings, there: Embedded) -> int | None:
    """Images: the smaller of what `budget` and `budget_times_target` say; None for no limit."""
    budgets = []
    if isinstance(coreset.budget, float):
        budgets.append(round(coreset.budget * there.open_images))
    elif coreset.budget is not None:
        budgets.append(coreset.budget)
    if coreset.budget_times_target is not None:
        budgets.append(round(coreset.budget_times_target * there.target_images))
    return min(budgets, default=None)


def choose(
    coreset: CoresetSettings, there: Embedded, centres: NDArray[np.float32] | None
) -> Selection:
    """Raises CurateError for an oracle whose labels no image has."""
    budget = budget_of(coreset, there)
    if centres is not None:
        return select(
            there.open,
            centres,
            Limits(coreset.tau, coreset.reference_round, budget),
            on_refill=lambda lists, length: log.info(
                "select: %d lists ran out and go on to %d images", lists, length
            ),
        )
    candidates = np.arange(there.open_images)
    if coreset.method == "oracle":
        candidates = baselines.labelled(there.open, coreset.labels or [])
        if not len(candidates):
            raise CurateError("coreset.labels: no image of the open set has any of them")
    return baselines.random_sample(candidates, budget, coreset.seed)


def write_manifest(
    uri: str, coreset: CoresetSettings, there: Embedded, selection: Selection
) -> pa.Table:
    """The coreset as Parquet; returns its rows."""
    table = manifest.of_selection(there.open, there.open_sources, selection)
    about = {"curate": __version__, "fingerprint": there.fingerprint}
    manifest.write(uri, table, {**about, **outcome(coreset, selection)})
    return table


def outcome(coreset: CoresetSettings, selection: Selection) -> dict[str, Any]:
    """What the selection came to, without anything that differs between equal runs."""
    rounds = selection.rounds
    return {
        "coreset": coreset.model_dump(mode="json"),
        "selected": len(selection.position),
        "rounds": len(rounds),
        "first_objective": rounds[0].objective if rounds else None,
        "last_objective": rounds[-1].objective if rounds else None,
        "stopping_objective": selection.stopping_objective,
        "stopped_because": selection.stopped_because,
    }
