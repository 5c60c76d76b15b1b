"""Rows and small columns of files of embeddings, without the embeddings."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from curate import storage
from curate.coreset.lists import ENTRY
from curate.coreset.stored import Stored, write_entries
from curate.errors import CurateError
from curate.runfiles import columns
from curate.runfiles.embeddings import read_embeddings
from curate.runfiles.shards import Shard

ROWS, WIDTH = 3000, 512  # 3 MB of embeddings


class Blocks(fsspec.spec.AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.cat_file(self.path, start, end))


class CountedFileSystem(MemoryFileSystem):
    """A remote filesystem that is read in blocks, and counts what it gives."""

    protocol = "counted"
    given = 0

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, **options)
        return Blocks(self, path, mode, options.get("block_size"), size=self.info(path)["size"])

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        data = super().cat_file(path, start, end)
        CountedFileSystem.given += len(data)
        return data


fsspec.register_implementation("counted", CountedFileSystem, clobber=True)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(columns, "BLOCK_BYTES", 4096)
    yield f"counted://{uuid.uuid4().hex}"
    CountedFileSystem.store.clear()


def table(rows: int = ROWS) -> pa.Table:
    flat = pa.array(np.zeros(rows * WIDTH, np.float16))
    return pa.table(
        {
            "key": [f"key {i}" for i in range(rows)],
            "label": [None if i % 3 else f"class{i % 5}" for i in range(rows)],
            "embedding": pa.FixedSizeListArray.from_arrays(flat, WIDTH),
        }
    )


def encoded(kind: str, rows: pa.Table, chunk: int | None = None) -> bytes:
    sink = io.BytesIO()
    if kind == "npy":
        np.save(sink, np.zeros((len(rows), WIDTH), np.float16))
    elif kind == "parquet":
        pq.write_table(rows, sink, use_dictionary=False, compression="none", row_group_size=chunk)
    else:
        make = pa.ipc.new_stream if kind == "stream.arrow" else pa.ipc.new_file
        with make(sink, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=chunk)
    return sink.getvalue()


@pytest.mark.parametrize("chunk", [ROWS, 700, 1000])
@pytest.mark.parametrize("kind", ["file.arrow", "stream.arrow", "npy", "parquet"])
def test_counting_reads_no_embeddings(folder: str, kind: str, chunk: int) -> None:
    uri, data = f"{folder}/a.{kind}", encoded(kind, table(), chunk)
    storage.write_bytes(uri, data)
    CountedFileSystem.given = 0
    assert columns.count_rows(uri) == ROWS
    assert 0 < CountedFileSystem.given < len(data) / 20


@pytest.mark.parametrize("kind", ["file.arrow", "parquet"])
def test_small_columns_are_read_alone(folder: str, kind: str) -> None:
    rows = table()
    uri, data = f"{folder}/a.{kind}", encoded(kind, rows, 1000)
    storage.write_bytes(uri, data)
    CountedFileSystem.given = 0
    assert columns.read(uri).equals(rows.drop_columns(["embedding"]))
    assert columns.read(uri, ["label", "no such"]).equals(rows.select(["label"]))
    assert 0 < CountedFileSystem.given < len(data) / 10


@pytest.mark.parametrize("kind", ["file.arrow", "stream.arrow", "parquet", "npy"])
@pytest.mark.parametrize("rows", [0, 5])
def test_a_remote_file_is_as_a_local_one(folder: str, kind: str, rows: int, tmp_path) -> None:
    for whole in (table(rows), table(rows).select(["embedding"])):
        data = encoded(kind, whole, 2)
        storage.write_bytes(f"{folder}/a.{kind}", data)
        (tmp_path / f"a.{kind}").write_bytes(data)
        there, here = f"{folder}/a.{kind}", str(tmp_path / f"a.{kind}")
        assert columns.count_rows(there) == columns.count_rows(here) == rows
        assert columns.read(there).equals(columns.read(here))
        assert len(columns.read(there)) == rows


@pytest.mark.parametrize("kind", ["file.arrow", "stream.arrow", "parquet", "npy"])
@pytest.mark.parametrize("rows", [(0, ROWS), (700, 40), (ROWS - 1, 1)])
def test_remote_embeddings_are_the_local_ones(
    folder: str, kind: str, rows: tuple[int, int], tmp_path
) -> None:
    """Of a large column beside them nothing is read, and of formats that know no other rows."""
    start, count = rows
    rng = np.random.default_rng(0)
    whole = table().append_column("pixels", pa.array([rng.bytes(1000) for _ in range(ROWS)]))
    data = encoded(kind, whole, 700)
    storage.write_bytes(f"{folder}/a.{kind}", data)
    (tmp_path / f"a.{kind}").write_bytes(data)
    CountedFileSystem.given = 0
    there, here = (
        np.concatenate([*read_embeddings(Shard(f"{place}/a.{kind}", start, count, 0))])
        for place in (folder, str(tmp_path))
    )
    np.testing.assert_array_equal(there, here)
    assert len(there) == count
    own = ROWS * WIDTH * 2
    if kind == "npy":
        assert CountedFileSystem.given < count * WIDTH * 2 + 4 * 4096
    elif kind != "stream.arrow":
        assert CountedFileSystem.given < own * 1.2 + 1000 * ROWS / 20


def test_pieces_of_lists_from_a_store(folder: str) -> None:
    entries = np.empty(1000, ENTRY)
    entries["similarity"], entries["position"] = np.arange(1000) / 1000, np.arange(1000)
    write_entries(f"{folder}/a.npy", entries)
    held = Stored(f"{folder}/a.npy")
    np.testing.assert_array_equal(held.read(10, 30), entries[10:30])
    given = CountedFileSystem.given
    np.testing.assert_array_equal(held.read(990, 1000), entries[990:])
    assert CountedFileSystem.given == given  # the copy is read


@pytest.mark.parametrize("kind", ["arrow", "parquet", "npy"])
def test_what_is_no_such_file(folder: str, kind: str) -> None:
    uri = f"{folder}/a.{kind}"
    with pytest.raises(CurateError, match=r"no such file"):
        columns.count_rows(uri)
    for data in (b"nothing of the kind", b"", b"ARROW1\0\0", encoded("file.arrow", table(3))[:60]):
        storage.write_bytes(uri, data)
        with pytest.raises(CurateError, match=rf"a\.{kind}: not an? \S+"):
            columns.count_rows(uri)
