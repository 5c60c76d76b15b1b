"""Files of a local disk or a mount: written whole, or not at all."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from curate.faults import UnfitFile

NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # of some mounts


def write(path: str, data: bytes | pa.Buffer) -> None:
    """Raises OSError, and leaves what was there."""
    with scratch(path) as written:
        with open(written, "wb") as file:
            file.write(data)
        os.replace(written, path)


def create(path: str, data: bytes | pa.Buffer) -> None:
    """Raises FileExistsError where there is such a file; of several at once, one does not."""
    with scratch(path) as written:
        with open(written, "wb") as file:
            file.write(data)
        _link(written, path)


@contextmanager
def scratch(path: str) -> Iterator[str]:
    """A name beside a local file, to write under before it gets its own.

    Hidden and unique: a half-written file matches no pattern, and two writers of one name, a
    retried task and its first try, cannot mix their bytes.
    """
    folder, name = os.path.split(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", folder) from error
    written = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
    try:
        yield written
    finally:
        if os.path.exists(written):
            os.unlink(written)


def _link(written: str, path: str) -> None:
    """Name a local file, unless the name is taken."""
    try:
        os.link(written, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.exists(path):
            raise FileExistsError(errno.EEXIST, "there already", path) from None
        os.replace(written, path)


def size_of_regular(path: str) -> int:
    """Bytes of a file. Raises UnfitFile for a pipe or a device, which might never end."""
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise UnfitFile("not a regular file")
    return about.st_size
