"""The ledger: one row a unit of what came of it, written while embedding. Nobody opens shards to
count.

A unit is done when all its shards lie there. The ledger's newest rows may be lost with the driver;
a shard also says in its own schema what it is part of, so that units done since are found again.
"""

from __future__ import annotations

import io
import time
from dataclasses import asdict, dataclass
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from curate import storage
from curate.cluster import over_tasks
from curate.errors import CurateError, one_line
from curate.runfiles import shards
from curate.runfiles.files import RunFiles
from curate.runfiles.plan import PlannedUnit

WRITE_EVERY_S = 5.0
READ_AT_ONCE = 256  # units whose shards one task asks what they are

SCHEMA = pa.schema(
    {
        "unit": pa.int64(),
        "seen": pa.int64(),
        "embedded": pa.int64(),
        "rejected": pa.int64(),
        "seconds": pa.float64(),
        "shards": pa.list_(pa.struct({"rows": pa.int64(), "bytes": pa.int64()})),
        "failed": pa.string(),
    }
)


@dataclass(frozen=True)
class ShardRecord:
    """One shard file of a unit. One without rows is there too: it says that its part is done."""

    rows: int
    bytes: int


@dataclass(frozen=True)
class UnitRecord:
    """seen: images that the reader met, each embedded or rejected; seconds: of reading and of
    embedding, added up; shards: in the order of the unit's images; failed: why reading it ended
    early, where it did.
    """

    unit: int
    seen: int
    embedded: int
    rejected: int
    seconds: float
    shards: list[ShardRecord]
    failed: str | None = None


@dataclass(frozen=True)
class PartRecord:
    """What came of one part of a unit: what its shard says of itself, and the shard's size."""

    unit: int
    part: int
    last: bool  # of its unit
    seen: int
    embedded: int
    rejected: int
    bytes: int
    failed: str | None = None
    seconds: float = 0.0  # which shards do not say


def unit_of(parts: list[PartRecord]) -> UnitRecord | None:
    """The unit that the parts make up, in any order; None while one is missing."""
    ordered = sorted(parts, key=lambda one: one.part)
    last = next((one.part for one in ordered if one.last), None)
    if last is None or [one.part for one in ordered[: last + 1]] != list(range(last + 1)):
        return None
    ordered = ordered[: last + 1]
    return UnitRecord(
        unit=ordered[0].unit,
        seen=sum(one.seen for one in ordered),
        embedded=sum(one.embedded for one in ordered),
        rejected=sum(one.rejected for one in ordered),
        seconds=round(sum(one.seconds for one in ordered), 3),
        shards=[ShardRecord(one.embedded, one.bytes) for one in ordered],
        failed=next((one.failed for one in ordered if one.failed), None),
    )


class Ledger:
    """records: of all units that are done, by number. As a context it may be added to, and is
    written every few seconds, and at the end."""

    def __init__(self, files: RunFiles, records: dict[int, UnitRecord]) -> None:
        self.files, self.records = files, records
        self.unwritten: list[UnitRecord] = []
        self.written = time.monotonic()

    @staticmethod
    def read(files: RunFiles) -> Ledger:
        return Ledger(files, {record.unit: record for record in _read(files.ledger)})

    @staticmethod
    def verified(files: RunFiles, units: list[PlannedUnit]) -> Ledger:
        """What is done of the units, as the files stand.

        Raises CurateError for a shard that is none of this run's.
        """
        there = {name: storage.sizes_in(files.shards(name)) for name in ("target", "open")}
        rejects = storage.sizes_in(files.rejected).keys()
        written = Ledger.read(files).records
        records: dict[int, UnitRecord] = {}
        unknown: list[tuple[PlannedUnit, dict[int, int]]] = []
        parts = {name: _by_unit(sizes) for name, sizes in there.items()}
        refused = _by_unit(dict.fromkeys(rejects, 0))
        for unit in units:
            sizes = parts[unit.set].get(unit.number, {})
            record = written.get(unit.number)
            if record is not None and _is_there(record, sizes, refused.get(unit.number, {})):
                records[unit.number] = record
            elif sizes:
                unknown.append((unit, sizes))
        ledger = Ledger(files, records)
        for group in over_tasks(_recover, unknown, READ_AT_ONCE, files, refused):
            records |= {record.unit: record for record in group}
            ledger.unwritten += group  # who opens the run later trusts what is written
        return ledger

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._compact()
        elif self.unwritten:
            self._append()

    def add(self, record: UnitRecord) -> None:
        self.records[record.unit] = record
        self.unwritten.append(record)
        if time.monotonic() - self.written > WRITE_EVERY_S:
            self._append()

    def _append(self) -> None:
        _write(storage.join(self.files.ledger, _next_name(self.files.ledger)), self.unwritten)
        self.unwritten, self.written = [], time.monotonic()

    def _compact(self) -> None:
        """All in one file; later files count where two speak of one unit."""
        earlier = sorted(storage.names_in(self.files.ledger))
        if not self.unwritten and len(earlier) == 1:
            return
        name = _next_name(self.files.ledger)
        _write(
            storage.join(self.files.ledger, name), [self.records[n] for n in sorted(self.records)]
        )
        for old in earlier:
            storage.remove_tree(storage.join(self.files.ledger, old))


def _is_there(record: UnitRecord, sizes: dict[int, int], refused: dict[int, int]) -> bool:
    expected = {part: shard.bytes for part, shard in enumerate(record.shards)}
    return expected == sizes and bool(refused) == bool(record.rejected)


def _by_unit(sizes: dict[str, int]) -> dict[int, dict[int, int]]:
    """Sizes of part-UUUUUU-PPPP files → unit → part → size."""
    found: dict[int, dict[int, int]] = {}
    for name, size in sizes.items():
        words = name.partition(".")[0].split("-")
        if len(words) == 3 and words[0] == "part":
            found.setdefault(int(words[1]), {})[int(words[2])] = size
    return found


@ray.remote
def _recover(
    group: list[tuple[PlannedUnit, dict[int, int]]],
    files: RunFiles,
    refused: dict[int, dict[int, int]],
) -> list[UnitRecord]:
    """Records of units that are whole, from their shards' own words."""
    found = []
    for unit, sizes in group:
        parts = []
        for part, size in sizes.items():
            uri = files.shard(unit.set, unit.number, part)
            try:
                note = shards.read_note(uri)
                # A reject that was written and is gone is lost, and the accounts will say so
                kept = note["rejected"] if part in refused.get(unit.number, {}) else 0
                parts.append(PartRecord(**{**note, "bytes": size, "rejected": kept}))
            except (KeyError, TypeError) as error:
                raise shards.not_of_this_run(uri, error) from error
        record = unit_of(parts)
        if record is not None:
            found.append(record)
    return found


def _next_name(folder: str) -> str:
    numbers = [int(name[5:11]) for name in storage.names_in(folder) if name.startswith("part-")]
    return f"part-{max(numbers, default=-1) + 1:06d}.parquet"


def _write(uri: str, records: list[UnitRecord]) -> None:
    table = pa.Table.from_pylist([asdict(record) for record in records], SCHEMA)
    shards.write_parquet(uri, table)


def _read(folder: str) -> list[UnitRecord]:
    """In the order of the files."""
    found: list[UnitRecord] = []
    for name in sorted(storage.names_in(folder)):
        uri = storage.join(folder, name)
        try:
            table = pq.read_table(io.BytesIO(storage.read_bytes(uri)), schema=SCHEMA)
        except (pa.ArrowException, OSError) as error:
            raise CurateError(
                f"{uri}: damaged: {one_line(error)}; remove it and run again"
            ) from error
        for row in table.to_pylist():
            row["shards"] = [ShardRecord(**shard) for shard in row["shards"]]
            found.append(UnitRecord(**row))
    return found
