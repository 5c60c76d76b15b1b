"""The ledger: what is in it is what was done, whatever became of the driver or of files since."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import CurateError
from curate.runfiles import ledger as ledgers
from curate.runfiles import shards
from curate.runfiles.files import EmbeddingFiles
from curate.runfiles.ledger import Ledger, PartRecord, UnitRecord, unit_of
from curate.runfiles.shards import IMAGE_SCHEMA, Reject

PARTS = [(4, 0), (3, 2), (0, 1)]  # images embedded and rejected of each part of a unit
UNITS = ["aa00", "aa11", "bb22"]
WANTED = pa.chunked_array([UNITS])


def write_part(files: EmbeddingFiles, unit: str, part: int, last: bool) -> PartRecord:
    """As an actor leaves it."""
    embedded, rejected = PARTS[part]
    rows = [{"key": f"{unit}/{part}/{row}", "uri": "a.tar"} for row in range(embedded)]
    images = pa.Table.from_pylist(rows, IMAGE_SCHEMA)
    table = shards.table_of(images, np.ones((embedded, 4), np.float16) / 2)
    rejects = [Reject("tars", str(row), "a.tar", "decode", "bad") for row in range(rejected)]
    note = {"unit": unit, "part": part, "last": last, "failed": None}
    note |= {"seen": embedded + rejected, "embedded": embedded, "rejected": rejected}
    uri = files.shard(unit, part)
    size = shards.write_arrow(uri, shards.with_note(table, rejects, **note))
    return PartRecord(**note, bytes=size)


@pytest.fixture
def written(tmp_path: Path) -> tuple[EmbeddingFiles, list[UnitRecord]]:
    """Three units of three parts each."""
    files = EmbeddingFiles(str(tmp_path / "store"))
    records = []
    for unit in UNITS:
        record = unit_of([write_part(files, unit, part, part == 2) for part in range(3)])
        assert record is not None
        records.append(record)
    return files, records


def add_all(files: EmbeddingFiles, records: list[UnitRecord]) -> None:
    with Ledger.read(files) as ledger:
        for record in records:
            ledger.add(record)


def records_of(ledger: Ledger) -> dict[str, UnitRecord]:
    """What it says is done, by unit."""
    table, rows = ledger.rows_of(WANTED)
    found = {}
    for unit, row in zip(UNITS, rows.tolist(), strict=True):
        if row >= 0:
            [record] = table.slice(row, 1).to_pylist()
            parts = [ledgers.ShardRecord(**part) for part in record.pop("shards")]
            found[unit] = UnitRecord(**record, shards=parts)
    return found


@given(st.permutations(range(4)), st.integers(0, 3))
def test_a_unit_is_whole_when_all_its_parts_have_come(order: list[int], missing: int) -> None:
    parts = [PartRecord("aa", n, n == 3, 2, 2, 0, 100 + n, seconds=n) for n in order]
    record = unit_of(parts)
    assert record is not None and (record.unit, record.seen, record.seconds) == ("aa", 8, 6)
    assert [shard.bytes for shard in record.shards] == [100, 101, 102, 103]
    assert unit_of([part for part in parts if part.part != missing]) is None


def test_what_was_added_is_read_again(written) -> None:
    files, records = written
    add_all(files, records[::-1])
    assert records_of(Ledger.read(files)) == {record.unit: record for record in records}
    assert len(list(Path(files.ledger).iterdir())) == 1
    assert records_of(Ledger.read(files, WANTED.slice(1))).keys() == set(UNITS[1:])


def test_it_is_written_while_embedding(written, monkeypatch) -> None:
    """And what a driver that died had written counts, whatever it wrote twice."""
    files, records = written
    monkeypatch.setattr(ledgers, "WRITE_EVERY_S", 0.0)
    ledger = Ledger.read(files)
    for record in records[:2]:
        ledger.add(record)
        assert records_of(Ledger.read(files))[record.unit] == record
    ledger.add(records[1])
    again = Ledger.read(files)
    assert records_of(again) == {record.unit: record for record in records[:2]}
    assert len(again.table) == 2, "each unit once"


def test_two_drivers_write_beside_each_other(written) -> None:
    files, records = written
    with Ledger.read(files) as one, Ledger.read(files) as other:
        one.add(records[0])
        other.add(records[1])
        other.add(records[2])
    assert len(list(Path(files.ledger).iterdir())) == 2
    assert records_of(Ledger.read(files)).keys() == set(UNITS)


def test_nobody_opens_a_shard_that_the_ledger_knows(written, monkeypatch, ray_session) -> None:
    files, records = written
    add_all(files, records)
    for record in records:  # of the same size, and no shard at all
        for part, shard in enumerate(record.shards):
            Path(files.shard(record.unit, part)).write_bytes(b"x" * shard.bytes)
    ledger = Ledger.verified(files, WANTED)
    assert records_of(ledger) == {record.unit: record for record in records}
    assert not ledger.added


def test_units_done_since_its_last_file_are_found_by_their_shards(written, ray_session) -> None:
    files, records = written
    add_all(files, records[:1])
    with Ledger.verified(files, WANTED) as ledger:
        assert records_of(ledger) == {record.unit: record for record in records}
    assert records_of(Ledger.read(files)).keys() == set(UNITS), "who opens it later trusts it"


def test_a_unit_without_one_of_its_shards_is_not_done(written, ray_session) -> None:
    files, _ = written
    Path(files.shard("bb22", 1)).unlink()  # as if it had not come yet
    assert records_of(Ledger.verified(files, WANTED)).keys() == {"aa00", "aa11"}


def test_a_shard_that_is_gone_or_another_is_not_taken_for_done(written, ray_session) -> None:
    files, records = written
    add_all(files, records)
    Path(files.shard("aa11", 0)).unlink()
    assert records_of(Ledger.verified(files, WANTED)).keys() == {"aa00", "bb22"}
    Path(files.shard("bb22", 1)).write_bytes(b"nothing")
    with pytest.raises(CurateError, match=r"bb22-0001\.arrow: not a shard of this run"):
        Ledger.verified(files, WANTED)


def test_rejects_are_part_of_the_shard(written) -> None:
    files, _ = written
    found = shards.read_rejects(files.shard("aa00", 1), "another")
    assert [(one.source, one.key, one.reason) for one in found] == [
        ("another", "0", "bad"),
        ("another", "1", "bad"),
    ]


def test_a_damaged_ledger_is_named(written) -> None:
    files, _ = written
    Path(files.ledger).mkdir()
    (Path(files.ledger) / "part-000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(CurateError, match=r"part-000000\.parquet: damaged: .*; remove it"):
        Ledger.read(files)
