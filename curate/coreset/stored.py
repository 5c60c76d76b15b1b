"""Pieces of lists in files: entries as a .npy of ENTRY, one list after the other."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from curate import storage
from curate.coreset.lists import ENTRY, Entries
from curate.errors import CurateError

COPIED_AT_ONCE = 8 << 20  # bytes


@dataclass
class Stored:
    """Entries in a file, of which a few are read at a time; one that is not here is copied here
    first, where no name is left of it."""

    uri: str
    _file: IO[bytes] | None = field(default=None, repr=False, compare=False)
    _first: int = 0  # byte

    def read(self, start: int, stop: int) -> Entries:
        """Raises CurateError for a file that cannot be read, is damaged or is gone."""
        if self._file is None:
            self._file = self._opened()
            self._first = self._first_byte(self._file)
        self._file.seek(self._first + start * ENTRY.itemsize)
        entries = np.fromfile(self._file, ENTRY, stop - start)
        if len(entries) != stop - start:
            raise self._damaged()
        return entries

    def _opened(self) -> IO[bytes]:
        def attempt() -> IO[bytes]:
            if storage.is_local(self.uri):
                return open(storage.filesystem(self.uri)[1], "rb", buffering=0)
            copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            with storage.open_seekable(self.uri, COPIED_AT_ONCE) as file:
                while some := file.read(COPIED_AT_ONCE):
                    copy.write(some)
            copy.seek(0)
            return copy

        try:
            return storage.own_read(self.uri, attempt)
        except FileNotFoundError:
            raise self._damaged() from None

    def _first_byte(self, file: IO[bytes]) -> int:
        try:
            np.lib.format.read_magic(file)
            _, _, kind = np.lib.format.read_array_header_1_0(file)
        except ValueError:
            raise self._damaged() from None
        if kind != ENTRY:
            raise self._damaged()
        return file.tell()

    def _damaged(self) -> CurateError:
        return CurateError(
            f"{self.uri}: gone, or damaged; remove its folder, and the next selection makes it anew"
        )

    def __getstate__(self) -> dict[str, object]:
        return {"uri": self.uri, "_file": None, "_first": 0}


def write_entries(uri: str, entries: Entries) -> None:
    file = io.BytesIO()
    np.save(file, entries)
    storage.write_bytes(uri, file.getvalue())
