"""Quotas in rounds and in rankings: against a plain argmax a centroid a round."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.coreset import stage
from curate.coreset.on_ray import Wanted, select_all
from curate.coreset.quotas import Quota, Room
from curate.coreset.rounds import Limits, Selection
from curate.errors import CurateError
from curate.runfiles import shards
from curate.runfiles.run import Embedded
from curate.runfiles.shards import Shard
from curate.settings import CoresetSettings
from tests.coreset.test_on_ray import shards_of
from tests.oracles import unit_rows

pytestmark = pytest.mark.usefixtures("ray_session")

N, D, K = 240, 6, 5


def slow_rounds(
    rows: np.ndarray,
    centroids: np.ndarray,
    groups: list[list[Any]],
    most: list[dict[Any, int]],
    budget: int | None,
) -> tuple[list[int], int]:
    """Positions by (round, centroid), and how many images were passed over for a full group."""
    w = centroids.astype(float) @ rows.astype(float).T
    gone: set[int] = set()
    taken: list[int] = []
    passed: set[int] = set()
    used: list[Counter[Any]] = [Counter() for _ in groups]

    def fits(image: int) -> bool:
        return all(
            g[image] not in m or u[g[image]] < m[g[image]]
            for g, m, u in zip(groups, most, used, strict=True)
        )

    while budget is None or len(taken) < budget:
        best: dict[int, tuple[float, int]] = {}
        for q in range(len(centroids)):
            for image in sorted(range(N), key=lambda i: (-w[q, i], i)):
                if image in gone:
                    continue
                if fits(image):
                    key = (-w[q, image], q)
                    best[image] = min(best.get(image, key), key)
                    break
                passed.add(image)
            else:
                return taken, len(passed)
        added = []
        for image in sorted(best, key=lambda i: (best[i][0], i)):
            gone.add(image)
            if not fits(image):
                passed.add(image)
            elif budget is None or len(taken) + len(added) < budget:
                added.append(image)
                for g, u in zip(groups, used, strict=True):
                    u[g[image]] += 1
        taken += sorted(added, key=lambda i: best[i][1])
    return taken, len(passed)


def quota_of(groups: list[Any], most: dict[Any, int]) -> Quota:
    names = sorted(most)
    codes = np.array([names.index(g) + 1 if g in most else 0 for g in groups])
    room = np.array([np.iinfo(np.int64).max, *(most[name] for name in names)])
    return Quota(codes, room)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length", [3, None])
@pytest.mark.parametrize("budget", [None, 31])
def test_rounds_against_a_loop(
    tmp_path: Path, seed: int, length: int | None, budget: int | None
) -> None:
    """One quota and two, with refills and without; the lists of a full group are walked on."""
    rng = np.random.default_rng(seed)
    rows = unit_rows(rng, N, D, duplicates=0.2, lean=0.5)
    centroids = unit_rows(rng, K, D, lean=0.5)
    groups: list[list[Any]] = [rng.integers(0, 4, N).tolist(), rng.integers(0, 3, N).tolist()]
    most: list[dict[Any, int]] = [{0: 4, 1: 9, 2: 40, 3: 3}, {0: 20, 2: 15}]
    count = 1 + seed % 2
    groups, most = groups[:count], most[:count]
    quotas = [quota_of(g, m) for g, m in zip(groups, most, strict=True)]
    wanted = Wanted(centroids, Limits(None, 1, budget), length, quotas=quotas)
    [found] = select_all(shards_of(tmp_path, rows, [70], ".npy"), [wanted])
    expected, _ = slow_rounds(rows, centroids, groups, most, budget)
    assert found.position.tolist() == expected
    for own, limits in zip(groups, most, strict=True):
        counts = Counter(own[p] for p in found.position)
        assert all(counts[name] <= limit for name, limit in limits.items())


@pytest.mark.parametrize("seed", range(4))
def test_what_is_passed_over_is_counted(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, centroids = unit_rows(rng, N, D, lean=0.5), unit_rows(rng, K, D, lean=0.5)
    groups, most = rng.integers(0, 3, N).tolist(), {0: 4, 1: 9}
    wanted = Wanted(centroids, Limits(None, 1, 40), quotas=[quota_of(groups, most)])
    [found] = select_all(shards_of(tmp_path, rows, [], ".npy"), [wanted])
    _, passed = slow_rounds(rows, centroids, [groups], [most], 40)
    assert passed and found.left_out == {"over a quota": passed}


def test_one_after_the_other_while_there_is_room() -> None:
    room = Room([Quota(np.array([1, 1, 2, 0, 1, 2]), np.array([99, 2, 1]))])
    assert room.fitting(np.array([0, 2])).tolist() == [True, True]
    assert room.is_full(np.arange(6)).tolist() == [False, False, True, False, False, True]
    assert room.fitting(np.array([5, 1, 3, 4])).tolist() == [False, True, True, False]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Embedded, list[str | None]]:
    """Two sources in three shards, with labels, of which some are missing."""
    folder = tmp_path_factory.mktemp("quotas")
    rng = np.random.default_rng(0)
    rows = unit_rows(rng, N, D)
    labels: list[str | None] = [[None, "cat", "dog", "owl"][i] for i in rng.integers(0, 4, N)]
    open_set = []
    for low, high in ((0, 90), (90, 100), (100, N)):
        uri = str(folder / f"{low}.arrow")
        table = pa.table({"label": pa.array(labels[low:high], pa.string())})
        shards.write_arrow(uri, shards.table_of(table, rows[low:high]))
        open_set.append(Shard(uri, 0, high - low, low))
    np.save(folder / "target.npy", unit_rows(rng, 40, D, lean=0.5))
    target = [Shard(str(folder / "target.npy"), 0, 40, 0)]
    return Embedded(target, open_set, ["web", "own", "web"], ""), labels


def chosen(found: Embedded, **settings: Any) -> Selection:
    coreset = CoresetSettings(**{"clusters": 4, "tau": None, "budget": 50} | settings)
    return stage.choose(coreset, found, stage.guide_of(found, coreset))


@pytest.mark.parametrize("method", ["simcore", "gate", "ratio", "resample"])
def test_sources_and_labels(embedded: tuple[Embedded, list[str | None]], method: str) -> None:
    found, labels = embedded
    quotas = [{"by": "source", "most": 0.8}, {"by": "label", "most": 6, "of": ["cat", "dog"]}]
    taken = chosen(found, method=method, quotas=quotas, gate=4).position
    sources = Counter("own" if 90 <= p < 100 else "web" for p in taken)
    counts = Counter(labels[p] for p in taken)
    assert len(set(taken.tolist())) == len(taken) == sum(sources.values())
    assert sources["web"] <= 40 and max(counts["cat"], counts["dog"]) <= 6
    if method == "ratio":
        free = chosen(found, method=method, budget=N).position.tolist()
        left = {"web": 40, "cat": 6, "dog": 6}
        expected = []
        for p in free:
            names = ["own" if 90 <= p < 100 else "web", labels[p]]
            if all(left.get(str(name), 1) > 0 for name in names) and len(expected) < 50:
                expected.append(p)
                for name in names:
                    left[str(name)] = left.get(str(name), 10_000) - 1
        assert taken.tolist() == expected


def test_added_images_count(embedded: tuple[Embedded, list[str | None]], tmp_path: Path) -> None:
    """A quota that the added images use up lets no other in."""
    found, labels = embedded
    cats = [p for p, label in enumerate(labels) if label == "cat"][:3]
    bare = stage.constraints.of(
        CoresetSettings(quotas=[{"by": "label", "most": 3}]),  # type: ignore[list-item]
        found,
        None,
    )
    assert bare.quotas[0].most.tolist()[1:] == [3, 3, 3]
    left = Room([Quota(bare.quotas[0].codes, bare.quotas[0].most)])
    assert left.fitting(np.array(cats)).all()
    assert left.is_full(np.array(cats)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quotas": [{"by": "label", "most": 3, "of": ["newt"]}]}, "has label newt"),
        ({"quotas": [{"by": "source", "most": 3, "of": ["x"]}]}, "has source x"),
    ],
)
def test_groups_that_are_not_there(
    embedded: tuple[Embedded, list[str | None]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CurateError, match=f"coreset.quotas: no image of the open set {message}"):
        chosen(embedded[0], **settings)
