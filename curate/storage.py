"""Files on any fsspec filesystem: a bare path is local, everything else names its protocol.

A URI is always UTF-8; names of local files that are not are escaped in it (`curate.names`).

Every file that a run writes is whole or absent: locally a temporary name and a rename, on object
stores one PUT.
"""

from __future__ import annotations

import json
import os
import posixpath
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import aiohttp
import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from curate import names
from curate.errors import CurateError, one_line

T = TypeVar("T")

Document = dict[str, Any]  # of JSON or YAML

REMOTE_TRIES = 3
RETRY_PAUSE_S = 0.3
STREAMED_BYTES = 1 << 20


class UnfitFile(Exception):
    """Why a file is not even read: one short line."""


# Of an HTTP server: seconds to connect, and seconds without a byte. aiohttp's own limit is five
# minutes for a whole file, too long for a dead server and too short for a large tar.
HTTP_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=30)


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URI and the path inside it."""
    if "://" not in uri:  # no chain for fsspec, though a name may have :: in it
        local = LocalFileSystem()
        return local, names.unescaped(local._strip_protocol(uri))
    try:
        if uri.startswith(("http://", "https://")):
            return url_to_fs(uri, client_kwargs={"timeout": HTTP_TIMEOUT})
        fs, path = url_to_fs(uri)
        return fs, names.unescaped(path) if isinstance(fs, LocalFileSystem) else path
    except (ValueError, ImportError) as error:
        raise CurateError(f"{uri}: {one_line(error)}") from error


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def join(base: str, *parts: str) -> str:
    return posixpath.join(base.rstrip("/") if base != "/" else base, *parts)


def named_like(uri: str, path: str) -> str:
    """A path that a filesystem returned, in the form in which the user wrote `uri`."""
    if is_local(uri):
        return names.escaped(path)
    protocol = uri.split("://", 1)[0]
    return path if "://" in path else f"{protocol}://{path}"


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def names_in(folder: str) -> set[str]:
    """Base names of the files in a folder; empty where the folder is missing."""
    return set(sizes_in(folder))


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


def read_file(uri: str, max_bytes: int) -> bytes:
    """A file of which nobody knows what it is; max_bytes + 1 bytes of it are read at most.

    Raises UnfitFile for a larger one, and for a pipe or a device, which might never end.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        size = _size_of_regular(path)
        if size > max_bytes:
            raise UnfitFile(too_large(size, max_bytes))
    if uri.startswith(("http://", "https://")):
        data = _stream(fs, path, max_bytes + 1)
    else:
        data = _first_bytes(fs, path, max_bytes + 1)
    if len(data) > max_bytes:
        raise UnfitFile(f"more than {max_bytes:,} bytes is over max_bytes {max_bytes}")
    return data


def too_large(size: int, max_bytes: int) -> str:
    return f"{size:,} bytes is over max_bytes {max_bytes}"


def _size_of_regular(path: str) -> int:
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise UnfitFile("not a regular file")
    return about.st_size


def _first_bytes(fs: fsspec.AbstractFileSystem, path: str, size: int) -> bytes:
    try:
        return bytes(fs.cat_file(path, start=0, end=size))
    except FileNotFoundError:
        raise
    except Exception:  # as object stores say that nothing has no first byte
        if fs.info(path)["size"] == 0:
            return b""
        raise


def _stream(fs: fsspec.AbstractFileSystem, path: str, size: int) -> bytes:
    """The first bytes from a server that may know no ranges."""
    data = bytearray()
    # Of a size that is given and blocks of none, fsspec makes one request, and a stream
    with fs.open(path, "rb", block_size=0, size=1) as stream:
        while len(data) < size and (piece := stream.read(min(STREAMED_BYTES, size - len(data)))):
            data += piece
    return bytes(data)


def read_range(uri: str, offset: int, size: int) -> bytes:
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        _size_of_regular(path)
    return bytes(fs.cat_file(path, start=offset, end=offset + size))


def with_retries(uri: str, read: Callable[[], T]) -> T:
    """What `read` returns; networks get a second chance, but no file that is missing or unfit."""
    tries = 1 if is_local(uri) else REMOTE_TRIES
    for attempt in range(1, tries):
        try:
            return read()
        except (FileNotFoundError, UnfitFile):
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
