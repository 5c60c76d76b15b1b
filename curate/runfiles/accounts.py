"""Every image seen is accounted for: what the ledger says, added up and checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import CurateError
from curate.runfiles.ledger import Ledger
from curate.runfiles.plan import Plan

What = Literal["seen", "embedded", "rejected", "selected"]
SETS = ("target", "open", "exclude")


@dataclass(frozen=True)
class SourceCounts:
    """Images of one source; each seen is embedded or rejected."""

    seen: int = 0
    embedded: int = 0
    rejected: int = 0
    selected: int = 0


@dataclass(frozen=True)
class Counts:
    """By source, in the order of the plan."""

    target: dict[str, SourceCounts]
    open: dict[str, SourceCounts]
    exclude: dict[str, SourceCounts] = field(default_factory=dict)

    def of_set(self, name: str) -> dict[str, SourceCounts]:
        return {"target": self.target, "open": self.open, "exclude": self.exclude}[name]

    def total(self, set_name: str, what: What) -> int:
        return sum(getattr(row, what) for row in self.of_set(set_name).values())

    def selecting(self, images: dict[str, int]) -> Counts:
        """The same with the images that were selected of each open source."""
        opened = {
            name: replace(row, selected=images.get(name, 0)) for name, row in self.open.items()
        }
        return replace(self, open=opened)

    def to_json(self) -> dict[str, dict[str, dict[str, int]]]:
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, dict[str, dict[str, int]]]) -> Counts:
        """Raises KeyError or TypeError for what `to_json` does not make."""
        earlier = {"exclude": {}, **document}  # runs of before knew none
        sets = (
            {source: SourceCounts(**row) for source, row in earlier[name].items()} for name in SETS
        )
        return Counts(*sets)

    def rows(self) -> Iterator[tuple[str, SourceCounts]]:
        yield from self.target.items()
        yield from self.open.items()
        yield from self.exclude.items()


def by_source(plan: Plan, ledger: Ledger) -> Counts:
    """Add up the units. Raises CurateError for one that is not done, or has lost an image."""
    table, rows = ledger.rows_of(plan.digests)
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        raise CurateError(
            f"{plan.files.folder}: {len(missing)} of {len(plan)} units are not embedded yet, the "
            f"first of source {plan.table['source'][int(missing[0])]}; run `curate run` again"
        )
    done = {name: table[name].to_numpy()[rows] for name in ("seen", "embedded", "rejected")}
    seen = done["seen"]
    planned = pc.fill_null(plan.table["images"], pa.array(seen)).to_numpy()
    wrong = np.flatnonzero((seen != done["embedded"] + done["rejected"]) | (planned != seen))
    if len(wrong):
        at = int(wrong[0])
        raise CurateError(
            f"a unit of source {plan.table['source'][at]}: {planned[at]} planned and {seen[at]} "
            f"seen, {done['embedded'][at]} embedded, {done['rejected'][at]} rejected do not agree; "
            f"remove {ledger.files.shard(plan.digests[at].as_py(), 0)} and run again"
        )
    counts = Counts({}, {})
    sums = plan.table.select(["set", "source"])
    for name, values in done.items():
        sums = sums.append_column(name, pa.array(values))
    sums = sums.group_by(["set", "source"], use_threads=False)
    for row in sums.aggregate([(name, "sum") for name in done]).to_pylist():
        figures = SourceCounts(*(row[f"{name}_sum"] for name in done))
        counts.of_set(row["set"])[row["source"]] = figures
    return counts


def check_rejected(counts: Counts, max_fraction: float, rejected_uri: str) -> None:
    """Raises CurateError where too many images were rejected, or a set has none left."""
    for set_name in SETS:
        if set_name == "exclude" and not counts.exclude:
            continue
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
