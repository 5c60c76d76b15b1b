"""The quality of the run's own coreset, by the labels of the open set; the encoder has no part in
it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from curate.coreset.quality import Quality
from curate.coreset.quality_on_ray import coreset_quality
from curate.errors import CurateError
from curate.evaluate.subject import Json, Result, Subject, Timed, Unit


def check(subject: Subject) -> None:
    """Raises CurateError where there is no manifest, or no image of the open set has the labels."""
    subject.once(quality)


def run(subject: Subject) -> Iterator[Result]:
    found, seconds = subject.once(quality)
    figures: list[tuple[str, float | None, Unit, Mapping[str, Json]]] = [
        ("oracle share", found.oracle_share, "share", {"by_round": found.by_round}),
        (
            "oracle share of the open set",
            found.base_share,
            "share",
            {"oracle": subject.evaluation.oracle},
        ),
        ("lift", found.lift, "ratio", {}),
        ("recall", found.recall, "share", {}),
        ("entropy", found.entropy, "bits", {"top_classes": found.top_classes}),
        ("entropy of the open set", found.open_entropy, "bits", {}),
        ("nearest-target similarity", found.near_target, "cosine", {}),
        ("the same of random images", found.near_target_random, "cosine", {}),
    ]
    for metric, value, unit, config in figures:
        if value is not None:
            yield Result(metric, value, 0.0, 1, found.selected, seconds, config, unit)


def quality(subject: Subject) -> Timed[Quality]:
    started = time.monotonic()
    oracle = set(subject.evaluation.oracle or ())
    found = coreset_quality(subject.settings.output, oracle)
    if not found.oracle_images:
        raise CurateError("evaluate.oracle: no image of the open set has any of these labels")
    return found, round(time.monotonic() - started, 2)
