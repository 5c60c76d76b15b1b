"""Samples of embeddings and nearest images, against the whole of what they come from."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.errors import CurateError
from curate.report.collect import files, sampling
from curate.runfiles import shards
from curate.runfiles.run import Run
from curate.runfiles.shards import Shard
from tests.report import building


@pytest.fixture(scope="module")
def output(tmp_path_factory, ray_session):
    """More units than are read at once."""
    return building.write_run(
        tmp_path_factory.mktemp("many"), targets=70, opened=420, per_unit=5, labels=["a", None]
    )


def shards_of(output, name: str) -> list[Shard]:
    return getattr(Run.open(str(output)).embedded(), name)


def read(found: list[Shard]) -> tuple[list[str], np.ndarray]:
    tables = [pa.ipc.open_file(shard.uri).read_all() for shard in found]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    return keys, np.concatenate([np.stack(table["embedding"].to_numpy()) for table in tables])


def as_set(rows: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in np.asarray(rows, np.float32)}


def test_a_sample_is_of_the_set_seeded_and_without_repeats(output) -> None:
    opened = shards_of(output, "open")
    assert len(opened) > sampling.SHARDS_READ
    _, every = read(opened)
    found = sampling.of_set(opened, 100, 0)
    assert found.shape == (100, building.WIDTH)
    assert len(as_set(found)) == 100 and as_set(found) <= as_set(every)
    np.testing.assert_array_equal(found, sampling.of_set(opened, 100, 0))
    assert as_set(found) != as_set(sampling.of_set(opened, 100, 1))
    assert len(sampling.of_set(opened, 10**6, 0)) == 5 * sampling.SHARDS_READ
    assert len(sampling.of_set(opened[:3], 10**6, 0)) == 15
    assert len(sampling.of_set([], 10, 0)) == 0


def test_the_coresets_embeddings_are_its_own(output) -> None:
    rows = pq.read_table(output / "coreset.parquet")
    opened = shards_of(output, "open")
    keys, every = read(opened)
    expected = as_set(every[[keys.index(key) for key in rows["key"].to_pylist()]])
    positions = rows["position"].to_numpy()
    some = opened[: sampling.SHARDS_READ // 2]
    assert as_set(sampling.at_positions(some, positions, 0)) < expected
    found = sampling.at_positions(opened, positions, 0)
    assert found.size and as_set(found) <= expected
    assert as_set(sampling.at_positions(opened, positions[:3], 0)) == as_set(every[positions[:3]])
    assert len(sampling.at_positions(opened, positions[:0], 0)) == 0


def test_nearest_are_the_best_of_all(output) -> None:
    targets = shards_of(output, "target")
    keys, rows = read(targets)
    centroids = np.load(output / "centroids.npy")
    best = np.argsort(-(rows.astype(np.float32) @ centroids.T), axis=0, kind="stable")[:4].T
    found = sampling.nearest(targets, centroids, 4)
    assert [[keys[i] for i in one] for one in found] == [[keys[i] for i in b] for b in best]
    assert [len(one) for one in sampling.nearest(targets[:1], centroids, 9)] == [5] * len(centroids)
    with pytest.raises(CurateError, match="another width"):
        sampling.nearest(targets, centroids[:, :3], 4)


def test_of_equally_near_images_the_first_are_taken(tmp_path, ray_session) -> None:
    """Of many copies, over shards."""
    found = []
    for number, rows in enumerate((300, 300)):
        uri = str(tmp_path / f"{number}.arrow")
        images = pa.table({"key": [str(row) for row in range(rows)]})
        embeddings = np.tile(np.eye(4, dtype=np.float16)[:1], (rows, 1))
        embeddings[:2, 0] = 0.5  # the first two are no copies
        shards.write_arrow(uri, shards.table_of(images, embeddings))
        found.append(Shard(uri, 0, rows, number * 300))
    centroids = np.eye(4, dtype=np.float32)[:2]
    assert sampling.nearest(found, centroids, 4).tolist() == [[2, 3, 4, 5], [0, 1, 2, 3]]
    assert sampling.nearest(found[1:], centroids, 4).tolist() == [
        [302, 303, 304, 305],
        [300, 301, 302, 303],
    ]


def test_labels_are_counted_and_damage_is_named(output, tmp_path) -> None:
    opened = shards_of(output, "open")
    assert sum(sampling.label_counts(opened).values()) == 420
    assert set(sampling.label_counts(opened)) == {"a", None}
    other = str(tmp_path / "other.arrow")
    shards.write_arrow(other, pa.table({"key": ["a"]}))
    with pytest.raises(CurateError, match=r"other.arrow: not a shard of this run"):
        sampling.label_counts([Shard(other, 0, 1, 0)])


def test_rows_of_a_manifest_come_in_the_order_asked_for(tmp_path) -> None:
    uri = str(tmp_path / "m.parquet")
    rows = 25
    columns = {
        "key": [str(i) for i in range(rows)],
        "source": ["s"] * rows,
        "uri": ["u"] * rows,
        "label": [None if i % 2 else "even" for i in range(rows)],
        "centroid": pa.nulls(rows, pa.int32()),
        "round": list(range(rows)),
        "position": list(range(rows)),
    }
    pq.write_table(pa.table(columns), uri, row_group_size=4)
    manifest = files.read_manifest(uri)
    wanted = [24, 0, 7, 7, 3]
    assert [row.key for row in manifest.images(wanted)] == [str(i) for i in wanted]
    assert manifest.images([]) == []
    assert manifest.labels() == {"even": 13, None: 12}
    assert manifest.numbers("centroid").tolist() == [-1] * rows
