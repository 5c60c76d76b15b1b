"""Copies of embeddings in a quarter of float32's bytes, and how far each is from its row.

A row x is held as s·q: q of whole numbers from -127 to 127, s its scale. The distance ‖x - s·q‖ is
kept beside it, so that what follows from q alone is known within bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NORM_TOLERANCE = 0.01  # of unit rows
LEVELS = 127
ROWS_AT_ONCE = 8192
ROUNDED_UP = 1 + 2.0**-20  # of an error computed in float64, stored as float32


@dataclass(frozen=True)
class Int8:
    """values (N, D); scale (N,) and error (N,), the distance of each row from scale · values."""

    values: NDArray[np.int8]
    scale: NDArray[np.float32]
    error: NDArray[np.float32]

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> Int8:
        return Int8(self.values[rows], self.scale[rows], self.error[rows])


@dataclass(frozen=True)
class Block:
    """rows (N, D) of embeddings, as they are stored, and their copies where there are any."""

    rows: NDArray[np.floating]
    int8: Int8 | None = None

    def __getitem__(self, rows: slice) -> Block:
        return Block(self.rows[rows], None if self.int8 is None else self.int8[rows])


def quantise(rows: NDArray[np.floating]) -> Int8:
    """rows (N, D), finite."""
    n, width = rows.shape
    made = Int8(np.empty((n, width), np.int8), np.empty(n, np.float32), np.empty(n, np.float32))
    for start in range(0, n, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        exact = rows[part].astype(np.float64)
        scale = (np.abs(exact).max(axis=1, initial=0) / LEVELS).astype(np.float32)
        steps = scale.astype(np.float64)[:, None]
        values = np.divide(exact, steps, out=np.zeros_like(exact), where=steps > 0)
        made.values[part] = np.clip(np.rint(values), -LEVELS, LEVELS)
        away = np.linalg.norm(exact - steps * made.values[part], axis=1)
        made.scale[part] = scale
        made.error[part] = away * ROUNDED_UP
    return made


def are_unit(norms: NDArray[np.floating]) -> NDArray[np.bool_]:
    """norms (N,) of rows; NaN is none."""
    return np.abs(norms - 1) <= NORM_TOLERANCE
