"""What may be selected and what must be: against plain sets of keys and digests."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.coreset import constraints, copies, stage
from curate.coreset.rounds import Selection
from curate.errors import CurateError
from curate.runfiles import shards
from curate.runfiles.run import Beside, Embedded
from curate.runfiles.shards import Shard
from curate.settings import CoresetSettings
from curate.settings.selection import QuotaSettings
from tests.oracles import brute_force_rounds, unit_rows

pytestmark = pytest.mark.usefixtures("ray_session")

N, D = 300, 8
SOURCES = ("web", "own", "web")  # of each shard
CUTS = (0, 110, 180, N)


class Sets:
    """An open set of which a third are copies of others, some of them of target images."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(2)
        self.target = unit_rows(rng, 30, D)
        content = rng.integers(0, 200, N)
        self.contents = ["t" + str(c % 30) if c < 15 else "u" + str(c) for c in content]
        self.rows = unit_rows(rng, 200, D)[content]
        self.rows[content < 15] = self.target[content[content < 15]]
        self.folder = folder
        self.keys = [f"k/{i}" for i in range(N)]
        self.shards = [
            self._write(folder / f"{low:04d}.arrow", self.rows[low:high], low, high)
            for low, high in pairwise(CUTS)
        ]
        names = [f"t{i}" for i in range(30)]
        of_target = self._shard(folder / "target.arrow", self.target, names, names)
        self.found = Embedded([of_target], self.shards, list(SOURCES), "")

    def _write(self, path: Path, rows: np.ndarray, low: int, high: int) -> Shard:
        made = self._shard(path, rows, self.keys[low:high], self.contents[low:high])
        return Shard(made.uri, 0, high - low, low)

    @staticmethod
    def _shard(path: Path, rows: np.ndarray, keys: list[str], contents: list[str]) -> Shard:
        digests = [hashlib.sha256(one.encode()).hexdigest() for one in contents]
        table = shards.table_of(pa.table({"key": keys, "sha256": digests}), rows)
        shards.write_arrow(str(path), table)
        return Shard(str(path), 0, len(rows), 0)

    def place(self, position: int) -> str:
        shard = max(i for i in range(3) if CUTS[i] <= position)
        return f"{SOURCES[shard]}/{self.keys[position]}"

    def firsts(self, added: tuple[int, ...] = ()) -> list[int]:
        """Positions that are no copies, of an image before them or of one that was added."""
        seen = {f"t{i}" for i in range(30)} | {self.contents[p] for p in added}
        kept = []
        for position, content in enumerate(self.contents):
            if content not in seen and position not in added:
                kept.append(position)
                seen.add(content)
        return kept


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    return Sets(tmp_path_factory.mktemp("constrained"))


def chosen(sets: Sets, **settings: Any) -> Selection:
    coreset = CoresetSettings(**{"clusters": 4, "tau": None} | settings)
    return stage.choose(coreset, sets.found, stage.guide_of(sets.found, coreset))


@pytest.mark.parametrize("at_once", [100_000, 40])
def test_of_copies_the_first(sets: Sets, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """In one range of digests and in several."""
    monkeypatch.setattr(copies, "DIGESTS_AT_ONCE", at_once)
    made = constraints.of(CoresetSettings(dedup="exact"), sets.found, None)
    assert made.allowed is not None
    assert made.allowed.rows(0, N).tolist() == sets.firsts()
    of_target = sum(content.startswith("t") for content in sets.contents)
    assert made.left_out == {
        "copies of a target image": of_target,
        "copies": N - of_target - len(sets.firsts()),
    }


@pytest.mark.parametrize("method", ["simcore", "ratio", "gate", "resample", "random", "all"])
def test_every_method_is_bound(sets: Sets, method: str) -> None:
    """Dropped images and copies are not there; added ones are, first, and count."""
    gone = [3, 111, 290]
    added = tuple(p for p in (7, 150, 299) if not sets.contents[p].startswith("t"))
    limits = {} if method == "all" else {"budget": 40}
    settings = {"dedup": "exact", "drop": [sets.place(p) for p in gone], "method": method}
    found = chosen(sets, **settings, **limits, add=[sets.place(p) for p in added])
    taken = found.position.tolist()
    assert len(taken) == len(set(taken)) and set(added) <= set(taken)
    allowed = set(sets.firsts(added)) - set(gone)
    assert set(taken) - set(added) <= allowed
    assert len(taken) == (len(allowed) + len(added) if method == "all" else 40)
    assert sum(found.left_out.values()) == N - len(allowed) - len(added)
    if method in ("simcore", "gate"):
        assert found.round is not None and found.position[found.round == 0].tolist() == [*added]


def test_rounds_are_those_of_what_is_left(sets: Sets) -> None:
    found = chosen(sets, dedup="exact", budget=33, drop=["own/k/120"])
    kept = np.array([p for p in sets.firsts() if p != 120])
    coreset = CoresetSettings(clusters=4, tau=None)
    centroids = stage.guide_of(sets.found, coreset).centroids
    assert centroids is not None
    grid = np.rint(centroids.astype(float) * 2**24) / 2**24
    truth = brute_force_rounds(sets.rows[kept], grid, budget=33)
    assert found.position.tolist() == [int(kept[row[0]]) for row in truth["rows"]]
    assert found.similarity is not None
    assert found.similarity.tolist() == [row[3] for row in truth["rows"]]


def test_where_the_sources_say_so(sets: Sets) -> None:
    """By what is beside the shards, by the shards' own columns, and by the source. A copy takes the
    place of an image that may not be taken; one that is added is not asked."""
    licenses = ["cc0" if position % 3 else None for position in range(N)]
    beside = sets.folder / "beside.arrow"
    shards.write_arrow(str(beside), pa.table({"license": licenses, "year": pa.nulls(N)}))
    tables = [Shard(str(beside), low, high - low, low) for low, high in pairwise(CUTS)]
    schema = pa.schema({"license": pa.string(), "year": pa.int64()})
    found = replace(sets.found, beside=Beside(tables, schema))
    where = "license == 'cc0' and (source != 'own' or key > 'k/15') and year is null"
    may = [p for p in range(N) if p % 3 and (not CUTS[1] <= p < CUTS[2] or sets.keys[p] > "k/15")]
    made = constraints.of(CoresetSettings(where=where), found, None)
    assert made.allowed is not None and made.allowed.rows(0, N).tolist() == may
    assert made.left_out == {constraints.NOT_WHERE: N - len(may)}

    added = next(p for p in range(N) if p not in may and sets.contents[p].startswith("u"))
    coreset = CoresetSettings(where=where, dedup="exact", add=[sets.place(added)])
    made = constraints.of(coreset, found, None)
    seen, kept = {f"t{i}" for i in range(30)} | {sets.contents[added]}, []
    for position in may:
        if sets.contents[position] not in seen:
            seen.add(sets.contents[position])
            kept.append(position)
    assert made.allowed is not None and made.allowed.rows(0, N).tolist() == kept
    assert made.left_out[constraints.NOT_WHERE] == N - len(may) - 1
    assert len(kept) + sum(made.left_out.values()) == N - 1

    quotas = [QuotaSettings(by="license", most=7)]
    coreset = CoresetSettings(clusters=4, tau=None, budget=60, quotas=quotas)
    taken = stage.choose(coreset, found, stage.guide_of(found, coreset)).position
    assert sum(licenses[p] == "cc0" for p in taken) == 7 and len(taken) == 60

    for where, said in {
        "nowhere == 1": "no column 'nowhere', which the selection needs",
        "license > 3": "license is string",
        "year == 'x'": "year is int64",
    }.items():
        with pytest.raises(CurateError, match=said):
            constraints.of(CoresetSettings(where=where), found, None)


def test_keys_in_a_file(sets: Sets, tmp_path: Path) -> None:
    listed = tmp_path / "drop.txt"
    listed.write_text(f"{sets.place(5)}\n\n {sets.place(200)} \n")
    made = constraints.of(CoresetSettings(drop=str(listed)), sets.found, None)
    assert made.allowed is not None
    assert set(range(N)) - set(made.allowed.rows(0, N).tolist()) == {5, 200}
    assert made.left_out == {"dropped by hand": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop": ["web/nowhere", "web/k/1"]}, "coreset.drop: 1 of its keys .* as web/nowhere"),
        ({"drop": ["own/k/1"]}, "coreset.drop: 1 of its keys are of no embedded image"),
        ({"add": ["other/k/1"]}, "coreset.add: other/k/1: not SOURCE/KEY; sources are web, own"),
        ({"add": ["web/k/1"], "drop": ["web/k/1"]}, "coreset.add: 1 of its images are in"),
        ({"add": ["web/k/1", "web/k/2"], "budget": 1}, "2 images, more than the budget of 1"),
        ({"drop": "/nowhere.txt"}, "coreset.drop: /nowhere.txt: "),
    ],
)
def test_what_is_refused(sets: Sets, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CurateError, match=message):
        chosen(sets, **settings)


def test_embeddings_without_digests(sets: Sets, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", sets.rows)
    found = Embedded(sets.found.target, [Shard(str(tmp_path / "a.npy"), 0, N, 0)], ["a"], "")
    with pytest.raises(CurateError, match=r"a.npy: no column 'sha256'"):
        constraints.of(CoresetSettings(dedup="exact"), found, None)
