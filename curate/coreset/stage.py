"""A run's embeddings → a coreset's manifest, by any of coreset.method, as often as one likes.

embedding shards ──> centroids ──> select ──> manifest
"""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate import __version__, storage
from curate.coreset import baselines, centroids, manifest, whitened_shards
from curate.coreset.kept import Kept
from curate.coreset.on_ray import Wanted, select_all
from curate.coreset.rounds import Limits, Selection
from curate.errors import CurateError
from curate.runfiles import embeddings, shards, store
from curate.runfiles.run import Embedded, Run
from curate.runfiles.summary import Outcome
from curate.settings import CoresetSettings

log = logging.getLogger(__name__)


def embedded(run: Run) -> Embedded:
    """What a run selects from: its embeddings, whitened where its settings say so."""
    found, dims = run.embedded(), run.settings.coreset.whiten
    return found if dims is None else whitened_shards.whitened(found, dims, run.files)


def centroids_of(found: Embedded, coreset: CoresetSettings) -> NDArray[np.float32] | None:
    """(K, D) unit rows from the target set's embeddings; None for methods that need none."""
    if coreset.method != "simcore":
        return None
    blocks = [block for shard in found.target for block in embeddings.read_embeddings(shard)]
    try:
        return centroids.centroids(np.concatenate(blocks), coreset.clusters, coreset.seed)
    except ValueError as error:
        raise CurateError(f"coreset.clusters={coreset.clusters}: {error}") from error


def save_centroids(uri: str, centres: NDArray[np.float32]) -> None:
    file = pa.BufferOutputStream()
    np.save(file, centres)
    storage.write_bytes(uri, file.getvalue())


def read_centroids(run: Run) -> NDArray[np.float32]:
    """Those that the run selected by."""
    expected = "centroids are a float matrix (K, D)"
    return np.asarray(shards.read_npy(run.files.centroids, expected), np.float32)


def budget_of(coreset: CoresetSettings, found: Embedded) -> int | None:
    """Images: the smaller of what `budget` and `budget_times_target` say; None for no limit."""
    budgets = []
    if isinstance(coreset.budget, float):
        budgets.append(round(coreset.budget * found.open_images))
    elif coreset.budget is not None:
        budgets.append(coreset.budget)
    if coreset.budget_times_target is not None:
        budgets.append(round(coreset.budget_times_target * found.target_images))
    return min(budgets, default=None)


def kept_of(run: Run, found: Embedded, centres: NDArray[np.float32] | None) -> Kept | None:
    """Where the run keeps its candidates; None for a selection that has none."""
    if centres is None:
        return None
    dims = run.settings.coreset.whiten
    # Whitened ones are others with every image that is added
    whitened = f"{found.fingerprint} whitened to {dims}"
    embeddings = store.key(run.fingerprint) if dims is None else whitened
    return Kept(run.files.candidates, embeddings, centres)


def choose(
    coreset: CoresetSettings,
    found: Embedded,
    centres: NDArray[np.float32] | None,
    kept: Kept | None = None,
) -> Selection:
    """Raises CurateError for an oracle whose labels no image has."""
    return choose_all([coreset], [found], [centres], [kept])[0]


def choose_all(
    coresets: list[CoresetSettings],
    found: list[Embedded],
    centres: list[NDArray[np.float32] | None],
    kept: list[Kept | None] | None = None,
) -> list[Selection]:
    """A selection for each target, `choose`'s. The targets share one open set, of which the
    embeddings are scanned once for all of them.

    Raises CurateError as `choose` does.
    """
    assert all(one.open == found[0].open for one in found)
    places = [None] * len(found) if kept is None else kept
    wanted = [
        Wanted(mine, _limits(coreset, one), kept=place)
        for coreset, one, mine, place in zip(coresets, found, centres, places, strict=True)
        if mine is not None
    ]
    by_rounds = iter(
        select_all(
            found[0].open,
            wanted,
            on_refill=lambda lists, length: log.info(
                "select: %d lists ran out and go on, by up to %d images", lists, length
            ),
        )
        if wanted
        else []
    )
    return [
        _baseline(coreset, one) if mine is None else next(by_rounds)
        for coreset, one, mine in zip(coresets, found, centres, strict=True)
    ]


def _limits(coreset: CoresetSettings, found: Embedded) -> Limits:
    return Limits(coreset.tau, coreset.reference_round, budget_of(coreset, found))


def _baseline(coreset: CoresetSettings, found: Embedded) -> Selection:
    candidates = np.arange(found.open_images)
    if coreset.method == "oracle":
        candidates = baselines.labelled(found.open, coreset.labels or [])
        if not len(candidates):
            raise CurateError("coreset.labels: no image of the open set has any of them")
    return baselines.random_sample(candidates, budget_of(coreset, found), coreset.seed)


def write_manifest(
    uri: str, coreset: CoresetSettings, found: Embedded, selection: Selection
) -> dict[str, int]:
    """The coreset as Parquet; returns its images by source, as they were written."""
    about = {"curate": __version__, "fingerprint": found.fingerprint}
    about |= outcome(coreset, selection).to_json()
    return manifest.write(uri, found.open, found.open_sources, selection, about)


def outcome(coreset: CoresetSettings, selection: Selection) -> Outcome:
    rounds = selection.rounds
    return Outcome(
        coreset=coreset,
        selected=len(selection.position),
        rounds=len(rounds),
        first_objective=rounds[0].objective if rounds else None,
        last_objective=rounds[-1].objective if rounds else None,
        stopping_objective=selection.stopping_objective,
        stopped_because=selection.stopped_because,
    )
