"""Near copies are skipped as if taken: against a plain argmax a centroid a round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.coreset import stage
from curate.coreset.drawn import RowsOf
from curate.coreset.near import Near
from curate.coreset.on_ray import Wanted, select_all
from curate.coreset.rounds import Limits, Selection
from curate.errors import CurateError
from curate.runfiles.run import Embedded
from curate.settings import CoresetSettings
from tests.coreset.test_on_ray import shards_of
from tests.oracles import unit_rows

pytestmark = pytest.mark.usefixtures("ray_session")

N, D, K = 260, 6, 5


def with_near_copies(rng: np.random.Generator, share: float) -> np.ndarray:
    rows = unit_rows(rng, N, D, lean=0.4).astype(np.float64)
    copies = np.flatnonzero(rng.random(N) < share)
    noise = rng.standard_normal((len(copies), D)) * rng.choice([0, 0.02, 0.2], (len(copies), 1))
    rows[copies] = rows[rng.integers(0, N, len(copies))] + noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def slow_rounds(
    rows: np.ndarray, centroids: np.ndarray, others: np.ndarray, bound: float, budget: int
) -> tuple[list[int], int]:
    """Positions by (round, centroid), and how many near copies were passed over."""
    exact = rows.astype(float)
    w = centroids.astype(float) @ exact.T
    picks = [*others.astype(float)]
    gone: set[int] = set()
    taken: list[int] = []
    passed = 0

    def is_copy(image: int) -> bool:
        return any(float(exact[image] @ pick) >= bound for pick in picks)

    while len(taken) < budget:
        best: dict[int, tuple[float, int]] = {}
        for q in range(len(centroids)):
            for image in sorted(range(N), key=lambda i: (-w[q, i], i)):
                if image in gone:
                    continue
                if image not in best and is_copy(image):
                    gone.add(image)
                    passed += 1
                    continue
                key = (-w[q, image], q)
                best[image] = min(best.get(image, key), key)
                break
            else:
                return taken, passed
        added = []
        for image in sorted(best, key=lambda i: (best[i][0], i)):
            if len(taken) + len(added) == budget:
                break
            gone.add(image)
            if is_copy(image):
                passed += 1
            else:
                added.append(image)
                picks.append(exact[image])
        gone |= best.keys()
        taken += sorted(added, key=lambda i: best[i][1])
    return taken, passed


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length", [4, None])
def test_rounds_against_a_loop(tmp_path: Path, seed: int, length: int | None) -> None:
    rng = np.random.default_rng(seed)
    rows, centroids = with_near_copies(rng, 0.5), unit_rows(rng, K, D, lean=0.4)
    others = rows[rng.integers(0, N, 3)].astype(np.float32)
    shards = shards_of(tmp_path, rows, [100], ".npy")
    near = Near(0.995, RowsOf(shards), {"others": others})
    [found] = select_all(shards, [Wanted(centroids, Limits(None, 1, 70), length, near=near)])
    expected, passed = slow_rounds(rows, centroids, others, 0.995, 70)
    assert found.position.tolist() == expected
    assert passed and sum(found.left_out.values()) == passed
    assert found.left_out["near copies of others"] > 0


def chosen(folder: Path, rows: np.ndarray, target: np.ndarray, **settings: Any) -> Selection:
    shards = shards_of(folder, rows, [90], ".arrow")
    (folder / "target").mkdir(exist_ok=True)
    own = shards_of(folder / "target", target, [], ".npy")
    found = Embedded(own, shards, ["web", "web"], "")
    coreset = CoresetSettings(**{"clusters": 4, "tau": None} | settings)
    return stage.choose(coreset, found, stage.guide_of(found, coreset))


@pytest.mark.parametrize("method", ["ratio", "resample", "gate", "simcore"])
def test_no_two_are_near(tmp_path: Path, method: str) -> None:
    """Nor is one near an image of the target set. These files have no digests."""
    rng = np.random.default_rng(1)
    rows = with_near_copies(rng, 0.5)
    target = np.concatenate([unit_rows(rng, 20, D, lean=0.4), rows[:5]])
    free = chosen(tmp_path, rows, target, method=method, budget=N)
    found = chosen(tmp_path, rows, target, method=method, budget=60, dedup="near", near=0.995)
    taken = rows[found.position].astype(float)
    cosine = taken @ taken.T
    np.fill_diagonal(cosine, 0)
    assert cosine.max() < 0.995
    assert (taken @ target.astype(float).T).max() < 0.995
    assert found.left_out["near copies of others"] > 5
    if method in ("ratio", "resample"):
        expected: list[int] = []
        known = [*target.astype(float)]
        for position in free.position.tolist():
            if all(float(rows[position].astype(float) @ other) < 0.995 for other in known):
                known.append(rows[position].astype(float))
                expected.append(position)
        assert found.position.tolist() == expected[:60]


def test_a_cosine_of_just_the_bound_counts() -> None:
    """What float32 cannot tell is told by float64."""
    rng = np.random.default_rng(0)
    rows = unit_rows(rng, 40, 300).astype(np.float32)
    rows[1::2] = rows[::2] + rng.standard_normal((20, 300)).astype(np.float32) * 0.01
    rows = np.rint(rows / np.linalg.norm(rows, axis=1, keepdims=True) * 2**24) / 2**24
    rows = rows.astype(np.float32)
    exact = rows.astype(float)

    class At:
        def ahead(self, position: np.ndarray) -> None:
            pass

        def __call__(self, position: np.ndarray) -> np.ndarray:
            return rows[position]

    for i in range(0, 40, 2):
        bound = float(exact[i] @ exact[i + 1])
        for limit, expected in ((bound, True), (np.nextafter(bound, 2), False)):
            near = Near(limit, At(), {"others": rows[i : i + 1]})
            assert near.is_copy(np.array([i + 1])).tolist() == [expected]


def test_it_needs_a_budget(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = unit_rows(rng, N, D)
    for settings in ({"dedup": "near"}, {"dedup": "near", "budget": 600_000}):
        with pytest.raises(CurateError, match=r"coreset.dedup=near: .* at most 500,000 images"):
            stage.constraints._near(
                CoresetSettings(**settings),  # type: ignore[arg-type]
                Embedded([], shards_of(tmp_path, rows, [], ".npy"), ["web"], ""),
                settings.get("budget"),  # type: ignore[arg-type]
                np.empty(0, np.int64),
            )
