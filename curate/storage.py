"""Files on any fsspec filesystem: a bare path is local, everything else names its protocol.

Every file that a run writes is whole or absent: locally a temporary name and a rename, on object
stores one PUT.
"""

from __future__ import annotations

import glob
import json
import os
import posixpath
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import aiohttp
import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from curate.errors import CurateError, one_line

T = TypeVar("T")

Document = dict[str, Any]  # of JSON or YAML

REMOTE_TRIES = 3
RETRY_PAUSE_S = 0.3


@dataclass(frozen=True)
class FileInfo:
    uri: str
    size: int


# Of an HTTP server: seconds to connect, and seconds without a byte. aiohttp's own limit is five
# minutes for a whole file, too long for a dead server and too short for a large tar.
HTTP_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=30)


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URI and the path inside it."""
    try:
        if uri.startswith(("http://", "https://")):
            return url_to_fs(uri, client_kwargs={"timeout": HTTP_TIMEOUT})
        return url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise CurateError(f"{uri}: {one_line(error)}") from error


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def join(base: str, *parts: str) -> str:
    return posixpath.join(base.rstrip("/") if base != "/" else base, *parts)


def _named_like(uri: str, path: str) -> str:
    """A path that a filesystem returned, in the form in which the user wrote `uri`."""
    if is_local(uri):
        return path
    protocol = uri.split("://", 1)[0]
    return path if "://" in path else f"{protocol}://{path}"


def find(root: str) -> list[FileInfo]:
    """Every file below a folder, sorted by path.

    Raises FileNotFoundError where there is no such folder.
    """
    fs, path = filesystem(root)
    if not fs.isdir(path):
        raise FileNotFoundError(root)
    found = fs.find(path, detail=True)
    return [
        FileInfo(_named_like(root, name), int(info.get("size") or 0))
        for name, info in sorted(found.items())
    ]


def expand(patterns: list[str]) -> list[FileInfo]:
    """Files matching any of the glob patterns, sorted by URI, each once.

    A name that exists as it is written is taken as it is, even with `[` or `*` in it.

    Raises CurateError for a pattern that matches nothing.
    """
    found: dict[str, FileInfo] = {}
    for pattern in patterns:
        fs, path = filesystem(pattern)
        if fs.isfile(path):
            matches = {path: fs.info(path)}
        elif glob.has_magic(path):
            matches = fs.glob(path, detail=True)
        else:
            matches = {}
        matches = {name: info for name, info in matches.items() if info["type"] != "directory"}
        if not matches and fs.isdir(path):
            raise CurateError(f"{pattern}: a folder; name its files, as in {join(pattern, '*')}")
        if not matches:
            raise CurateError(f"{pattern}: matches no file; check the path")
        for name, info in matches.items():
            uri = _named_like(pattern, name)
            found[uri] = FileInfo(uri, int(info.get("size") or 0))
    return [found[uri] for uri in sorted(found)]


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def names_in(folder: str) -> set[str]:
    """Base names of the files in a folder; empty where the folder is missing."""
    fs, path = filesystem(folder)
    fs.invalidate_cache(path)
    try:
        return {posixpath.basename(name) for name in fs.ls(path, detail=False)}
    except FileNotFoundError:
        return set()


def sizes_in(folder: str) -> dict[str, int]:
    """Base name → bytes of the files in a folder; empty where the folder is missing."""
    fs, path = filesystem(folder)
    fs.invalidate_cache(path)
    try:
        found = fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {
        posixpath.basename(info["name"]): int(info.get("size") or 0)
        for info in found
        if info["type"] != "directory"
    }


def read_bytes(uri: str) -> bytes:
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path))


def read_range(uri: str, offset: int, size: int) -> bytes:
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path, start=offset, end=offset + size))


def with_retries(uri: str, read: Callable[[], T]) -> T:
    """What `read` returns; networks get a second chance, and a file that is not there does not."""
    tries = 1 if is_local(uri) else REMOTE_TRIES
    for attempt in range(1, tries):
        try:
            return read()
        except FileNotFoundError:
            raise
        except Exception:  # each filesystem has exceptions of its own
            time.sleep(attempt * RETRY_PAUSE_S)
    return read()


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a whole file, or nothing."""
    fs, path = filesystem(uri)
    try:
        if isinstance(fs, LocalFileSystem):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            # Hidden and unique: a half-written file matches no pattern, and two writers of one
            # name, a retried task and its first try, cannot mix their bytes.
            scratch = os.path.join(
                os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex}"
            )
            try:
                with open(scratch, "wb") as file:
                    file.write(data)
                os.replace(scratch, path)
            except BaseException:
                if os.path.exists(scratch):
                    os.unlink(scratch)
                raise
        else:
            fs.pipe_file(path, bytes(data))
    except Exception as error:  # object stores' clients have exceptions of their own
        raise CurateError(
            f"{uri}: cannot be written ({one_line(error)}); choose another output or free the place"
        ) from error


def write_json(uri: str, value: Any) -> None:
    """`write_bytes` of it, in lines."""
    write_bytes(uri, (json.dumps(value, indent=2) + "\n").encode())


def read_json(uri: str) -> Any:
    """Raises CurateError for a file that holds none."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise CurateError(f"{uri}: damaged: {one_line(error)}; remove it and run again") from error


def remove_tree(uri: str) -> None:
    """Remove a file or a folder; nothing where there is none."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


@contextmanager
def open_seekable(uri: str, block_bytes: int = 8 << 20) -> Iterator[BinaryIO]:
    """A file for random reads; of a remote one, at least block_bytes come at a time."""
    fs, path = filesystem(uri)
    with fs.open(path, "rb", **({} if is_local(uri) else {"block_size": block_bytes})) as file:
        yield file
