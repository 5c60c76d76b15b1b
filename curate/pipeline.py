"""A whole run, stage by stage. Stages meet in files under `output`, so each can be resumed.

(pretrain on X →) plan → embed → count → centroids → select → manifest (→ pretrain on X ∪ I)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from curate import storage
from curate.coreset import manifest
from curate.coreset import stage as coresets
from curate.embedding import encoders
from curate.embedding.stage import count, embed
from curate.pretraining.stage import pretrain, pretrain_on_target
from curate.runfiles import accounts, fingerprint
from curate.settings import RunSettings

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
        mark = fingerprint.fingerprint(
            settings, encoder.preprocessing, encoders.weights_hash(encoder.module)
        )
        if fresh:
            fingerprint.remove_earlier(output, but="target_encoder" if trained_here else None)
        units = fingerprint.plan_of(settings, mark)
    with _timed(seconds, "embed"):
        progress = embed(settings, encoder, units)
    with _timed(seconds, "count"):
        found = count(settings, units)
        counts = accounts.by_source(units, found, output)
        storage.write_json(storage.join(output, "summary.json"), {"sources": counts})
        accounts.check_rejected(
            counts, settings.images.max_rejected_fraction, storage.join(output, "rejected")
        )
    with _timed(seconds, "centroids"):
        there = coresets.embedded(settings, units, found, fingerprint.digest(mark))
        centres = coresets.centroids_of(there, settings.coreset)
        if centres is not None:
            coresets.save_centroids(storage.join(output, "centroids.npy"), centres)
    with _timed(seconds, "select"):
        chosen = coresets.choose(settings.coreset, there, centres)
    with _timed(seconds, "manifest"):
        uri = storage.join(output, "coreset.parquet")
        table = coresets.write_manifest(uri, settings.coreset, there, chosen)
        manifest.write_rounds(storage.join(output, "rounds.parquet"), chosen.rounds)

    for pair in table["source"].value_counts().to_pylist():
        counts["open"][pair["values"]]["selected"] = pair["counts"]
    summary = {
        "sources": counts,
        **coresets.outcome(settings.coreset, chosen),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "embedded_now": progress.images,
        "images_per_s": round(progress.images / seconds["embed"], 1) if progress.images else None,
    }
    accounts.check(summary)
    if settings.pretrain and "coreset" in settings.pretrain.data:
        with _timed(seconds, "pretrain"):
            summary["pretrain"] = pretrain(settings)
        summary["seconds"]["pretrain"] = round(seconds["pretrain"], 3)
    storage.write_json(storage.join(output, "summary.json"), summary)
    return summary


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
