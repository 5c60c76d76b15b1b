"""Which files there are, on any filesystem: below a folder, or by patterns."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fsspec.implementations.local import LocalFileSystem

from curate import names, storage
from curate.errors import CurateError

CHECKED_AT_ONCE = 32  # names that a pattern's braces stand for


@dataclass(frozen=True, order=True)
class FileInfo:
    uri: str
    size: int


@dataclass(frozen=True, order=True)
class FileBelow(FileInfo):
    """A file of a tree."""

    path: str  # below the root
    regular: bool = True  # no pipe, socket or device; unknown of a link that leads nowhere


def find(root: str) -> list[FileBelow]:
    """Every file below a folder, sorted by URI. Links are followed.

    Raises FileNotFoundError where there is no such folder.
    """
    fs, path = storage.filesystem(root)
    if not fs.isdir(path):
        raise FileNotFoundError(root)
    if isinstance(fs, LocalFileSystem):
        found = _walk(path)
    else:
        listed = fs.find(path, detail=True).items()
        found = ((name, int(info.get("size") or 0), True) for name, info in listed)
    above = storage.named_like(root, path.rstrip("/") + "/")
    named = ((storage.named_like(root, name), size, regular) for name, size, regular in found)
    return sorted(FileBelow(uri, size, uri.removeprefix(above), ok) for uri, size, ok in named)


def _walk(root: str) -> Iterator[tuple[str, int, bool]]:
    """(path, bytes, whether it is a regular file). A folder that a link leads back to from below is
    not entered again."""
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in above:
            continue
        above |= {(about.st_dev, about.st_ino)}
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    about = entry.stat()
                except OSError:  # a link that leads nowhere: reading it says so
                    yield entry.path, 0, True
                    continue
                if stat.S_ISDIR(about.st_mode):
                    waiting.append((entry.path, above))
                else:
                    yield entry.path, about.st_size, stat.S_ISREG(about.st_mode)


def expand(patterns: list[str]) -> list[FileInfo]:
    """Files matching any of the patterns, each once: sorted by URI, or, where braces are among
    the patterns, in the order of what is written.

    A name that exists as it is written is taken as it is, even with `[`, `*` or `{` in it.

    Raises CurateError for a pattern, or one of the names that its braces stand for, that matches
    nothing.
    """
    written: list[str] = []
    for pattern in patterns:
        braces = "{" in pattern and not storage.exists(pattern)
        written += names.expanded(pattern) if braces else [pattern]
    with ThreadPoolExecutor(CHECKED_AT_ONCE) as pool:
        matches = list(pool.map(_matches, written))
    found = {file.uri: file for files in matches for file in files}
    return list(found.values()) if written != patterns else sorted(found.values())


def _matches(pattern: str) -> list[FileInfo]:
    """Files matching a pattern without braces, sorted by URI."""
    fs, path = storage.filesystem(pattern)
    if fs.isfile(path):
        matches = {path: fs.info(path)}
    else:
        matches = fs.glob(path, detail=True) if glob.has_magic(path) else {}
    local = isinstance(fs, LocalFileSystem)
    files = []
    for name, info in matches.items():
        uri = storage.named_like(pattern, name)
        if os.path.isdir(name) if local else info["type"] == "directory":
            continue
        if local and os.path.exists(name) and not os.path.isfile(name):
            raise CurateError(f"{uri}: not a regular file; narrow the pattern")
        files.append(FileInfo(uri, int(info.get("size") or 0)))
    if not files and fs.isdir(path):
        raise CurateError(
            f"{pattern}: a folder; name its files, as in {storage.join(pattern, '*')}"
        )
    if not files:
        raise CurateError(f"{pattern}: matches no file; check the path")
    return sorted(files)
