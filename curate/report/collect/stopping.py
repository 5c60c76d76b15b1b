"""The objective round by round, and what other thresholds would have selected."""

from __future__ import annotations

from curate.coreset import recut
from curate.errors import CurateError
from curate.report.collect import files
from curate.report.collect.sampling import spread
from curate.report.collect.subject import Subject
from curate.runfiles.run import Run

POINTS = 400  # of the curve
SWEPT_IMAGES = 10_000_000  # of an open set on which other thresholds are tried


def curve(run: Run) -> list[tuple[int, float, int]]:
    """(round, f(S_t), images so far) of at most POINTS rounds, the reference round among them."""
    rounds = files.read_rounds(run.files)
    places = {*spread(len(rounds), POINTS), run.settings.coreset.reference_round - 1}
    return [rounds[place] for place in sorted(places) if place < len(rounds)]


def cuts(subject: Subject) -> list[recut.Cut]:
    """Raises CurateError for an open set that is too large to try them on."""
    if subject.run.settings.coreset.method != "simcore":
        return []
    if subject.embedded.open_images > SWEPT_IMAGES:
        raise CurateError(
            f"not tried on an open set of more than {SWEPT_IMAGES:,} images; "
            "`curate recut RUN --tau …` tries one"
        )
    return recut.sweep(subject.run)
