"""Every image seen is accounted for: what the ledger says, added up and checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal

from curate.errors import CurateError
from curate.runfiles.files import RunFiles
from curate.runfiles.ledger import UnitRecord
from curate.runfiles.plan import PlannedUnit

What = Literal["seen", "embedded", "rejected", "selected"]


@dataclass(frozen=True)
class SourceCounts:
    """Images of one source; each seen is embedded or rejected."""

    seen: int = 0
    embedded: int = 0
    rejected: int = 0
    selected: int = 0

    def plus(self, record: UnitRecord) -> SourceCounts:
        return replace(
            self,
            seen=self.seen + record.seen,
            embedded=self.embedded + record.embedded,
            rejected=self.rejected + record.rejected,
        )


@dataclass(frozen=True)
class Counts:
    """By source, in the order of the plan."""

    target: dict[str, SourceCounts]
    open: dict[str, SourceCounts]

    def of_set(self, name: str) -> dict[str, SourceCounts]:
        return self.target if name == "target" else self.open

    def total(self, set_name: str, what: What) -> int:
        return sum(getattr(row, what) for row in self.of_set(set_name).values())

    def selecting(self, images: dict[str, int]) -> Counts:
        """The same with the images that were selected of each open source."""
        opened = {
            name: replace(row, selected=images.get(name, 0)) for name, row in self.open.items()
        }
        return Counts(self.target, opened)

    def to_json(self) -> dict[str, dict[str, dict[str, int]]]:
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, dict[str, dict[str, int]]]) -> Counts:
        """Raises KeyError or TypeError for what `to_json` does not make."""
        target, opened = (
            {source: SourceCounts(**row) for source, row in document[name].items()}
            for name in ("target", "open")
        )
        return Counts(target, opened)

    def rows(self) -> Iterator[tuple[str, SourceCounts]]:
        yield from self.target.items()
        yield from self.open.items()


def by_source(units: list[PlannedUnit], records: dict[int, UnitRecord], files: RunFiles) -> Counts:
    """Add up the units. Raises CurateError for one that is not done, or has lost an image."""
    counts = Counts({}, {})
    for unit in units:
        record = records.get(unit.number)
        if record is None:
            raise CurateError(
                f"{files.folder}: unit {unit.number} of source {unit.source} is not embedded yet; "
                "run `curate run` again"
            )
        planned = unit.unit.images
        whole = record.seen == record.embedded + record.rejected
        if not whole or planned not in (None, record.seen):
            raise CurateError(
                f"unit {unit.number} of source {unit.source}: {planned} planned and {record.seen} "
                f"seen, {record.embedded} embedded, {record.rejected} rejected do not agree; "
                f"remove {files.shard(unit.set, unit.number, 0)} and run again"
            )
        rows = counts.of_set(unit.set)
        rows[unit.source] = rows.get(unit.source, SourceCounts()).plus(record)
    return counts


def check_rejected(counts: Counts, max_fraction: float, rejected_uri: str) -> None:
    """Raises CurateError where too many images were rejected, or a set has none left."""
    for set_name in ("target", "open"):
        seen, rejected = counts.total(set_name, "seen"), counts.total(set_name, "rejected")
        if rejected > max_fraction * seen:
            raise CurateError(
                f"images.max_rejected_fraction={max_fraction}: {rejected} of {seen} images of the "
                f"{set_name} set were rejected; {rejected_uri} says why"
            )
        if seen == rejected:
            raise CurateError(f"{set_name}: no image could be embedded; {rejected_uri} says why")


def check(counts: Counts, selected: int) -> None:
    """The invariant of every run, on the figures as they are written."""
    for name, row in counts.rows():
        if row.seen != row.embedded + row.rejected:
            raise CurateError(f"source {name}: {row}: seen is not embedded + rejected")
        if row.selected > row.embedded:
            raise CurateError(f"source {name}: {row}: more selected than embedded")
    if counts.total("open", "selected") != selected:
        raise CurateError(f"selected by source do not add up to {selected}")
