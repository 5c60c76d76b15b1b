"""Other thresholds on a finished run: the same as runs of their own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.cli import main
from curate.coreset.recut import Limits, cut, recut, sweep, thresholds
from curate.coreset.rounds import Round, Selection
from curate.errors import CurateError
from curate.pipeline import run
from curate.runfiles import shards
from curate.runfiles.run import Run
from curate.settings import load as config
from tests import datasets
from tests.oracles import brute_force_rounds


@pytest.fixture(scope="module")
def document(tmp_path_factory, merged_run):
    return selecting(merged_run[0], tmp_path_factory.mktemp("run"), clusters=5, tau=0.999)[0]


def selecting(document, root: Path, **coreset):
    """A run on the same embeddings with another selection: its document and summary."""
    own = {**datasets.copy_run(document, root), "coreset": coreset}
    return own, run(config.parse(own, "test"))


def rows(path: str | Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize("tau", [0.999, 0.99, 0.97])
def test_a_recut_is_the_run_with_that_threshold(document, tmp_path: Path, tau: float) -> None:
    before = rows(f"{document['output']}/coreset.parquet")
    line = recut(document["output"], Limits(tau))
    uri = line.rpartition(" ")[2]
    own, summary = selecting(document, tmp_path, clusters=5, tau=tau)
    expected = rows(f"{own['output']}/coreset.parquet")
    assert [row["key"] for row in rows(uri)] == [row["key"] for row in expected]
    for one, other in zip(rows(uri), expected, strict=True):
        assert one == {**other, "uri": one["uri"]}
    assert line.startswith(f"{summary.outcome.selected:,} of ")
    assert rows(f"{document['output']}/coreset.parquet") == before  # the run's own stays


@pytest.mark.parametrize(
    ("limits", "name", "changes"),
    [
        (Limits("none", 31), "tau-none_budget-31", {"tau": None, "budget": 31}),
        (Limits(budget=0.1), "budget-0.1", {"tau": 0.999, "budget": 0.1}),
        (Limits(0.98, None, 3), "tau-0.98_reference-3", {"tau": 0.98, "reference_round": 3}),
    ],
)
def test_any_limit_by_the_candidates_alone(
    document, tmp_path: Path, limits: Limits, name: str, changes: dict
) -> None:
    """Of the shards only the other columns are there."""
    moved = datasets.copy_run(document, tmp_path / "bare")
    files = [*datasets.shards_of(Path(moved["output"]), "open")]
    assert files
    for shard in files:
        table = pa.ipc.open_file(str(shard)).read_all()
        shards.write_arrow(str(shard), table.drop_columns(["embedding", shards.INT8]))
    uri = recut(moved["output"], limits).rpartition(" ")[2]
    assert uri.endswith(f"/recut/{name}.parquet")
    own, _ = selecting(document, tmp_path / "own", clusters=5, **changes)
    expected = rows(f"{own['output']}/coreset.parquet")
    assert [r["key"] for r in rows(uri)] == [r["key"] for r in expected] and expected
    assert [r["similarity"] for r in rows(uri)] == [r["similarity"] for r in expected]


def test_a_sweep_says_what_each_threshold_selects(document) -> None:
    cuts = sweep(Run.open(document["output"]))
    assert [one.tau for one in cuts] == thresholds(0.999)
    assert 0.999 in [one.tau for one in cuts] and len(cuts) == 10
    for one in cuts:
        found = rows(recut(document["output"], Limits(one.tau)).rpartition(" ")[2])
        assert (one.selected, one.rounds) == (len(found), max(r["round"] for r in found))
    selected = [one.selected for one in cuts]
    assert selected == sorted(selected) and selected[0] < selected[-1]


def test_a_budget_holds_for_every_threshold(document, tmp_path: Path) -> None:
    own, _ = selecting(document, tmp_path, clusters=5, tau=0.999, budget=17)
    cuts = sweep(Run.open(own["output"]))
    assert {one.selected for one in cuts if one.stopped_because == "budget"} == {17}
    assert cuts[-1].stopped_because == "budget"


@given(
    st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.floats(0, 1), st.integers(0, 99)
)
def test_a_cut_of_the_longest_is_the_definitions(
    images: int, k: int, reference: int, tau: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    embeddings, centroids = rng.normal(size=(images, 3)), rng.normal(size=(k, 3))
    if seed % 2:  # all similarities positive, as encoders' are
        embeddings, centroids = abs(embeddings), abs(centroids)
    unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in (embeddings, centroids)]
    longest = as_selection(brute_force_rounds(*unit, tau=None))
    expected = brute_force_rounds(*unit, tau=tau, reference_round=reference)
    found = cut(longest, tau, reference)
    assert (found.selected, found.rounds) == (len(expected["rows"]), len(expected["objectives"]))
    assert found.stopped_because == expected["why"]


def as_selection(found: dict) -> Selection:
    """What the oracle found, as the selection has it."""
    in_round = Counter(row[2] for row in found["rows"])
    totals = np.cumsum([in_round[number + 1] for number in range(len(found["objectives"]))])
    rounds = [
        Round(number + 1, objective, in_round[number + 1], int(totals[number]))
        for number, objective in enumerate(found["objectives"])
    ]
    position = np.array([row[0] for row in found["rows"]])
    return Selection(position, None, None, None, rounds, found["why"])


def test_thresholds_are_ten_with_the_runs_own() -> None:
    assert thresholds(None) == [0.98, 0.96, 0.94, 0.92, 0.9, 0.88, 0.86, 0.84, 0.82, 0.8]
    assert thresholds(0.95)[:3] == [0.98, 0.95, 0.94]
    assert thresholds(0.5)[-1] == 0.5 and len(thresholds(0.5)) == 10


def test_the_command(document, capsys) -> None:
    assert main(["recut", document["output"], "--tau", "0.97"]) == 0
    assert f"{document['output']}/recut/tau-0.97.parquet" in capsys.readouterr().out


def test_what_cannot_be_recut(document, tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=r"no run here \(no config.yaml\); `curate run` makes"):
        recut(str(tmp_path), Limits(0.9))
    (tmp_path / "config.yaml").write_text("target: x")
    with pytest.raises(CurateError, match=r"config.yaml: not a run's config"):
        recut(str(tmp_path), Limits(0.9))
    with pytest.raises(CurateError, match="nothing to change; give --tau, --budget or"):
        recut(document["output"], Limits())
    own, _ = selecting(document, tmp_path / "random", method="random", budget=3)
    with pytest.raises(CurateError, match=r"coreset.method=random: has no threshold"):
        recut(own["output"], Limits(0.9))


def test_a_run_that_was_moved_is_found(document, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    Path(document["output"]).rename(moved)
    try:
        assert Run.open(str(moved)).embedded().open_images > 0
        assert str(moved) in recut(str(moved), Limits(0.97))
    finally:
        moved.rename(document["output"])
