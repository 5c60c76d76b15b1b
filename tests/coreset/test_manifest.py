"""Manifests brought together by tasks: the bytes of a table made in one place."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from curate.coreset import manifest, manifest_rows
from curate.coreset.rounds import Selection
from curate.errors import CurateError
from curate.runfiles import shards
from curate.runfiles.run import Embedded
from curate.runfiles.shards import Shard

pytestmark = pytest.mark.usefixtures("ray_session")

ABOUT: dict[str, Any] = {"method": "simcore", "selected": 3}


def write_shards(folder: Path, sizes: list[int]) -> tuple[list[Shard], list[str], pa.Table]:
    """Shards, their sources, and the columns of all their images in plan order."""
    shard_list, sources, tables, first = [], [], [], 0
    for number, rows in enumerate(sizes):
        places = np.arange(first, first + rows)
        table = pa.table(
            {
                "key": [f"key {place}" for place in places],
                "uri": [f"s3://bucket/{place // 100}.tar" for place in places],
                "offset": pa.array(places * 512),
                "size": pa.array(places % 1000 + 1),
                "row": pa.nulls(rows, pa.int64()),
                "label": [None if place % 3 else f"class{place % 7}" for place in places],
                "width": pa.array(np.full(rows, 640, np.int32)),
                "height": pa.array(np.full(rows, 480, np.int32)),
                "sha256": [f"{place:064x}" for place in places],
            },
            shards.IMAGE_SCHEMA,
        )
        uri = str(folder / f"part-{number:03d}.arrow")
        shards.write_arrow(uri, shards.table_of(table, np.zeros((rows, 2), np.float16)))
        source = f"source{number % 3}"
        shard_list.append(Shard(uri, 0, rows, first))
        sources.append(source)
        tables.append(table.add_column(0, "source", pa.array([source] * rows, pa.string())))
        first += rows
    return shard_list, sources, pa.concat_tables(tables)


def selection_of(rng: np.random.Generator, total: int, images: int) -> Selection:
    """Rounds of ten centroids, of which each image is drawn at random."""
    position = rng.permutation(total)[:images]
    centroid, number = np.arange(images) % 10, np.arange(images) // 10 + 1
    return Selection(
        position,
        centroid.astype(np.int32),
        number.astype(np.int32),
        rng.random(images),
        [],
        "budget",
    )


def expected_table(everything: pa.Table, selection: Selection) -> pa.Table:
    table = everything.take(pa.array(selection.position))
    for name in ("centroid", "round", "similarity", "position"):
        kind, values = manifest_rows.SCHEMA.field(name).type, getattr(selection, name)
        column = pa.nulls(len(table), kind) if values is None else pa.array(values, kind)
        table = table.append_column(name, column)
    return table.cast(manifest_rows.SCHEMA)


def expected_file(table: pa.Table) -> bytes:
    """As one table is written."""
    sink = io.BytesIO()
    note = {b"curate": json.dumps(ABOUT, sort_keys=True).encode()}
    whole = table.combine_chunks().replace_schema_metadata(note)
    pq.write_table(whole, sink, compression="zstd", row_group_size=65_536)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("sizes", "images"),
    [
        ([50, 1, 300], 0),
        ([50, 1, 300], 1),
        ([50, 1, 300], 120),
        ([3] * 150, 450),
        ([40_000, 1, 90_000, 30_000], 140_000),
        ([500] * 300, 65_537),
    ],
)
def test_the_bytes_of_one_table(tmp_path: Path, sizes: list[int], images: int) -> None:
    """Of no image, of some in one row group, and of several groups, from few shards and many."""
    shard_list, sources, everything = write_shards(tmp_path, sizes)
    selection = selection_of(np.random.default_rng(images), sum(sizes), images)
    table = expected_table(everything, selection)
    uri = str(tmp_path / "coreset.parquet")
    counts = manifest.write(uri, Embedded([], shard_list, sources, ""), selection, ABOUT)
    assert Path(uri).read_bytes() == expected_file(table)
    expected = pc.value_counts(table["source"]).to_pylist()
    assert counts == {pair["values"]: pair["counts"] for pair in expected}
    assert pq.read_metadata(uri).num_row_groups == max(1, -(-images // 65_536))


def test_a_baseline_has_no_rounds(tmp_path: Path) -> None:
    shard_list, sources, everything = write_shards(tmp_path, [70, 30])
    selection = Selection.of_baseline(np.arange(0, 100, 3), "budget")
    uri = str(tmp_path / "coreset.parquet")
    manifest.write(uri, Embedded([], shard_list, sources, ""), selection, ABOUT)
    assert Path(uri).read_bytes() == expected_file(expected_table(everything, selection))


def test_a_shard_that_is_gone_leaves_no_manifest(tmp_path: Path) -> None:
    shard_list, sources, _ = write_shards(tmp_path, [40_000, 40_000])
    Path(shard_list[1].uri).unlink()
    selection = Selection.of_baseline(np.arange(80_000), "open set used up")
    with pytest.raises(CurateError, match=r"part-001\.arrow: no such file"):
        found = Embedded([], shard_list, sources, "")
        manifest.write(str(tmp_path / "coreset.parquet"), found, selection, ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["part-000.arrow"]


@pytest.mark.parametrize(
    ("images", "rows"), [(1, 1), (65_536, 1), (10**6, 1), (10**7, 4), (10**8, 10), (10**9, 31)]
)
def test_pieces_are_neither_many_nor_small(images: int, rows: int) -> None:
    """In row groups. What readers give to buckets is 1 MB or so, whatever there is to do."""
    assert manifest_rows._bucket_rows(images) == rows * 65_536
    buckets = -(-images // (rows * 65_536))
    assert buckets == 1 or images / buckets**2 > 3900


def test_rows_of_some_images(tmp_path: Path) -> None:
    shard_list, sources, everything = write_shards(tmp_path, [20, 30])
    places = np.array([31, 2, 49, 0])
    found = manifest_rows.rows_at(shard_list, sources, places)
    assert found.select(everything.column_names).equals(everything.take(pa.array(places)))
