"""Candidates that a selection keeps: other limits, and a grown open set, by what is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.coreset import passes
from curate.coreset.kept import Kept
from curate.coreset.lists import ENTRY
from curate.coreset.on_ray import select
from curate.coreset.rounds import Limits
from curate.coreset.similarity import prepare
from curate.errors import CurateError
from curate.runfiles import shards
from curate.runfiles.files import CandidateFiles
from curate.runfiles.shards import Shard
from tests.oracles import brute_force_rounds, same_selection, unit_rows

pytestmark = pytest.mark.usefixtures("ray_session")

D, K = 8, 7


class OpenSet:
    """Files of images by name, in any order: many copies among them, in other files as well."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(3)
        self.rows = dict(
            zip(
                "abcdef", np.split(unit_rows(rng, 600, D, duplicates=0.4, lean=0.5), 6), strict=True
            )
        )
        self.centroids = unit_rows(rng, K, D, lean=0.5)
        for name, rows in self.rows.items():
            table = pa.table({"row": np.arange(len(rows))})
            shards.write_arrow(str(folder / f"{name}.arrow"), shards.table_of(table, rows))

    def shards(self, names: str) -> list[Shard]:
        return [
            Shard(str(self.folder / f"{name}.arrow"), 0, 100, 100 * number)
            for number, name in enumerate(names)
        ]

    def lose(self, names: str) -> None:
        """Whoever reads them now fails."""
        for name in names:
            (self.folder / f"{name}.arrow").unlink()

    def kept(self, embeddings: str = "an encoder's", centroids: np.ndarray | None = None) -> Kept:
        own = self.centroids if centroids is None else centroids
        return Kept(CandidateFiles(str(self.folder / "candidates")), embeddings, own)

    def check(self, names: str, limits: Limits, **more) -> None:
        found = select(self.shards(names), self.centroids, limits, **{"kept": self.kept(), **more})
        everything = np.concatenate([self.rows[name] for name in names])
        same_selection(found, brute_force_rounds(everything, self.centroids, **vars(limits)))


@pytest.fixture
def open_set(tmp_path: Path) -> OpenSet:
    return OpenSet(tmp_path)


def test_other_limits_read_no_embedding(open_set: OpenSet) -> None:
    open_set.check("abcdef", Limits(0.8, 1, None))
    open_set.lose("abcdef")
    for limits in (Limits(0.8, 1, None), Limits(0.95, 1, None), Limits(0.9, 5, None)):
        open_set.check("abcdef", limits)
    open_set.check("abcdef", Limits(None, 1, 40))


def test_deeper_limits_go_on_below_what_is_kept(open_set: OpenSet) -> None:
    open_set.check("abcdef", Limits(0.97, 1, None), length=2)
    before = len(list((open_set.folder / "candidates").glob("*.npy")))
    open_set.check("abcdef", Limits(None, 1, 300))
    assert len(list((open_set.folder / "candidates").glob("*.npy"))) > before
    open_set.lose("abcdef")
    open_set.check("abcdef", Limits(None, 1, 300))


@pytest.mark.parametrize("length", [3, 30, None])
@pytest.mark.parametrize(
    ("before", "now"),
    [("cd", "cdef"), ("ef", "abef"), ("ace", "abcdef"), ("fa", "afb"), ("abc", "ac"), ("ab", "cd")],
)
def test_a_grown_open_set_is_scanned_where_it_is_new(
    open_set: OpenSet, before: str, now: str, length: int | None
) -> None:
    """In any order: with it, the order of equal images changes."""
    limits = Limits(None, 1, 30) if length == 30 else Limits(0.9, 1, None)
    open_set.check(before, limits, length=length)
    if length == 30:  # more than any list needs
        open_set.lose("".join(set(before)))
    open_set.check(now, limits)
    open_set.lose("".join({*now} - ({*before} if length == 30 else set())))
    open_set.check(now, limits)


def test_others_lists_are_not_taken(open_set: OpenSet) -> None:
    open_set.check("ab", Limits(0.9, 1, None), kept=open_set.kept("another's"))
    open_set.check("ab", Limits(0.9, 1, None))
    other = unit_rows(np.random.default_rng(9), 3, D)
    select(open_set.shards("ab"), other, Limits(0.9, 1, None), kept=open_set.kept(centroids=other))
    open_set.check("ab", Limits(0.9, 1, None))


@pytest.mark.parametrize("damage", ["gone", "short", "other"])
def test_a_damaged_piece_is_named(open_set: OpenSet, damage: str) -> None:
    open_set.check("ab", Limits(0.9, 1, None))
    (piece,) = (open_set.folder / "candidates").glob("*.npy")
    if damage == "gone":
        piece.unlink()
    elif damage == "short":
        piece.write_bytes(piece.read_bytes()[:200])
    else:
        np.save(piece, np.zeros(500))
    with pytest.raises(CurateError, match=rf"{piece.name}: gone, or damaged; remove its folder"):
        open_set.check("ab", Limits(0.9, 1, None))


@pytest.mark.parametrize("most", [1, 40, 500])
def test_lists_in_many_pieces(
    open_set: OpenSet, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "MOST_ENTRIES", most)
    monkeypatch.setattr(passes, "FAN_IN", 2)
    open_set.check("abcdef", Limits(0.9, 1, None), length=20)
    pieces = list((open_set.folder / "candidates").glob("*.npy"))
    assert len(pieces) >= (K if most <= 40 else 1)
    assert all(np.load(piece).dtype == ENTRY for piece in pieces)


@pytest.mark.parametrize("most", [1, 30, 10_000])
def test_a_scan_gives_its_entries_in_tables_that_can_be_sorted(
    open_set: OpenSet, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "MOST_ENTRIES", most)
    monkeypatch.setattr(passes, "PAIRS_AT_ONCE", 20 * K)
    ready, lengths = prepare(open_set.centroids), np.full(K, 50)
    floor = passes.Floor.at(np.full(K, 0.3))
    group = open_set.shards("abc")
    tables = list(passes._scan_group._function(group, ready, floor, lengths, None, None))
    assert (len(tables) > 1) == (most < 10_000)
    merged = passes.merge(tables, lengths)
    everything = np.concatenate([open_set.rows[name] for name in "abc"])
    near = everything.astype(float) @ ready.f64.T
    for q in range(K):
        own = merged.centroid == q
        wanted = [p for p in np.lexsort((np.arange(300), -near[:, q])) if near[p, q] >= 0.3][:50]
        assert merged.position[own].tolist() == wanted
