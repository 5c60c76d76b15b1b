"""Rejected images with their reasons, and what can still be seen of them."""

from __future__ import annotations

from collections import Counter

from curate.report.collect import files
from curate.report.collect.files import Rejected
from curate.report.collect.settings import public
from curate.report.collect.subject import Subject
from curate.report.content import Reject, Rejects
from curate.settings import ImageFolderSettings, RunSettings, UrlListSettings

SHOWN = 100
REASONS = 20


def rejects(subject: Subject) -> Rejects | None:
    """None of a run that rejected nothing."""
    found = files.read_rejected(subject.run.files)
    if not found:
        return None
    seen = [one for one in found[:SHOWN] if _can_be_seen(one, subject.run.settings)]
    tiles = dict(zip(seen, subject.tiles.of_open([one.image for one in seen]), strict=True))
    shown = [
        Reject(one.source, one.key, one.stage, public(one.reason), tiles.get(one))
        for one in found[:SHOWN]
    ]
    reasons = Counter(public(one.reason) for one in found)
    return Rejects(shown, reasons.most_common(REASONS), len(found))


def _can_be_seen(one: Rejected, settings: RunSettings) -> bool:
    """Of a file of its own that could be read; where in an archive a reject lies is not written."""
    sources = {source.name: source for source in [settings.target, *settings.open]}
    single = isinstance(sources.get(one.source), ImageFolderSettings | UrlListSettings)
    return single and one.stage == "decode"
