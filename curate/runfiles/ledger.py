"""The ledger of a store: one row a unit of what came of it, written while embedding. Nobody opens
shards to count.

A unit is done when all its shards lie there. The ledger's newest rows may be lost with the driver;
a shard also says in its own schema what it is part of, so that units done since are found again.
Every driver writes files of its own; where two speak of one unit they say the same.
"""

from __future__ import annotations

import io
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curate import storage
from curate.cluster import over_tasks
from curate.errors import CurateError, one_line
from curate.runfiles import shards
from curate.runfiles.files import EmbeddingFiles

WRITE_EVERY_S = 5.0
READ_AT_ONCE = 32  # files of a ledger
GROUPS_AT_ONCE = 16  # folders of shards that one task looks into

SCHEMA = pa.schema(
    {
        "unit": pa.string(),  # its digest
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

    unit: str
    seen: int
    embedded: int
    rejected: int
    seconds: float
    shards: list[ShardRecord]
    failed: str | None = None


@dataclass(frozen=True)
class PartRecord:
    """What came of one part of a unit: what its shard says of itself, and the shard's size."""

    unit: str
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
    """What is done of the units of one encoder. As a context it may be added to, and is written
    every few seconds, and at the end."""

    def __init__(self, files: EmbeddingFiles, table: pa.Table) -> None:
        """table: rows as in SCHEMA, each unit once."""
        self.files, self.table = files, table
        self.added: list[UnitRecord] = []
        self.unwritten = 0  # the last so many of these
        self.written = time.monotonic()
        self.name = uuid.uuid4().hex[:12]  # of this driver's files

    @staticmethod
    def read(files: EmbeddingFiles, wanted: pa.ChunkedArray | None = None) -> Ledger:
        """As it was written; of all units, or those `wanted` by their digests."""
        table = _read(files.ledger, wanted)
        return Ledger(files, table.filter(first_of_each(table["unit"])))

    @staticmethod
    def verified(files: EmbeddingFiles, wanted: pa.ChunkedArray) -> Ledger:
        """What is done of the wanted units, as the files stand: rows whose shards are there, in the
        sizes that they had, and units that no row speaks of, by their shards' own words.

        Raises CurateError for a shard that is none of this store's.
        """
        ledger = Ledger.read(files, wanted)
        lost: list[str] = []
        found: list[UnitRecord] = []
        for group in over_tasks(_look, ledger._by_group(wanted), GROUPS_AT_ONCE, files):
            lost += group[0]
            found += group[1]
        if lost:
            gone = pc.is_in(ledger.table["unit"], value_set=pa.array(lost, pa.string()))
            ledger.table = ledger.table.filter(pc.invert(gone))
        ledger.added, ledger.unwritten = found, len(found)
        return ledger

    def _by_group(self, wanted: pa.ChunkedArray) -> list[pa.Table]:
        """(unit, its shards, null where it is not written), a table a folder of shards."""
        units = pc.unique(wanted)
        units = units.take(pc.array_sort_indices(units))
        places = pc.index_in(units, value_set=self.table["unit"])
        table = pa.table({"unit": units, "shards": self.table["shards"].take(places)})
        names = pc.utf8_slice_codeunits(units, 0, 2)
        starts = pc.index_in(pc.unique(names), value_set=names).to_pylist()
        ends = [*starts[1:], len(units)]
        return [table.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]

    def rows_of(self, digests: pa.ChunkedArray) -> tuple[pa.Table, NDArray[np.int64]]:
        """(table, its row for each of the digests, -1 where the unit is not done)."""
        table = pa.concat_tables([self.table, _to_table(self.added)])
        places = pc.index_in(digests, value_set=table["unit"])
        return table, np.asarray(pc.fill_null(places, -1).to_numpy(), np.int64)

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
        self.added.append(record)
        self.unwritten += 1
        if time.monotonic() - self.written > WRITE_EVERY_S:
            self._append()

    def _append(self) -> None:
        number = len(self._own())
        _write(self._file(number), self.added[len(self.added) - self.unwritten :])
        self.unwritten, self.written = 0, time.monotonic()

    def _compact(self) -> None:
        """This driver's files into one; those of others, who may be writing, stay."""
        earlier = self._own()
        if self.unwritten or len(earlier) > 1:
            _write(self._file(len(earlier)), self.added)
            for name in earlier:
                storage.remove_tree(storage.join(self.files.ledger, name))
            self.unwritten = 0

    def _own(self) -> list[str]:
        names = storage.names_in(self.files.ledger)
        return sorted(name for name in names if name.startswith(self.name))

    def _file(self, number: int) -> str:
        return storage.join(self.files.ledger, f"{self.name}-{number:06d}.parquet")


@ray.remote
def _look(groups: list[pa.Table], files: EmbeddingFiles) -> tuple[list[str], list[UnitRecord]]:
    """Units whose shards are not as they were written, and units found by their shards."""
    lost: list[str] = []
    found: list[UnitRecord] = []
    for group in groups:
        there: dict[str, dict[int, int]] = defaultdict(dict)
        folder = files.group(group["unit"][0].as_py()[:2])
        for name, size in storage.sizes_in(folder).items():
            digest, _, part = name.partition(".")[0].partition("-")
            if part.isdigit():
                there[digest][int(part)] = size
        for row in group.to_pylist():
            digest, written = row["unit"], row["shards"]
            sizes = there.get(digest, {})
            if written is not None:
                if {n: part["bytes"] for n, part in enumerate(written)} == sizes:
                    continue
                lost.append(digest)
            record = unit_of([_recovered(files, digest, part, n) for part, n in sizes.items()])
            if record is not None:
                found.append(record)
    return lost, found


def _recovered(files: EmbeddingFiles, digest: str, part: int, size: int) -> PartRecord:
    uri = files.shard(digest, part)
    try:
        return PartRecord(**{**shards.read_note(uri), "bytes": size})
    except (KeyError, TypeError) as error:
        raise shards.not_of_this_run(uri, error) from error


def _to_table(records: Iterable[UnitRecord]) -> pa.Table:
    return pa.Table.from_pylist([asdict(record) for record in records], SCHEMA)


def _write(uri: str, records: list[UnitRecord]) -> None:
    shards.write_parquet(uri, _to_table(records))


def first_of_each(units: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which of them are the first of their value."""
    places = pc.index_in(units, value_set=units)
    return pc.equal(places, pa.array(np.arange(len(units)), pa.int32()))


def _read(folder: str, wanted: pa.ChunkedArray | None) -> pa.Table:
    def of(name: str) -> pa.Table:
        uri = storage.join(folder, name)
        try:
            table = pq.read_table(io.BytesIO(storage.read_bytes(uri)), schema=SCHEMA)
        except FileNotFoundError:  # another driver has put it together with others of its own
            return SCHEMA.empty_table()
        except (pa.ArrowException, OSError) as error:
            raise CurateError(
                f"{uri}: damaged: {one_line(error)}; remove it and run again"
            ) from error
        if wanted is None:
            return table
        return table.filter(pc.is_in(table["unit"], value_set=pc.unique(wanted)))

    names = sorted(storage.names_in(folder))
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        return pa.concat_tables([SCHEMA.empty_table(), *pool.map(of, names)])
