"""Which files there are, on any filesystem: below a folder, or by patterns."""

from __future__ import annotations

import glob
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from curate import keyspace, names, storage
from curate.errors import CurateError
from curate.faults import is_web

CHECKED_AT_ONCE = 32  # names that a pattern's braces stand for
LISTS_AT_ONCE = 32  # of an object store
PAGE_KEYS = 1000  # as many as S3 gives at once


# What fsspec's filesystems call a file's version, or else the time of its last change
STAMPS = (
    *("ETag", "etag", "md5Hash"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "updated"),
)


@dataclass(frozen=True, order=True)
class FileInfo:
    uri: str
    size: int
    stamp: str = ""  # changes when the file does; empty where the filesystem has none


@dataclass(frozen=True, order=True)
class FileBelow:
    """A file of a tree."""

    uri: str
    size: int
    path: str  # below the root
    regular: bool = True  # no pipe, socket or device; unknown of a link that leads nowhere
    stamp: str = ""


def stamp_of(uri: str) -> tuple[int, str]:
    """(bytes, stamp) of a file as it is now.

    Raises FileNotFoundError where it is gone, storage.Unavailable where nobody can say.
    """
    fs, path = storage.filesystem(uri)
    fs.invalidate_cache(path)
    info = storage.with_retries(uri, lambda: fs.info(path))
    if info["type"] == "directory":
        raise FileNotFoundError(uri)
    return _about(fs, info)


def _about(fs: AbstractFileSystem, info: dict[str, Any]) -> tuple[int, str]:
    """(bytes, stamp) of a file, as its filesystem tells of it."""
    size = int(info.get("size") or 0)
    if isinstance(fs, LocalFileSystem):  # fsspec knows no nanoseconds
        try:
            return size, str(os.stat(info["name"]).st_mtime_ns)
        except OSError:  # a link that leads nowhere: reading it says so
            return size, ""
    value = next((info[key] for key in STAMPS if info.get(key)), "")
    return size, value.isoformat() if isinstance(value, datetime) else str(value).strip('"')


def find(root: str) -> list[FileBelow]:
    """Every file below a folder, sorted by URI. Links are followed.

    Raises FileNotFoundError where there is no such folder.
    """
    fs, path = storage.filesystem(root)
    above = storage.named_like(root, path.rstrip("/") + "/")
    files = []
    for name, size, regular, stamp in _found(fs, path, root):
        uri = storage.named_like(root, name)
        files.append(FileBelow(uri, size, uri.removeprefix(above), regular, stamp))
    return sorted(files)


Found = tuple[str, int, bool, str]  # path, bytes, whether it is a regular file, stamp


def _found(fs: AbstractFileSystem, path: str, root: str) -> Iterable[Found]:
    """Every file below a folder."""
    # S3's directory buckets do not list in order
    in_order = "s3" in fs.protocol and not path.partition("/")[0].endswith("--x-s3")
    if in_order and (found := _keys_below(fs, path, root)):
        return found
    if not storage.with_retries(root, lambda: fs.isdir(path)):
        raise FileNotFoundError(root)
    if isinstance(fs, LocalFileSystem):
        return _walk(path)
    return _folders_below(fs, path, root)


def _keys_below(fs: AbstractFileSystem, path: str, root: str) -> list[Found]:
    """All keys of a prefix, whatever folders are in them."""
    bucket, _, key = path.partition("/")
    prefix = key.rstrip("/") + "/" if key else ""
    where = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE_KEYS, **fs.req_kw}

    def page(after: str | None) -> tuple[list[Found], bool]:
        start = {} if after is None else {"StartAfter": prefix + after}
        listed = storage.with_retries(root, lambda: fs.call_s3("list_objects_v2", **where, **start))
        entries = []
        for entry in listed.get("Contents", []):
            size, stamp = _about(fs, {"size": entry["Size"], **entry})
            entries.append((entry["Key"][len(prefix) :], size, True, stamp))
        return entries, listed["IsTruncated"]

    above = f"{bucket}/{prefix}"
    found = keyspace.list_all(page, LISTS_AT_ONCE)
    return [(above + below, size, ok, stamp) for below, size, ok, stamp in found]


def _folders_below(fs: AbstractFileSystem, path: str, root: str) -> Iterator[Found]:
    """Folder by folder, many at once."""
    with ThreadPoolExecutor(LISTS_AT_ONCE) as pool:
        waiting = {pool.submit(_listed, fs, path, root)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for found, is_folder in (entry for folder in done for entry in folder.result()):
                if is_folder:
                    waiting.add(pool.submit(_listed, fs, found[0], root))
                else:
                    yield found


Entry = tuple[Found, bool]  # of a folder; whether it is one itself


def _listed(fs: AbstractFileSystem, folder: str, root: str, stem: str = "") -> list[Entry]:
    """What is in a folder, but perhaps for names that do not begin with `stem`."""
    if isinstance(fs, LocalFileSystem):
        return list(_scanned(folder))

    def entries() -> list[dict[str, Any]]:
        if stem and "s3" in fs.protocol:  # which need not list the rest
            return list(fs.find(folder, 1, withdirs=True, detail=True, prefix=stem).values())
        return list(fs.ls(folder, detail=True))

    found = []
    for info in storage.with_retries(root, entries):
        if info["name"].rstrip("/") != folder.rstrip("/"):
            size, stamp = _about(fs, info)
            found.append(((info["name"], size, True, stamp), info["type"] == "directory"))
    return found


def _scanned(folder: str) -> Iterator[Entry]:
    """Of the disk."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                about = entry.stat()
            except OSError:  # a link that leads nowhere: reading it says so
                yield (entry.path, 0, True, ""), False
                continue
            regular = stat.S_ISREG(about.st_mode)
            found = (entry.path, about.st_size, regular, str(about.st_mtime_ns))
            yield found, stat.S_ISDIR(about.st_mode)


def _walk(root: str) -> Iterator[Found]:
    """On the disk. A folder that a link leads back to from below is not entered again."""
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in above:
            continue
        above |= {(about.st_dev, about.st_ino)}
        for found, is_folder in _scanned(folder):
            if is_folder:
                waiting.append((found[0], above))
            else:
                yield found


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
    local = isinstance(fs, LocalFileSystem)
    found: list[Found] = []
    try:
        info = storage.with_retries(pattern, lambda: fs.info(path))
        if info["type"] != "directory":
            regular = not local or info["type"] == "file"
            size, stamp = _about(fs, info)
            found = [(path, size, regular, stamp)]
    except (FileNotFoundError, NotADirectoryError):
        found = _globbed(fs, path, pattern)
    files = []
    for name, size, regular, stamp in found:
        uri = storage.named_like(pattern, name)
        if not regular:
            raise CurateError(f"{uri}: not a regular file; narrow the pattern")
        files.append(FileInfo(uri, size, stamp))
    if not files and storage.with_retries(pattern, lambda: fs.isdir(path)):
        raise CurateError(
            f"{pattern}: a folder; name its files, as in {storage.join(pattern, '*')}"
        )
    if not files:
        raise CurateError(f"{pattern}: matches no file; check the path")
    return sorted(files)


def _globbed(fs: AbstractFileSystem, path: str, pattern: str) -> list[Found]:
    """Files that a path with wildcards stands for. fsspec's own glob takes a folder that cannot be
    listed for an empty one."""
    parts = path.split("/")
    wild = [glob.has_magic(part.replace("?", "") if is_web(pattern) else part) for part in parts]
    if not any(wild):
        return []
    first = wild.index(True)
    folders = ["/".join(parts[:first]) or "/" * path.startswith("/")]
    entries: list[Entry] = []

    def listed(folder: str, stem: str) -> list[Entry]:
        try:
            return _listed(fs, folder, pattern, stem)
        except (FileNotFoundError, NotADirectoryError):
            return []

    with ThreadPoolExecutor(LISTS_AT_ONCE) as pool:
        for part in parts[first:]:
            if "**" in part:
                whole = re.compile(glob_translate(path))
                below = (found for folder in folders for found in _found(fs, folder, pattern))
                return [found for found in below if whole.match(found[0])]
            fits = re.compile(glob_translate(part))
            stem = re.split(r"[*?[]", part)[0]
            entries = [
                entry
                for folder in pool.map(listed, folders, repeat(stem))
                for entry in folder
                if fits.match(posixpath.basename(entry[0][0].rstrip("/")))
            ]
            folders = [found[0].rstrip("/") for found, is_folder in entries if is_folder]
    return [found for found, is_folder in entries if not is_folder]


def folders_in(folder: str) -> set[str]:
    """Base names of the folders in a folder; none where it is missing."""
    fs, path = storage.filesystem(folder)

    def listed() -> list[Any]:
        fs.invalidate_cache(path)
        try:
            return list(fs.ls(path, detail=True))
        except FileNotFoundError:
            return []

    found = storage.own_read(folder, listed)
    return {posixpath.basename(i["name"].rstrip("/")) for i in found if i["type"] == "directory"}
