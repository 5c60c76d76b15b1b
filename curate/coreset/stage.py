"""A run's embeddings → a coreset's manifest, by any of coreset.method, as often as one likes.

embedding shards ──> guide (centroids, ratio) ──> select ──> manifest
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate import __version__, storage
from curate.coreset import baselines, constraints, manifest, rules, whitened_shards
from curate.coreset.allowed import Allowed
from curate.coreset.kept import Kept
from curate.coreset.on_ray import Wanted, select_all
from curate.coreset.ratio import Linear
from curate.coreset.rounds import Limits, Selection
from curate.coreset.rules import Guide
from curate.embedding import metadata
from curate.errors import CurateError
from curate.runfiles import embeddings, shards, store
from curate.runfiles.files import RunFiles
from curate.runfiles.run import Embedded, Run
from curate.runfiles.summary import Outcome
from curate.settings import CoresetSettings

log = logging.getLogger(__name__)


def embedded(run: Run) -> Embedded:
    """What a run selects from: its embeddings, whitened where its settings say so, and what these
    ask to know of the images beside them."""
    found, coreset = run.embedded(), run.settings.coreset
    columns = metadata.asked_of(coreset)
    if columns:
        found = replace(found, beside=metadata.beside(run, columns))
    dims = coreset.whiten
    return found if dims is None else whitened_shards.whitened(found, dims, run.files)


def guide_of(found: Embedded, coreset: CoresetSettings) -> Guide:
    """What the method goes by, from the target set's embeddings, and a sample of the open set's.

    Raises CurateError for a target set that is too small.
    """
    if not (coreset.uses_centroids or coreset.uses_ratio):
        return Guide()
    blocks = [block for shard in found.target for block in embeddings.read_embeddings(shard)]
    if not blocks:
        raise CurateError("no target image could be embedded")
    return rules.guide_of(coreset, np.concatenate(blocks), found.open)


def save_guide(files: RunFiles, guide: Guide) -> None:
    """Centroids, and the direction of a ratio that has one."""
    if guide.centroids is not None:
        _save(files.centroids, guide.centroids)
    if isinstance(guide.score, Linear):
        _save(files.direction, guide.score.direction[None])


def _save(uri: str, rows: NDArray[np.floating]) -> None:
    file = pa.BufferOutputStream()
    np.save(file, rows)
    storage.write_bytes(uri, file.getvalue())


def read_centroids(run: Run) -> NDArray[np.float32]:
    """Those that the run selected by."""
    expected = "centroids are a float matrix (K, D)"
    return np.asarray(shards.read_npy(run.files.centroids, expected), np.float32)


def budget_of(coreset: CoresetSettings, found: Embedded, guide: Guide) -> int | None:
    """Images: the smaller of what `budget` and `budget_times_target` say; None for no limit."""
    budgets: list[int] = []
    if coreset.budget == "auto":
        assert guide.budget is not None
        budgets.append(guide.budget)
    elif isinstance(coreset.budget, float):
        budgets.append(round(coreset.budget * found.open_images))
    elif coreset.budget is not None:
        budgets.append(coreset.budget)
    if coreset.budget_times_target is not None:
        budgets.append(round(coreset.budget_times_target * found.target_images))
    return min(budgets, default=None)


def kept_of(run: Run, found: Embedded, guide: Guide) -> Kept | None:
    """Where the run keeps its candidates; None for a selection that keeps none."""
    if not _is_simcore(run.settings.coreset, guide, found):
        return None
    assert guide.centroids is not None
    dims = run.settings.coreset.whiten
    # Whitened ones are others with every image that is added
    whitened = f"{found.fingerprint} whitened to {dims}"
    embeddings = store.key(run.fingerprint) if dims is None else whitened
    return Kept(run.files.candidates, embeddings, guide.centroids)


def choose(
    coreset: CoresetSettings,
    found: Embedded,
    guide: Guide,
    kept: Kept | None = None,
) -> Selection:
    """Raises CurateError for an oracle whose labels no image has."""
    return choose_all([coreset], [found], [guide], [kept])[0]


def choose_all(
    coresets: list[CoresetSettings],
    found: list[Embedded],
    guides: list[Guide],
    kept: list[Kept | None] | None = None,
) -> list[Selection]:
    """A selection for each target, `choose`'s. The targets share one open set, of which the
    embeddings are scanned once for all of SimCore's.

    Raises CurateError as `choose` does.
    """
    assert all(one.open == found[0].open for one in found)
    places = [None] * len(found) if kept is None else kept
    each = list(zip(coresets, found, guides, places, strict=True))
    simcore = [
        Wanted(guide.centroids, _limits(coreset, one, guide), kept=place)
        for coreset, one, guide, place in each
        if guide.centroids is not None and _is_simcore(coreset, guide, one)
    ]
    by_rounds = iter(select_all(found[0].open, simcore, on_refill=_tell))
    return [
        next(by_rounds) if _is_simcore(coreset, guide, one) else _chosen(coreset, one, guide)
        for coreset, one, guide, _ in each
    ]


def _is_simcore(coreset: CoresetSettings, guide: Guide, found: Embedded) -> bool:
    """And nothing else, so that targets can be scanned together."""
    bound = constraints.there_are(coreset, found)
    return guide.centroids is not None and guide.score is None and not bound


def _chosen(coreset: CoresetSettings, found: Embedded, guide: Guide) -> Selection:
    limits = _limits(coreset, found, guide)
    within = constraints.of(coreset, found, limits.budget)
    if limits.budget is not None:
        left = limits.budget - len(within.added)
        if left < 0:
            raise CurateError(
                f"coreset.add: {len(within.added)} images, more than the budget of {limits.budget}"
            )
        limits = replace(limits, budget=left)
    if guide.score is not None:
        chosen = rules.select_by(coreset, guide, found.open, limits, within, _tell)
    elif guide.centroids is not None:
        wanted = Wanted(guide.centroids, limits, quotas=within.quotas, near=within.near)
        [chosen] = select_all(found.open, [wanted], allowed=within.allowed, on_refill=_tell)
    else:
        chosen = _baseline(coreset, found, limits.budget, within.allowed)
    if len(within.added):
        chosen = rules.with_added(chosen, within.added, guide, found.open)
    return replace(chosen, left_out=within.left_out | chosen.left_out)


def _tell(lists: int, length: int) -> None:
    log.info("select: %d lists ran out and go on, by up to %d images", lists, length)


def _limits(coreset: CoresetSettings, found: Embedded, guide: Guide) -> Limits:
    return Limits(coreset.tau, coreset.reference_round, budget_of(coreset, found, guide))


def _baseline(
    coreset: CoresetSettings, found: Embedded, budget: int | None, allowed: Allowed | None
) -> Selection:
    images = found.open_images
    candidates = np.arange(images) if allowed is None else allowed.rows(0, images)
    if coreset.method == "oracle":
        labelled = baselines.labelled(found.open, coreset.labels or [])
        if not len(labelled):
            raise CurateError("coreset.labels: no image of the open set has any of them")
        candidates = np.intersect1d(candidates, labelled)
    return baselines.random_sample(candidates, budget, coreset.seed)


def write_manifest(
    uri: str, coreset: CoresetSettings, found: Embedded, selection: Selection
) -> dict[str, int]:
    """The coreset as Parquet; returns its images by source, as they were written."""
    about = {"curate": __version__, "fingerprint": found.fingerprint}
    about |= outcome(coreset, selection).to_json()
    return manifest.write(uri, found, selection, about, coreset.keep or ())


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
        left_out=selection.left_out,
    )
