"""Copies of a remote training set's parts on this machine's disk, made while training goes on.

One process a machine fetches them, several at a time, in their order; should it end, another goes
on. All see a part as soon as it is whole, and nobody waits for any.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from curate import disk, storage
from curate.errors import CurateError, one_line
from curate.faults import is_full

log = logging.getLogger(__name__)

PREFIX = "curate-data-"
AT_ONCE = 8  # parts
SHARE = 0.8  # of what is free, and of what the copies take already


class Part(NamedTuple):
    """Where it is, its name here, and its bytes."""

    uri: str
    name: str
    size: int


@dataclass(frozen=True)
class Cache:
    folder: Path

    @staticmethod
    def of(digest: str) -> Cache:
        """digest: of the set's index."""
        return Cache(Path(tempfile.gettempdir()) / f"{PREFIX}{digest}")

    def path(self, part: Part) -> Path:
        return self.folder / part.name

    def has(self, part: Part) -> bool:
        """Whether the part is here, whole."""
        try:
            return self.path(part).stat().st_size == part.size
        except FileNotFoundError:
            return False

    def fill(self, parts: list[Part], limit_gb: float | None) -> None:
        """Fetch the parts, from the first on, as many as there is room for, without waiting for
        them. limit_gb: SHARE of what is free where None."""
        with _starting:
            if self.folder not in _fillers:
                filler = threading.Thread(target=_fill, args=(self, parts, limit_gb), daemon=True)
                _fillers[self.folder] = filler
                filler.start()


_starting = threading.Lock()
_fillers: dict[Path, threading.Thread] = {}  # of this process
_held: dict[Path, IO[str]] = {}  # locks, for as long as it lives: its cache is in use


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _fill(cache: Cache, parts: list[Part], limit_gb: float | None) -> None:
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
        lock = open(_lock_of(cache.folder), "w")  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX)  # this thread alone waits
        _held[cache.folder] = lock
        kept = parts[: _fitting(cache, parts, limit_gb)]
        _tidy(cache, kept)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                for _ in pool.map(partial(_fetch, cache), kept):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        log.info("training set: %d of its %d parts are on this disk", len(kept), len(parts))
    except Exception as error:  # training goes on without
        log.warning("training set: not kept on this disk any further: %s", one_line(error, 200))


def _fitting(cache: Cache, parts: list[Part], limit_gb: float | None) -> int:
    """How many of the parts, from the first on, may be kept; other sets' copies give way."""

    def room() -> float:
        there = sum(part.size for part in parts if cache.has(part))
        return SHARE * (shutil.disk_usage(cache.folder).free + there)

    limit = float("inf") if limit_gb is None else limit_gb * 1e9
    wanted = min(limit, sum(part.size for part in parts))
    locks = cache.folder.parent.glob(f"{PREFIX}*.lock")
    for other in sorted(locks, key=lambda path: path.stat().st_mtime):
        if room() >= wanted:
            break
        if other != _lock_of(cache.folder):
            _remove(other)
    limit = min(limit, room())
    total = count = 0
    for part in parts:
        total += part.size
        if total > limit:
            break
        count += 1
    return count


def _remove(lock_path: Path) -> None:
    """Another set's copies, unless it is in use."""
    with open(lock_path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
        lock_path.unlink(missing_ok=True)


def _tidy(cache: Cache, kept: list[Part]) -> None:
    """Remove what is over the limit now, and what a process that was killed had begun."""
    names = {part.name for part in kept}
    for path in cache.folder.iterdir():
        if path.name not in names:
            path.unlink()


def _fetch(cache: Cache, part: Part) -> None:
    if cache.has(part):
        return
    path = str(cache.path(part))

    def copy() -> None:
        try:
            with disk.scratch(path) as scratch:
                with storage.open_seekable(part.uri) as remote, open(scratch, "wb") as file:
                    shutil.copyfileobj(remote, file, 8 << 20)
                os.replace(scratch, path)
        except OSError as error:
            if is_full(error):
                raise CurateError(f"{path}: {one_line(error)}") from error
            raise

    storage.own_read(part.uri, copy)
