"""A whole run, stage by stage. Stages meet in files under `output`, so each can be resumed.

(pretrain on X →) plan → embed → count → centroids → select → manifest (→ pretrain on X ∪ I)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from curate import (
    accounting,
    embed,
    encoders,
    manifest,
    pretrain,
    resume,
    selection,
    storage,
)
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
        there = selection.embedded(settings, units, found, resume.digest(mark))
        centres = selection.centroids_of(there, settings.coreset)
        if centres is not None:
            selection.save_centroids(storage.join(output, "centroids.npy"), centres)
    with _timed(seconds, "select"):
        chosen = selection.choose(settings.coreset, there, centres)
    with _timed(seconds, "manifest"):
        uri = storage.join(output, "coreset.parquet")
        table = selection.write_manifest(uri, settings.coreset, there, chosen)
        manifest.write_rounds(storage.join(output, "rounds.parquet"), chosen.rounds)

    for pair in table["source"].value_counts().to_pylist():
        counts["open"][pair["values"]]["selected"] = pair["counts"]
    summary = {
        "sources": counts,
        **selection.outcome(settings.coreset, chosen),
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
