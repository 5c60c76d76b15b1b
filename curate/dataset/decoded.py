"""Images decoded once, for all processes of a machine that train on them.

A file that all of them map: its pages are memory, as long as there is any for them. Whoever decodes
an image leaves its pixels there. Nobody waits for anybody but to be given a place.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from curate.dataset.training_set import TrainingSet
from curate.images import EncodedImage, Pixels, Refused, dtype_of
from curate.settings import ImageSettings

SAMPLED = 64  # images, by whose size that of all is reckoned
SPARE = 1.1  # of what is reckoned
SHARE = 0.25  # of a machine's memory, that its images may take


class Decoded:
    def __init__(self, path: Path, images: int, room: int, limits: ImageSettings) -> None:
        """The file at `path`, made by whoever comes first, for so many images of `room` bytes in
        all. Once all who are to share it have it open it may be removed: it lasts as long as they
        do."""
        table = 8 * (1 + 3 * images)
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self.file, table + room)  # without pages, until there are pixels
        self.map = mmap.mmap(self.file, table + room)
        numbers = np.frombuffer(self.map, np.int64, 1 + 3 * images)
        self.end = numbers[:1]  # bytes that are given away
        self.places = numbers[1:].reshape(images, 3)  # 1 + where the pixels begin, height, width
        self.pixels = np.frombuffer(self.map, np.uint8, room, table)
        self.kind, self.channels = dtype_of(limits.bits), limits.channels

    def get(self, place: int) -> Pixels | None:
        """(height, width, C), not to be written to; None where it is not there."""
        start, height, width = self.places[place].tolist()
        if not start:
            return None
        size = height * width * self.channels * self.kind.itemsize
        stored = self.pixels[start - 1 : start - 1 + size]
        found: Pixels = stored.view(self.kind).reshape(height, width, self.channels)
        found.flags.writeable = False
        return found

    def put(self, place: int, pixels: Pixels) -> None:
        """Nothing where there is no room."""
        stored = np.ascontiguousarray(pixels).view(np.uint8).reshape(-1)
        with self._alone():
            start = int(self.end[0])
            if self.places[place, 0] or start + stored.size > len(self.pixels):
                return
            self.end[0] = start + stored.size
        self.pixels[start : start + stored.size] = stored
        with self._alone():  # and so after the pixels, to whoever reads
            self.places[place] = start + 1, *pixels.shape[:2]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # Of the process, not of the open file, which forked ones share
        fcntl.lockf(self.file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.file, fcntl.LOCK_UN)


def place_for(name: str, room: int) -> Path:
    """In shared memory, where there is twice the room; else where the pages may go to a disk."""
    shared = Path("/dev/shm")
    try:
        if shutil.disk_usage(shared).free > 2 * room:
            return shared / name
    except OSError:
        pass
    return Path(tempfile.gettempdir()) / name


def decoded_bytes(images: TrainingSet, limits: ImageSettings) -> int:
    """About how many all of the images take, by some of them."""
    places = np.linspace(0, len(images) - 1, min(SAMPLED, len(images))).astype(int).tolist()
    sizes = []
    for place in places:
        try:
            width, height = EncodedImage(images.image(place), limits).size
        except Refused:
            continue
        sizes.append(width * height * limits.pixel_bytes)
    return int(SPARE * len(images) * np.mean(sizes)) if sizes else 0


def memory_bytes() -> int:
    """Of this machine, or of the container."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return most
    return min(most, int(limit)) if limit.isdigit() else most
