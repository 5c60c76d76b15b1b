"""What is loaded by threads, ahead of what uses it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
W = TypeVar("W")

THREADS = min(8, os.cpu_count() or 1)
BATCHES_AHEAD = 2


def loaded(
    load: Callable[[W], T], batches: Iterable[list[W]], threads: int = THREADS
) -> Iterator[list[T]]:
    """Every batch with its entries loaded, in order, a few batches ahead of what is used.

    threads: that load; Pillow and libjpeg let go of Python's lock. 0 loads in the caller's own,
    when a batch is asked for.
    """
    if not threads:
        for batch in batches:
            yield [load(entry) for entry in batch]
        return
    pool = ThreadPoolExecutor(threads)
    waiting = iter(batches)

    def submit(count: int) -> Iterator[list[Future[T]]]:
        for batch in islice(waiting, count):
            yield [pool.submit(load, entry) for entry in batch]

    try:
        ahead = deque(submit(BATCHES_AHEAD))
        while ahead:
            yield [entry.result() for entry in ahead.popleft()]
            ahead.extend(submit(1))
    finally:
        pool.shutdown(cancel_futures=True)
