"""The ledger: what is in it is what was done, whatever became of the driver or of files since."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import CurateError
from curate.runfiles import ledger as ledgers
from curate.runfiles import shards
from curate.runfiles.files import RunFiles
from curate.runfiles.ledger import Ledger, PartRecord, UnitRecord, unit_of
from curate.runfiles.plan import PlannedUnit
from curate.runfiles.shards import IMAGE_SCHEMA, REJECT_SCHEMA
from curate.sources import Unit

PARTS = [(4, 0), (3, 2), (0, 1)]  # images embedded and rejected of each part of a unit


def write_part(files: RunFiles, unit: int, part: int, last: bool) -> PartRecord:
    """As an actor leaves it."""
    embedded, rejected = PARTS[part]
    rows = [{"key": f"{unit}/{part}/{row}", "uri": "a.tar"} for row in range(embedded)]
    images = pa.Table.from_pylist(rows, IMAGE_SCHEMA)
    table = shards.table_of(images, np.ones((embedded, 4), np.float16) / 2)
    if rejected:
        refused = pa.Table.from_pylist(
            [{"key": str(row)} for row in range(rejected)], REJECT_SCHEMA
        )
        shards.write_parquet(files.rejects(unit, part), refused)
    note = {"unit": unit, "part": part, "last": last, "failed": None}
    note |= {"seen": embedded + rejected, "embedded": embedded, "rejected": rejected}
    uri = files.shard("open", unit, part)
    return PartRecord(**note, bytes=shards.write_arrow(uri, shards.with_note(table, **note)))


@pytest.fixture
def written(tmp_path: Path) -> tuple[RunFiles, list[PlannedUnit], list[UnitRecord]]:
    """Three units of three parts each."""
    files = RunFiles(str(tmp_path / "run"))
    units = [PlannedUnit(n, "open", "tars", Unit("a.tar")) for n in range(3)]
    records = []
    for unit in units:
        record = unit_of([write_part(files, unit.number, part, part == 2) for part in range(3)])
        assert record is not None
        records.append(record)
    return files, units, records


@given(st.permutations(range(4)), st.integers(0, 3))
def test_a_unit_is_whole_when_all_its_parts_have_come(order: list[int], missing: int) -> None:
    parts = [PartRecord(5, n, n == 3, 2, 2, 0, 100 + n, seconds=n) for n in order]
    record = unit_of(parts)
    assert record is not None and (record.unit, record.seen, record.seconds) == (5, 8, 6)
    assert [shard.bytes for shard in record.shards] == [100, 101, 102, 103]
    assert unit_of([part for part in parts if part.part != missing]) is None


def test_what_was_added_is_read_again(written) -> None:
    files, _, records = written
    with Ledger(files, {}) as ledger:
        for record in reversed(records):
            ledger.add(record)
    assert Ledger.read(files).records == {record.unit: record for record in records}
    assert len(list(Path(files.ledger).iterdir())) == 1
    table = pq.read_table(files.ledger)
    assert table["unit"].to_pylist() == [0, 1, 2] and table["seen"].to_pylist() == [10] * 3


def test_it_is_written_while_embedding(written, monkeypatch) -> None:
    """And what a driver that died had written counts, whatever it wrote twice."""
    files, _, records = written
    monkeypatch.setattr(ledgers, "WRITE_EVERY_S", 0.0)
    ledger = Ledger(files, {})
    for record in records[:2]:
        ledger.add(record)
        assert Ledger.read(files).records[record.unit] == record
    ledger.add(records[1])
    assert Ledger.read(files).records == {0: records[0], 1: records[1]}


def test_nobody_opens_a_shard_that_the_ledger_knows(written, monkeypatch) -> None:
    files, units, records = written
    with Ledger(files, {}) as ledger:
        for record in records:
            ledger.add(record)
    monkeypatch.setattr(
        ledgers, "over_tasks", lambda task, items, *rest: [] if not items else 1 / 0
    )
    assert Ledger.verified(files, units).records == {record.unit: record for record in records}


def test_units_done_since_its_last_file_are_found_by_their_shards(written, ray_session) -> None:
    files, units, records = written
    with Ledger(files, {}) as ledger:
        ledger.add(records[0])
    found = Ledger.verified(files, units).records
    assert found == {record.unit: record for record in records}
    with Ledger.verified(files, units):
        pass  # nothing is left to embed
    assert Ledger.read(files).records.keys() == {0, 1, 2}
    Path(files.shard("open", 2, 1)).unlink()  # as if it had not come yet
    assert Ledger.verified(files, units).records.keys() == {0, 1}


def test_a_shard_that_is_gone_or_another_is_not_taken_for_done(written, ray_session) -> None:
    files, units, records = written
    with Ledger(files, {}) as ledger:
        for record in records:
            ledger.add(record)
    Path(files.shard("open", 1, 0)).unlink()
    assert Ledger.verified(files, units).records.keys() == {0, 2}
    Path(files.shard("open", 2, 1)).write_bytes(b"nothing")
    with pytest.raises(CurateError, match=r"part-000002-0001\.arrow: not a shard of this run"):
        Ledger.verified(files, units)


def test_a_reject_that_is_gone_is_missed(written, ray_session) -> None:
    files, units, _ = written
    Path(files.rejects(0, 1)).unlink()
    record = Ledger.verified(files, units).records[0]
    assert record.seen == 10 and record.embedded + record.rejected == 8


def test_a_damaged_ledger_is_named(written) -> None:
    files, units, _ = written
    Path(files.ledger).mkdir()
    (Path(files.ledger) / "part-000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(CurateError, match=r"part-000000\.parquet: damaged: .*; remove it"):
        Ledger.verified(files, units)
