"""Images that kill or stall their reader: found by a process that may die of them.

Decoders are C; an image that crashes one, or fills the memory, takes the reader with it, and Ray
starts the reader again with the same images, for ever. A unit on which two readers died is read
first by a bounded process that says of each image what it is about to do. Whatever it dies of, or
does not come back from, is rejected; the next process goes on behind that.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO

import ray

from curate.images import EncodedImage, Preprocessing, Refused, load_resize
from curate.settings import ImageSettings, SourceSettings
from curate.sources import Changed, Unit, read_unit
from curate.storage import Unavailable

READ, DECODE, DONE = "read", "decode", "done"
OUT_OF_MEMORY = 77  # exit status


@dataclass(frozen=True)
class Bounds:
    """Of one image: seconds to decode it; of the process: bytes of memory beside its libraries."""

    seconds: float = 120.0
    memory: int = 8 << 30


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Watch:
    """Counts the readers that began a unit and were not heard of again. It may forget: who lost it
    asks the next one, and counts from there."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()

    def begun(self, unit: str) -> int:
        """→ how many before this one."""
        self.open[unit] += 1
        return self.open[unit] - 1

    def ended(self, unit: str) -> None:
        del self.open[unit]


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Ends this process when it takes longer, even in a C function that lets no other thread in:
    SIGALRM, which nothing here handles. Of all clocks this one costs an image next to nothing."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@dataclass(frozen=True)
class Careful:
    """A unit to be read by processes of their own."""

    source: SourceSettings
    unit: Unit
    limits: ImageSettings
    preprocessing: Preprocessing
    bounds: Bounds

    def deadly(self) -> tuple[dict[int, str], str | None]:
        """Places in the unit of images that no process survives, and what it died of; and, where
        reading kills before there is an image to decode, what it died of then."""
        found: dict[int, str] = {}
        first = 0
        while True:
            doing, place, end = self._run(first, None, found)
            if doing == DONE:
                return found, None
            if doing == READ:
                return found, f"reading it kills the reader: {end}"
            # What the images before it left behind may have been too much; then it lives alone
            alone, _, end = self._run(place, place + 1, found)
            if alone != DONE:
                found[place] = f"its decoder kills the reader: {end}"
            first = place + 1

    def _run(self, first: int, stop: int | None, skip: dict[int, str]) -> tuple[str, int, str]:
        """(what was being done, with which image, how it ended)."""
        process = subprocess.Popen(
            [sys.executable, "-m", "curate.embedding.careful"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdin is not None and process.stdout is not None
        lines: Queue[bytes] = Queue()
        reader = Thread(target=_pump, args=(process.stdout, lines), daemon=True)
        reader.start()
        doing, place = READ, first
        try:
            process.stdin.write(pickle.dumps((self, first, stop, set(skip))))
            process.stdin.close()
            while True:
                line = lines.get(timeout=self.bounds.seconds if doing == DECODE else None)
                if not line:
                    return doing, place, _ending(process.wait())
                doing, number = line.decode().split()
                place = int(number)
                if doing == DONE:
                    return DONE, place, ""
        except Empty:
            return doing, place, f"more than {self.bounds.seconds:g} s"
        finally:
            process.kill()
            process.wait()

    def read(self, first: int, stop: int | None, skip: set[int]) -> Iterator[tuple[str, int]]:
        """In the process: what it is about to do, and with which image."""
        yield READ, 0
        place = -1
        try:
            for place, item in enumerate(read_unit(self.source, self.unit, self.limits.max_bytes)):
                if stop is not None and place >= stop:
                    break
                if place >= first and place not in skip and item.data is not None:
                    yield DECODE, place
                    _decode(item.data, self.limits, self.preprocessing)
                yield READ, place + 1
        except (Unavailable, Changed):
            pass  # no image's doing: the reader that comes after meets it as well, and says so
        yield DONE, place


def _decode(data: bytes, limits: ImageSettings, preprocessing: Preprocessing) -> None:
    try:
        preprocessing.pixels(EncodedImage(data, limits))
    except Refused as refused:  # which it survives
        if isinstance(refused.__cause__, MemoryError):  # and this a reader without bounds may not
            raise refused.__cause__ from None


def _pump(stream: IO[bytes], lines: Queue[bytes]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(b"")


def _ending(status: int) -> str:
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return "out of memory" if status == OUT_OF_MEMORY else f"exit status {status}"


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _main() -> None:
    careful, first, stop, skip = pickle.load(sys.stdin.buffer)
    load_resize()  # maps gigabytes of addresses that it never touches
    limit = _mapped_bytes() + careful.bounds.memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        for doing, place in careful.read(first, stop, skip):
            print(doing, place, flush=True)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    _main()
