"""A check that fails in every way, so that those who run checks can be tested."""

from __future__ import annotations

import ctypes
import time

from tests.faults import bounded

bounded.SEED_S = 1


def misbehave(seed: int) -> str:
    if seed == 1:
        raise ValueError("seed 1")
    if seed == 2:
        ctypes.string_at(0)
    if seed == 3:
        time.sleep(60)
    if seed == 4:
        bytearray(10 * bounded.MEMORY_BYTES)
    return "well"
