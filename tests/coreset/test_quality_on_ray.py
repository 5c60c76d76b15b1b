"""What shards tell of a selection, against brute force over all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.coreset import quality_on_ray
from curate.coreset.quality_on_ray import Wanted, nearest, survey
from curate.runfiles import shards
from curate.runfiles.shards import IMAGE_SCHEMA, Shard

LABELS = ["cat", "dog", None, "car"]


def unit_rows(n: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, 8))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def write_shards(root: Path) -> tuple[list[Shard], list[str], np.ndarray]:
    """A folder, a tar and a Parquet file: places that differ by uri, by offset, and by row."""
    embeddings = unit_rows(60, 0)
    places = [(f"file{i}.png", None, None) for i in range(20)]
    places += [("a.tar", 512 * i, None) for i in range(20)] + [
        ("b.parquet", None, i) for i in range(20)
    ]
    found = []
    for number in range(3):
        rows = [
            {
                "uri": places[i][0],
                "offset": places[i][1],
                "row": places[i][2],
                "label": LABELS[i % 4],
            }
            for i in range(20 * number, 20 * number + 20)
        ]
        part = embeddings[20 * number : 20 * number + 20]
        table = shards.table_of(pa.Table.from_pylist(rows, IMAGE_SCHEMA), part)
        uri = str(root / f"part-{number}.arrow")
        shards.write_arrow(uri, table)
        found.append(Shard(uri, 0, 20, 20 * number))
    return found, [place[0] for place in places], embeddings


def test_against_brute_force(tmp_path: Path) -> None:
    found, places, embeddings = write_shards(tmp_path)
    target = unit_rows(7, 1).astype(np.float32)
    picks = [45, 3, 21, 59, 22]
    sample = np.array([0, 3, 19, 20, 58])
    uris = [places[i] for i in sorted(picks)]
    wanted = Wanted(np.sort(picks), pa.array(uris), sample, target)
    got = survey(found, wanted)
    similarity = (embeddings.astype(np.float64) @ target.T.astype(np.float64)).max(1)
    assert got.labels == Counter({"cat": 15, "dog": 15, None: 15, "car": 15})
    assert got.known == len(picks)
    elsewhere = replace(wanted, uris=pa.array(["elsewhere", *uris[1:]]))
    assert survey(found, elsewhere).known == len(picks) - 1
    assert got.selected == [LABELS[i % 4] for i in sorted(picks)]
    assert got.near == pytest.approx(similarity[sorted(picks)], abs=1e-6)
    assert got.near_sample == pytest.approx(similarity[sample], abs=1e-6)


def test_parts_add_up_to_the_whole(tmp_path: Path) -> None:
    found, places, _ = write_shards(tmp_path)
    target = unit_rows(7, 1).astype(np.float32)
    uris = pa.array(places[::7])
    wanted = Wanted(np.arange(0, 60, 7), uris, np.arange(0, 60, 11), target)
    whole, parts = survey(found, wanted), [survey([shard], wanted) for shard in found]
    assert sum((part.labels for part in parts), Counter()) == whole.labels
    assert [one for part in parts for one in part.selected] == whole.selected
    for name in ("near", "near_sample"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(joined, getattr(whole, name))


@pytest.mark.parametrize("rows", [1, 3, 20, 21])
def test_images_at_once_do_not_matter(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, target = unit_rows(20, 2).astype(np.float32), unit_rows(5, 3).astype(np.float32)
    expected = [max(float(a @ b) for b in target) for a in images]
    monkeypatch.setattr(quality_on_ray, "ROWS_AT_ONCE", rows)
    assert nearest(images, target) == pytest.approx(expected, abs=1e-6)
    assert nearest(images[:0], target).shape == (0,)
