"""The selection on Ray: the same for any shards, formats, list lengths and samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.coreset import on_ray, passes, sample
from curate.coreset.candidates import Floor
from curate.coreset.lists import Lists, Piece
from curate.coreset.on_ray import Wanted, select, select_all
from curate.coreset.rounds import Limits
from curate.coreset.sample import Sample
from curate.errors import CurateError
from curate.runfiles.columns import count_rows
from curate.runfiles.shards import Shard
from tests.oracles import brute_force_rounds, same_selection, unit_rows

pytestmark = pytest.mark.usefixtures("ray_session")

N, D, K = 600, 8, 7


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray]:
    """Images with many copies, centroids among them."""
    rng = np.random.default_rng(5)
    return unit_rows(rng, N, D, duplicates=0.3, lean=0.5), unit_rows(rng, K, D, lean=0.5)


def fixed_size(rows: np.ndarray) -> pa.Table:
    flat = pa.array(rows.reshape(-1))
    return pa.table({"embedding": pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])})


def lists(rows: np.ndarray) -> pa.Table:
    return pa.table({"key": [str(i) for i in range(len(rows))], "embedding": list(rows)})


def write(path: Path, rows: np.ndarray) -> None:
    """One file; how is told by the name."""
    table = lists(rows) if "list" in path.name else fixed_size(rows)
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=17)
    elif "stream" in path.name:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=23)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=23)


def shards_of(folder: Path, rows: np.ndarray, cuts: list[int], name: str) -> list[Shard]:
    """Files of the rows between the cuts."""
    bounds = [0, *cuts, len(rows)]
    shards = []
    for number, (low, high) in enumerate(itertools.pairwise(bounds)):
        path = folder / f"part-{number:03d}{name}"
        write(path, rows[low:high])
        assert count_rows(str(path)) == high - low
        shards.append(Shard(str(path), 0, high - low, low))
    return shards


@pytest.mark.parametrize(
    "name",
    [".arrow", "-list.arrow", "-stream.arrow", ".npy", ".parquet", "-list.parquet"],
)
@pytest.mark.parametrize("cuts", [[], [100, 100, 333]])
def test_every_format(
    problem: tuple[np.ndarray, np.ndarray], tmp_path: Path, name: str, cuts: list[int]
) -> None:
    open_set, centroids = problem
    shards = shards_of(tmp_path, open_set, cuts, name)
    found = select(shards, centroids.astype(np.float32), Limits(0.9, 1, None), length=40)
    same_selection(found, brute_force_rounds(open_set, centroids, tau=0.9))


@pytest.mark.parametrize(
    ("tau", "reference_round", "budget"),
    [(None, 1, None), (0.95, 1, None), (0.95, 20, None), (1.0, 1, 100), (None, 1, 0), (0.0, 1, 53)],
)
@pytest.mark.parametrize("length", [1, 5, None])
def test_limits_and_refills(
    problem: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    tau: float | None,
    reference_round: int,
    budget: int | None,
    length: int | None,
) -> None:
    open_set, centroids = problem
    refills: list[tuple[int, int]] = []
    found = select(
        shards_of(tmp_path, open_set, [17, 300], ".npy"),
        centroids,
        Limits(tau, reference_round, budget),
        length=length,
        on_refill=lambda lists, longest: refills.append((lists, longest)),
    )
    truth = brute_force_rounds(
        open_set, centroids, tau=tau, reference_round=reference_round, budget=budget
    )
    same_selection(found, truth)
    if length == 1 and len(truth["rows"]) > 2 * K:
        assert refills
    assert all(1 <= count <= K for count, _ in refills)


def test_a_refill_brings_only_what_the_lists_lack(
    problem: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_set, centroids = problem
    add, known = Lists.add, []

    def noted(lists: Lists, piece: Piece) -> None:
        add(lists, piece)
        known.append((lists, lists.lengths.sum()))

    monkeypatch.setattr(Lists, "add", noted)
    shards = shards_of(tmp_path, open_set, [200], ".npy")
    select(shards, centroids, Limits(None, 1, 200), length=2)
    assert len(known) > 2 and [count for _, count in known] == sorted(count for _, count in known)
    lists = known[-1][0]
    for q in range(K):
        entries = lists.all_of(q)
        keys = list(zip(-entries["similarity"], entries["position"], strict=True))
        assert len(keys) > 2 and keys == sorted(keys)
        assert len(set(entries["position"].tolist())) == len(entries)


@pytest.mark.parametrize("files", [1, 3, 40])
def test_any_number_of_shards_and_a_tree_of_merges(
    problem: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: int,
) -> None:
    monkeypatch.setattr(passes, "FAN_IN", 2)
    open_set, centroids = problem
    cuts = sorted(np.random.default_rng(files).integers(0, N, files - 1).tolist())
    shards = shards_of(tmp_path, open_set, cuts, ".arrow")
    found = select(shards, centroids, Limits(0.9, 1, None), length=20)
    same_selection(found, brute_force_rounds(open_set, centroids, tau=0.9))


def test_a_range_of_a_file_is_a_shard(
    problem: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    open_set, centroids = problem
    path = tmp_path / "all.parquet"
    write(path, open_set)
    shards = [Shard(str(path), 300, 250, 0), Shard(str(path), 40, 1, 250)]
    picked = np.concatenate([open_set[300:550], open_set[40:41]])
    found = select(shards, centroids, Limits(None, 1, 60))
    same_selection(found, brute_force_rounds(picked, centroids, budget=60))


class TestSample:
    """The sample decides how much is scanned, never what is selected."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(sample, "LEAST_ROWS", 100)
        yield

    def run(
        self, problem: tuple[np.ndarray, np.ndarray], folder: Path, length: int, tau: float = 0.9
    ) -> list[tuple[int, int]]:
        """Select and compare; the refills."""
        open_set, centroids = problem
        refills: list[tuple[int, int]] = []
        found = select(
            shards_of(folder, open_set, [250], ".arrow"),
            centroids,
            Limits(tau, 1, None),
            length=length,
            on_refill=lambda lists, longest: refills.append((lists, longest)),
        )
        same_selection(found, brute_force_rounds(open_set, centroids, tau=tau))
        return refills

    def test_it_is_taken_and_used(
        self,
        problem: tuple[np.ndarray, np.ndarray],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        floors = []
        floor = Sample.floor

        def noted(taken: Sample, ranks: np.ndarray) -> Floor:
            floors.append(floor(taken, ranks))
            return floors[-1]

        monkeypatch.setattr(Sample, "floor", noted)
        self.run(problem, tmp_path, length=30)
        open_set, centroids = problem
        above = centroids.astype(float) @ open_set.T.astype(float) >= floors[0].similarity[:, None]
        assert (above.sum(axis=1) > 10).all() and (above.sum(axis=1) < 200).all()

    def test_floors_too_high_are_made_good_by_refills(
        self,
        problem: tuple[np.ndarray, np.ndarray],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        floor = Sample.floor

        def too_high(taken: Sample, ranks: np.ndarray) -> Floor:
            found = floor(taken, ranks)
            raised = np.where(np.isneginf(found.similarity), -np.inf, found.similarity + 0.3)
            return Floor.at(raised)

        monkeypatch.setattr(Sample, "floor", too_high)
        assert self.run(problem, tmp_path, length=30)

    def test_floors_too_low_are_made_good_by_cuts(
        self,
        problem: tuple[np.ndarray, np.ndarray],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(
            Sample, "floor", lambda taken, _: Floor.at(np.full(len(taken.similarity), -0.9))
        )
        assert self.run(problem, tmp_path, length=1, tau=0.6)


@pytest.mark.parametrize(
    ("value", "trouble"),
    [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (1.5, "of norm")],
)
@pytest.mark.parametrize("name", [".npy", ".arrow", ".parquet"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_bad_rows_are_named(
    problem: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    value: float,
    trouble: str,
    name: str,
    dtype: type,
) -> None:
    open_set, centroids = problem
    bad = open_set.astype(dtype)
    bad[457, 2] = value
    shards = shards_of(tmp_path, bad, [100], name)
    with pytest.raises(CurateError) as caught:
        select(shards, centroids, Limits(0.9, 1, None))
    message = str(caught.value)
    assert f"part-001{name}" in message and "row 357 " in message and trouble in message


def test_a_bad_row_far_into_a_file_is_named(
    problem: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    open_set, centroids = problem
    many = np.tile(open_set, (12, 1))
    many[5123] = 0
    with pytest.raises(CurateError, match="row 5123 is of norm 0: L2-normalise"):
        select(shards_of(tmp_path, many, [], ".npy"), centroids, Limits(0.9, 1, None))


def test_widths_must_agree(problem: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    open_set, _ = problem
    shards = shards_of(tmp_path, open_set, [], ".npy")
    centroids = unit_rows(np.random.default_rng(0), 2, D + 1)
    with pytest.raises(CurateError, match=rf"part-000.npy: embeddings of width {D}.*width {D + 1}"):
        select(shards, centroids, Limits(0.9, 1, None))


@pytest.mark.parametrize("bad", [np.nan, 2.0])
def test_centroids_must_be_unit_rows(
    problem: tuple[np.ndarray, np.ndarray], tmp_path: Path, bad: float
) -> None:
    open_set, centroids = problem
    centroids = centroids.astype(np.float32)
    centroids[3] = bad
    shards = shards_of(tmp_path, open_set, [], ".npy")
    with pytest.raises(CurateError, match="centroids: row 3 has norm"):
        select(shards, centroids, Limits(0.9, 1, None))


def test_no_images_at_all(problem: tuple[np.ndarray, np.ndarray]) -> None:
    found = select([], problem[1], Limits(0.95, 1, None))
    assert len(found.position) == 0 and found.stopped_because == "open set used up"


def test_a_missing_file_is_named(problem: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    shards = [Shard(str(tmp_path / "gone.npy"), 0, 10, 0)]
    with pytest.raises(CurateError, match=r"gone\.npy: no such file"):
        select(shards, problem[1], Limits(0.95, 1, None))


def test_first_length_is_bounded_by_memory() -> None:
    assert on_ray.first_length(100, 10**6, None) == 1000
    assert on_ray.first_length(100, 10**7, None) == 2000
    assert on_ray.first_length(100, 10**6, 333_350) > 333_350 // 100
    for k in (1, 100, 6_667, 100_000):
        entries = k * on_ray.first_length(k, 10**9, 10**9)
        assert entries <= max(on_ray.MAX_ENTRIES, 64 * k)


LIMITS = [Limits(None, 1, 300), Limits(0.9, 1, None), Limits(0.97, 5, 40)]


@pytest.mark.parametrize("length", [2, None])
def test_many_targets_at_once_are_each_alone(
    problem: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    length: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Far and near ends, targets of one centroid and of many, and refills of some of them."""
    monkeypatch.setattr(sample, "LEAST_ROWS", 100)
    rng = np.random.default_rng(11)
    centroids = [problem[1], unit_rows(rng, 1, D), unit_rows(rng, 12, D, lean=0.5)]
    shards = shards_of(tmp_path, problem[0], [100, 333], ".arrow")
    alone, scans = [], []
    for mine, limits in zip(centroids, LIMITS, strict=True):
        alone.append(select(shards, mine, limits, length=length))
        same_selection(
            alone[-1],
            brute_force_rounds(
                problem[0],
                mine,
                tau=limits.tau,
                reference_round=limits.reference_round,
                budget=limits.budget,
            ),
        )
    one_pass = on_ray.one_pass

    def counted(*arguments: Any) -> Any:
        scans.append(arguments)
        return one_pass(*arguments)

    monkeypatch.setattr(on_ray, "one_pass", counted)
    refills: list[tuple[int, int]] = []
    wanted = [Wanted(mine, limits, length) for mine, limits in zip(centroids, LIMITS, strict=True)]
    together = select_all(shards, wanted, on_refill=lambda *told: refills.append(told))
    assert len(scans) == 1 + len(refills) and (length is None or len(refills) > 1)
    for one, other in zip(together, alone, strict=True):
        for field in ("position", "centroid", "round", "similarity"):
            assert np.array_equal(getattr(one, field), getattr(other, field)), field
        assert one.rounds == other.rounds
        assert one.stopped_because == other.stopped_because
        assert one.stopping_objective == other.stopping_objective


def test_no_targets_at_all(problem: tuple[np.ndarray, np.ndarray]) -> None:
    assert select_all([], []) == []


def test_targets_of_different_widths(problem: tuple[np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    wanted = [Wanted(unit_rows(rng, 3, width), LIMITS[0]) for width in (8, 9)]
    with pytest.raises(CurateError, match=r"centroids of widths 8, 9: .*one encoder"):
        select_all([], wanted)
