"""A whole run, stage by stage. Stages meet in files under `output`, so each can be resumed.

(pretrain on X →) plan → embed → count → centroids → select → manifest (→ pretrain on X ∪ I)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from curate import storage
from curate.coreset import manifest
from curate.coreset import stage as coreset
from curate.embedding import encoders
from curate.embedding.stage import embed
from curate.errors import CurateError
from curate.evaluate.stage import check_encoder
from curate.pretraining.stage import check as check_trainings
from curate.pretraining.stage import pretrain, pretrain_on_target
from curate.runfiles import accounts
from curate.runfiles.files import RunFiles
from curate.runfiles.fingerprint import fingerprint
from curate.runfiles.lock import held
from curate.runfiles.run import Run, remove
from curate.runfiles.summary import Summary
from curate.settings import RunSettings


def run(settings: RunSettings, *, fresh: bool = False) -> Summary:
    """Curate: from sources to a coreset manifest. Returns what summary.json holds.

    fresh: remove what an earlier run left under `output`, and start over.
    Raises CurateError where the run cannot be what the settings ask for.
    """
    _check(settings)
    with held(settings.output):
        return _run(settings, fresh)


def _run(settings: RunSettings, fresh: bool) -> Summary:
    files = RunFiles(settings.output)
    seconds: dict[str, float] = {}
    trained_here = settings.encoder.pretrain_on_target is not None
    if trained_here:
        with _timed(seconds, "pretrain_on_target"):
            settings = _with_target_encoder(settings, fresh)
    with _timed(seconds, "plan"):
        encoder = encoders.build(settings.encoder)
        weights = encoders.weights_hash(encoder.module)
        if fresh:
            remove(settings.output, but=files.target_encoder.folder if trained_here else None)
        this = Run.begin(settings, fingerprint(settings, encoder.preprocessing, weights))
    with _timed(seconds, "embed"):
        progress = embed(this, encoder)
    with _timed(seconds, "count"):
        counts = this.counts()
        storage.write_json(files.summary, {"sources": counts.to_json()})
        accounts.check_rejected(counts, settings.images.max_rejected_fraction, files.rejected)
    with _timed(seconds, "centroids"):
        found = coreset.embedded(this)
        centres = coreset.centroids_of(found, settings.coreset)
        if centres is not None:
            coreset.save_centroids(files.centroids, centres)
    with _timed(seconds, "select"):
        selection = coreset.choose(settings.coreset, found, centres)
    with _timed(seconds, "manifest"):
        selected = coreset.write_manifest(files.manifest, settings.coreset, found, selection)
        manifest.write_rounds(files.rounds, selection.rounds)

    counts = counts.selecting(selected)
    accounts.check(counts, len(selection.position))
    summary = Summary(
        sources=counts,
        outcome=coreset.outcome(settings.coreset, selection),
        seconds=seconds,
        embedded_now=progress.images,
        images_per_s=round(progress.images / seconds["embed"], 1) if progress.images else None,
    )
    if settings.pretrain and "coreset" in settings.pretrain.data:
        with _timed(seconds, "pretrain"):
            summary = replace(summary, pretrain=pretrain(settings))
    storage.write_json(files.summary, summary.to_json())
    return summary


def _check(settings: RunSettings) -> None:
    """Whatever can be refused is refused before the first image is read, or hours of work done."""
    check_trainings(settings)
    check_encoder(settings)
    dims = settings.coreset.whiten
    if dims is not None:
        width = encoders.width(settings.encoder)
        if dims > width:
            raise CurateError(
                f"coreset.whiten={dims}: embeddings have fewer: {dims} of {width} dimensions; "
                "lower it"
            )


def _with_target_encoder(settings: RunSettings, fresh: bool) -> RunSettings:
    """Step 1 of the algorithm; the settings then name its encoder as a checkpoint."""
    folder = pretrain_on_target(settings, fresh=fresh)
    changes = {"checkpoint": folder, "pretrain_on_target": None}
    encoder = settings.encoder.model_copy(update=changes)
    return settings.model_copy(update={"encoder": encoder})


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - start
