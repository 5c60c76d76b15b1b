"""Files on any fsspec filesystem: a bare path is local, everything else names its protocol.

A URI is always UTF-8; names of local files that are not are escaped in it (`curate.names`).

Every file that a run writes is whole or absent: locally a temporary name and a rename, on object
stores one PUT or one upload. A run's own files are waited for: a store in trouble for a few minutes
ends no job.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import posixpath
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from curate import disk
from curate.errors import CurateError, one_line
from curate.faults import Unavailable as Unavailable
from curate.faults import UnfitFile as UnfitFile
from curate.faults import is_full, is_there_already, is_web, may_be_past_the_end, retry_after_s
from curate.faults import is_lasting as is_lasting
from curate.faults import is_local as is_local
from curate.filesystems import filesystem as filesystem
from curate.filesystems import join as join
from curate.filesystems import named_like as named_like
from curate.privacy import public as public
from curate.privacy import public_text as public_text

log = logging.getLogger(__name__)

T = TypeVar("T")

Document = dict[str, Any]  # of JSON or YAML

READ_PATIENCE_S = 20.0  # of a source's files
OWN_PATIENCE_S = 300.0  # of the run's own files
LOCAL_PATIENCE_S = 3.0  # of a disk or a mount, whatever the file
RETRY_PAUSE_S = 0.3  # the first at most, doubled from try to try
LONGEST_PAUSE_S = 10.0
TOLD_AFTER_S = 10.0  # of waiting for a file of our own
STREAMED_BYTES = 1 << 20


def with_retries(uri: str, read: Callable[[], T], patience_s: float | None = None) -> T:
    """What `read` returns, tried again for patience_s (READ_PATIENCE_S where None) while what
    fails may pass.

    Raises a lasting error as it is, and Unavailable for one that outlasts the patience.
    """
    return _patient(uri, read, READ_PATIENCE_S if patience_s is None else patience_s)


def _patient(uri: str, act: Callable[[], T], patience_s: float, write: bool = False) -> T:
    """`with_retries`; of what is written, a full disk is not waited for, and long waits are told
    of."""
    start = time.monotonic()
    patience_s = min(patience_s, LOCAL_PATIENCE_S) if is_local(uri) else patience_s
    longest = RETRY_PAUSE_S
    told = patience_s <= READ_PATIENCE_S
    while True:
        try:
            return act()
        except Exception as error:  # each filesystem has exceptions of its own
            if is_lasting(error, uri) or (write and is_full(error)):
                raise
            waited = time.monotonic() - start
            asked = retry_after_s(error)
            if waited >= patience_s or waited + asked > patience_s:
                raise _unavailable(uri, error) from error
            if waited > TOLD_AFTER_S and not told:
                log.warning("%s; trying for %.0f s", _unavailable(uri, error), patience_s)
                told = True
            # Full jitter: a thousand readers that failed together must not come back together
            pause = max(asked, random.uniform(0, longest))
            time.sleep(min(pause, patience_s - waited))
            longest = min(2 * longest, LONGEST_PAUSE_S)


def _unavailable(uri: str, error: Exception) -> Unavailable:
    if isinstance(error, Unavailable):
        return error
    if isinstance(error, FileNotFoundError) and error.__cause__:  # see is_lasting
        return _unavailable(uri, cast(Exception, error.__cause__))
    return Unavailable(f"{public(uri)}: {type(error).__name__}: {one_line(error, 200)}")


def own_read(uri: str, read: Callable[[], T]) -> T:
    """Of a file of the run's: what does not come within OWN_PATIENCE_S is a CurateError."""
    try:
        return _patient(uri, read, OWN_PATIENCE_S)
    except Unavailable as error:
        raise CurateError(f"{error}; check the store, then run the same command again") from error


def _own_write(uri: str, write: Callable[[], T]) -> T:
    try:
        return _patient(uri, write, OWN_PATIENCE_S, write=True)
    except Exception as error:
        raise _unwritable(uri, error) from error


def _unwritable(uri: str, error: Exception) -> CurateError:
    reason = error.__cause__ if isinstance(error, Unavailable) and error.__cause__ else error
    what = f"{public(uri)}: cannot be written ({one_line(reason)})"
    return CurateError(f"{what}; choose another output or free the place")


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return own_read(uri, lambda: bool(fs.exists(path)))


def names_in(folder: str) -> set[str]:
    """Base names of the files in a folder; empty where the folder is missing."""
    return set(sizes_in(folder))


def sizes_in(folder: str) -> dict[str, int]:
    """Base name → bytes of the files in a folder; empty where the folder is missing."""
    fs, path = filesystem(folder)
    try:
        found = own_read(folder, lambda: fs.ls(path, detail=True))
    except FileNotFoundError:
        return {}
    return {
        posixpath.basename(info["name"]): int(info.get("size") or 0)
        for info in found
        if info["type"] != "directory"
    }


def read_bytes(uri: str) -> bytes:
    fs, path = filesystem(uri)
    return own_read(uri, lambda: bytes(fs.cat_file(path)))


def read_json(uri: str) -> Any:
    """Raises CurateError for a file that holds none."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise CurateError(f"{uri}: damaged: {one_line(error)}; remove it and run again") from error


def read_file(uri: str, max_bytes: int) -> bytes:
    """A file of which nobody knows what it is; max_bytes + 1 bytes of it are read at most.

    Raises UnfitFile for a larger one, and for a pipe or a device, which might never end.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        size = disk.size_of_regular(path)
        if size > max_bytes:
            raise UnfitFile(too_large(size, max_bytes))
        with open(path, "rb") as file:  # fsspec's takes a tenth of a millisecond to open one
            if len(data := file.read(size + 1)) <= size:  # it may have grown
                return data
    data = streamed(fs, path, max_bytes + 1) if is_web(uri) else _range(fs, path, 0, max_bytes + 1)
    if len(data) > max_bytes:
        raise UnfitFile(more_than(max_bytes))
    return data


def too_large(size: int, max_bytes: int) -> str:
    return f"{size:,} bytes is over max_bytes {max_bytes}"


def more_than(max_bytes: int) -> str:
    return f"more than {max_bytes:,} bytes is over max_bytes {max_bytes}"


def _range(fs: fsspec.AbstractFileSystem, path: str, start: int, stop: int) -> bytes:
    """Nothing after the end of the file, where stores refuse and disks do not."""
    try:
        return bytes(fs.cat_file(path, start=start, end=stop))
    except Exception as error:
        size = fs.info(path).get("size") if may_be_past_the_end(error) else None
        if size is None or start < size:
            raise
        return b""


def streamed(fs: fsspec.AbstractFileSystem, path: str, size: int) -> bytes:
    """The first bytes from a server that may know no ranges."""
    data = bytearray()
    # Of a size that is given and blocks of none, fsspec makes one request, and a stream
    with fs.open(path, "rb", block_size=0, size=1) as stream:
        while len(data) < size and (piece := stream.read(min(STREAMED_BYTES, size - len(data)))):
            data += piece
    return bytes(data)


def read_range(uri: str, offset: int, size: int) -> bytes:
    """Fewer bytes only where the file ends before. Raises Unavailable where they did not all come.

    A server that knows no ranges gives the whole file.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        disk.size_of_regular(path)
    data = _range(fs, path, offset, offset + size)
    if len(data) < size and not is_local(uri):
        whole = fs.info(path).get("size")
        if whole is not None and len(data) < min(size, whole - offset):
            raise Unavailable(f"{public(uri)}: {len(data)} of {size} bytes from {offset} on came")
    return data


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a whole file, or nothing."""
    fs, path = filesystem(uri)

    def write() -> None:
        if isinstance(fs, LocalFileSystem):
            disk.write(path, data)
        else:
            fs.pipe_file(path, bytes(data))

    _own_write(uri, write)


def create_bytes(uri: str, data: bytes | pa.Buffer) -> bool:
    """Write a whole file where there is none; False where there is one. Of several that write at
    once one is first, if the filesystem knows such writes, as disks and most object stores do."""
    fs, path = filesystem(uri)
    uncertain = False  # a try that failed may have written all the same

    def create() -> bool:
        nonlocal uncertain
        try:
            _create(fs, path, bytes(data))
            return True
        except Exception as error:
            if is_there_already(error):
                return uncertain and bytes(fs.cat_file(path)) == bytes(data)
            uncertain = True
            raise

    return _own_write(uri, create)


def _create(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    if isinstance(fs, LocalFileSystem):
        disk.create(path, data)
        return
    try:
        fs.pipe_file(path, data, mode="create")
    except (TypeError, NotImplementedError):  # it knows no such mode
        if fs.exists(path):
            raise FileExistsError(errno.EEXIST, "there already", path) from None
        fs.pipe_file(path, data)


@contextmanager
def open_whole(uri: str) -> Iterator[BinaryIO]:
    """A stream to write a file that is there when the block ends, and never where it fails.

    For other filesystems than the local one it is collected here, then uploaded.
    """
    fs, path = filesystem(uri)
    local = isinstance(fs, LocalFileSystem)
    with ExitStack() as opened:
        try:
            scratch = opened.enter_context(disk.scratch(path) if local else _elsewhere())
            file = opened.enter_context(open(scratch, "wb"))
        except OSError as error:
            raise _unwritable(uri, error) from error
        try:
            yield file
            file.close()
        except OSError as error:
            if is_full(error):
                with suppress(OSError):  # of what it still holds, which is told by then
                    file.close()
                raise _unwritable(uri, error) from error
            raise
        _own_write(uri, partial(os.replace if local else fs.put_file, scratch, path))


@contextmanager
def _elsewhere() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield os.path.join(folder, "copy")


def write_json(uri: str, value: Any) -> None:
    """`write_bytes` of it, in lines."""
    write_bytes(uri, (json.dumps(value, indent=2) + "\n").encode())


def remove_tree(uri: str) -> None:
    """Remove a file or a folder; nothing where there is none."""
    fs, path = filesystem(uri)

    def remove() -> None:
        if fs.exists(path):
            fs.rm(path, recursive=True)

    own_read(uri, remove)


@contextmanager
def open_seekable(uri: str, block_bytes: int = 8 << 20) -> Iterator[BinaryIO]:
    """A file for random reads; of a remote one, at least block_bytes come at a time."""
    fs, path = filesystem(uri)
    with fs.open(path, "rb", **({} if is_local(uri) else {"block_size": block_bytes})) as file:
        yield file
