"""Every image seen is accounted for: what the units' files say, added up and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from curate.errors import CurateError
from curate.runfiles.plan import PlannedUnit

# set → source → seen, embedded, rejected, selected
Counts = dict[str, dict[str, dict[str, int]]]


@dataclass(frozen=True)
class UnitCount:
    """seen: items that the reader met; each must be embedded or rejected."""

    seen: int
    embedded: int
    rejected: int


def by_source(units: list[PlannedUnit], found: list[UnitCount], output: str) -> Counts:
    """Add up the units. Raises CurateError for one of which an image is lost."""
    counts: Counts = {"target": {}, "open": {}}
    for unit, unit_count in zip(units, found, strict=True):
        planned = unit.unit.images
        whole = unit_count.seen == unit_count.embedded + unit_count.rejected
        if not whole or planned not in (None, unit_count.seen):
            raise CurateError(
                f"unit {unit.number} of source {unit.source}: {planned} planned and {unit_count} "
                f"do not agree; remove {unit.embeddings_uri(output)} and run again"
            )
        row = counts[unit.set].setdefault(
            unit.source, {"seen": 0, "embedded": 0, "rejected": 0, "selected": 0}
        )
        for name in ("seen", "embedded", "rejected"):
            row[name] += getattr(unit_count, name)
    return counts


def total(counts: Counts, set_name: str, what: str) -> int:
    return sum(row[what] for row in counts[set_name].values())


def check_rejected(counts: Counts, max_fraction: float, rejected_uri: str) -> None:
    """Raises CurateError where too many images were rejected, or a set has none left."""
    for set_name in counts:
        seen, rejected = total(counts, set_name, "seen"), total(counts, set_name, "rejected")
        if rejected > max_fraction * seen:
            raise CurateError(
                f"images.max_rejected_fraction={max_fraction}: {rejected} of {seen} images of the "
                f"{set_name} set were rejected; {rejected_uri} says why"
            )
        if seen == rejected:
            raise CurateError(f"{set_name}: no image could be embedded; {rejected_uri} says why")


def check(summary: dict[str, Any]) -> None:
    """The invariant of every run, on the figures as they are written."""
    for rows in summary["sources"].values():
        for name, row in rows.items():
            if row["seen"] != row["embedded"] + row["rejected"]:
                raise CurateError(f"source {name}: {row}: seen is not embedded + rejected")
            if row["selected"] > row["embedded"]:
                raise CurateError(f"source {name}: {row}: more selected than embedded")
    if total(summary["sources"], "open", "selected") != summary["selected"]:
        raise CurateError(f"selected by source do not add up to {summary['selected']}")
