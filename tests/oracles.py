"""Slow, independent answers, written straight from the definitions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray


def brute_force_rounds(
    open_set: NDArray[np.floating],
    centroids: NDArray[np.floating],
    *,
    tau: float | None = None,
    reference_round: int = 1,
    budget: int | None = None,
) -> dict:
    """The selection by the full similarity matrix (K, N) and an argmax a centroid a round.

    Inputs must be multiples of 2^-24 of norm 1 (float16 is): float64 then holds every similarity
    exactly. Returns rows (position, centroid, round, similarity) sorted by (round, centroid), the
    objectives of the rounds that were added, and why it stopped.
    """
    w = centroids.astype(np.float64) @ open_set.astype(np.float64).T  # (K, N)
    k, n = w.shape
    left = np.ones(n, bool)
    rows: list[tuple[int, int, int, float]] = []
    objectives: list[float] = []
    reference = None
    t = 0
    while True:
        if budget is not None and len(rows) >= budget:
            return {"rows": rows, "objectives": objectives, "why": "budget"}
        if not left.any():
            return {"rows": rows, "objectives": objectives, "why": "open set used up"}
        t += 1
        picks = [int(np.argmax(np.where(left, w[q], -np.inf))) for q in range(k)]
        values = [w[q, picks[q]] for q in range(k)]
        objective = float(sum(Fraction(float(v)) for v in values)) / k
        if t == reference_round:
            reference = objective
        if tau is not None and reference is not None and objective < tau * reference:
            return {"rows": rows, "objectives": objectives, "why": "threshold"}
        chosen = []
        for image in set(picks):
            q = max(range(k), key=lambda q: (picks[q] == image, w[q, image], -q))
            chosen.append((image, q, t, float(w[q, image])))
        room = len(chosen) if budget is None else budget - len(rows)
        chosen = sorted(chosen, key=lambda row: (-row[3], row[0]))[:room]
        rows += sorted(chosen, key=lambda row: row[1])
        objectives.append(objective)
        left[picks] = False


def unit_rows(
    rng: np.random.Generator, n: int, d: int, *, duplicates: float = 0.0, lean: float = 0.0
) -> NDArray:
    """(n, d) float16 of unit norm; a share of the rows are copies of others.

    lean: how far all of them lean in one direction, so that similarities are positive.
    """
    rows = rng.standard_normal((n, d)) + lean
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows.astype(np.float16)
    copies = np.flatnonzero(rng.random(n) < duplicates)
    rows[copies] = rows[rng.integers(0, max(n, 1), len(copies))]
    return rows


def exact_dot(x: NDArray[np.floating], c: NDArray[np.floating]) -> Fraction:
    """The dot product of two vectors as a fraction."""
    return sum(
        (Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x, c, strict=True)), Fraction()
    )


def sorted_keys(
    block: NDArray[np.floating], centroids: NDArray[np.floating], first: int
) -> list[list[tuple[float, int]]]:
    """For each centroid all images as (similarity, position), best first."""
    w = centroids.astype(np.float64) @ block.astype(np.float64).T  # (K, n), exact
    return [
        sorted(
            ((float(value), first + i) for i, value in enumerate(row)),
            key=lambda entry: (-entry[0], entry[1]),
        )
        for row in w
    ]


def same_selection(selection: Any, truth: dict) -> None:
    """Every number of a `Selection` is that of `brute_force_rounds`."""
    assert selection.stopped_because == truth["why"]
    columns = selection.position, selection.centroid, selection.round, selection.similarity
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == truth["rows"]
    assert [each.objective for each in selection.rounds] == truth["objectives"]
    assert [each.number for each in selection.rounds] == list(range(1, len(selection.rounds) + 1))
    of_round = np.bincount(selection.round, minlength=len(selection.rounds) + 1)[1:]
    assert [each.added for each in selection.rounds] == of_round.tolist()
    assert [each.total for each in selection.rounds] == np.cumsum(of_round).tolist()
