"""Samples of embeddings and nearest images, against the whole of what they come from."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.errors import CurateError
from curate.report import files, sampling
from curate.runfiles import plan, shards
from curate.runfiles.plan import PlannedUnit
from curate.sources import Item, Unit
from tests.report import building


@pytest.fixture(scope="module")
def output(tmp_path_factory, ray_session):
    """More units than are read at once."""
    return building.write_run(
        tmp_path_factory.mktemp("many"), targets=70, opened=420, per_unit=5, labels=["a", None]
    )


def parts(output, name: str) -> dict[int, str]:
    found = sorted((output / "embeddings" / name).glob("*.arrow"))
    return {int(path.stem.removeprefix("part-")): str(path) for path in found}


def read(uris) -> tuple[list[str], np.ndarray]:
    tables = [pa.ipc.open_file(uri).read_all() for uri in uris]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    return keys, np.concatenate([np.stack(table["embedding"].to_numpy()) for table in tables])


def as_set(rows: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in np.asarray(rows, np.float32)}


def test_a_sample_is_of_the_set_seeded_and_without_repeats(output) -> None:
    uris = list(parts(output, "open").values())
    assert len(uris) > sampling.SHARDS_READ
    _, every = read(uris)
    found = sampling.of_set(uris, 100, 0)
    assert found.shape == (100, building.WIDTH)
    assert len(as_set(found)) == 100 and as_set(found) <= as_set(every)
    np.testing.assert_array_equal(found, sampling.of_set(uris, 100, 0))
    assert as_set(found) != as_set(sampling.of_set(uris, 100, 1))
    assert len(sampling.of_set(uris, 10**6, 0)) == 5 * sampling.SHARDS_READ
    assert len(sampling.of_set(uris[:3], 10**6, 0)) == 15
    assert len(sampling.of_set([], 10, 0)) == 0


def test_the_coresets_embeddings_are_its_own(output) -> None:
    rows = pq.read_table(output / "coreset.parquet").to_pylist()
    opened = parts(output, "open")
    keys, every = read(opened.values())
    expected = as_set(every[[keys.index(row["key"]) for row in rows]])
    plan_uri = str(output / "plan.parquet")
    some = dict(list(opened.items())[: sampling.SHARDS_READ])  # all are looked through
    assert as_set(sampling.of_coreset(plan_uri, some, rows, 0)) < expected
    found = sampling.of_coreset(plan_uri, opened, rows, 0)  # those of the plan's units
    assert found.size and as_set(found) <= expected


def test_units_of_a_plan_by_what_is_in_them(tmp_path) -> None:
    def unit(number: int, set_name, uri: str, items=None, start=0, stop=None) -> PlannedUnit:
        return PlannedUnit(number, set_name, "s", Unit(uri, items, start, stop))

    planned = [
        unit(0, "target", "a.tar"),
        unit(1, "open", "a.tar"),
        unit(2, "open", "b.tar"),
        unit(3, "open", "t.parquet", start=0, stop=10),
        unit(4, "open", "t.parquet", start=10, stop=20),
        unit(5, "open", "root", (Item("x", "root/x.png"), Item("y", "root/y.png"))),
        unit(6, "open", "root", (Item("z", "root/z.png"),)),
    ]
    uri = str(tmp_path / "plan.parquet")
    plan.write(uri, planned)
    nowhere = {"offset": None, "row": None}

    def found(*rows) -> list[int]:
        return sampling._units_with(uri, [{**nowhere, **row} for row in rows])

    assert found({"uri": "a.tar", "offset": 512}) == [1]
    assert found({"uri": "t.parquet", "row": 10}) == [4]
    assert found({"uri": "t.parquet", "row": 9}, {"uri": "root/y.png"}) == [3, 5]
    assert found({"uri": "elsewhere.png"}) == []


def test_nearest_are_the_best_of_all(output) -> None:
    uris = list(parts(output, "target").values())
    keys, rows = read(uris)
    centroids = np.load(output / "centroids.npy")
    best = np.argsort(-(rows.astype(np.float32) @ centroids.T), axis=0, kind="stable")[:4].T
    found = sampling.nearest(uris, centroids, 4)
    assert [[row["key"] for row in one] for one in found] == [[keys[i] for i in b] for b in best]
    assert [len(one) for one in sampling.nearest(uris[:1], centroids, 9)] == [5] * len(centroids)
    with pytest.raises(CurateError, match="another width"):
        sampling.nearest(uris, centroids[:, :3], 4)


def test_labels_are_counted_and_damage_is_named(output, tmp_path) -> None:
    uris = list(parts(output, "open").values())
    assert sum(sampling.label_counts(uris).values()) == 420
    assert set(sampling.label_counts(uris)) == {"a", None}
    other = str(tmp_path / "other.arrow")
    shards.write_arrow(other, pa.table({"key": ["a"]}))
    with pytest.raises(CurateError, match=r"other.arrow: not a shard of this run"):
        sampling.label_counts([other])


def test_rows_of_a_manifest_come_in_the_order_asked_for(tmp_path) -> None:
    uri = str(tmp_path / "m.parquet")
    rows = 25
    columns = {
        "key": [str(i) for i in range(rows)],
        "source": ["s"] * rows,
        "label": [None if i % 2 else "even" for i in range(rows)],
        "centroid": pa.nulls(rows, pa.int32()),
        "round": list(range(rows)),
    }
    pq.write_table(pa.table(columns), uri, row_group_size=4)
    manifest = files.read_manifest(uri)
    wanted = [24, 0, 7, 7, 3]
    assert [row["key"] for row in manifest.whole(wanted)] == [str(i) for i in wanted]
    assert manifest.whole([]) == []
    assert manifest.labels() == {"even": 13, None: 12}
    assert manifest.numbers("centroid").tolist() == [-1] * rows
