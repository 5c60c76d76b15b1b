"""What every kind of source deals in: units, the images in them, and reading single files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from aiohttp import ClientResponseError

from curate import names, storage, web
from curate.errors import CurateError, one_line
from curate.faults import is_web

Row = dict[str, Any]  # of a table or a manifest, by column

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "tif", "tiff"})

REMOTE_READS = 64  # single files in flight in one reader: latency, not bandwidth, is the limit
FIRST_PATIENCE_S = 5.0  # with a web server that has not answered yet: many links are dead


@dataclass(frozen=True)
class Item:
    """One image before decoding: where it lies, and its bytes or why there are none."""

    key: str  # unique enough inside its source to find the image again
    uri: str
    offset: int | None = None  # in an archive, bytes
    size: int | None = None  # encoded, bytes
    row: int | None = None  # in a Parquet file
    label: str | None = None
    data: bytes | None = None
    error: str | None = None


def place_beside(uri: str, path: str) -> str:
    """A path that stands in a list or table: relative to that file, unless it says otherwise."""
    path = names.escaped(path)
    if "://" in path or path.startswith("/"):
        return path
    return storage.join(uri.rpartition("/")[0] or ".", path)


def within(item: Item, max_bytes: int) -> Item:
    """The item, or, where its image is too large, why it has no bytes."""
    if item.size is None or item.size <= max_bytes:
        return item
    return replace(item, data=None, error=storage.too_large(item.size, max_bytes))


def missing_column(uri: str, setting: str, column: str, columns: Sequence[str]) -> CurateError:
    known = (
        f"set {setting} to one of {one_line(', '.join(columns))}"
        if columns
        else "it has no columns at all"
    )
    return CurateError(f"{uri}: no column {column!r}; {known}")


def read_files(
    items: Iterable[Item],
    max_bytes: int,
    *,
    allow_private: bool = True,
    listed_in: str | None = None,
    last_attempt: bool = False,
) -> Iterator[Item]:
    """Fill in the bytes of single files, in order; remote ones several at a time.

    Items that have their bytes, or an error, pass as they are. A file of more than max_bytes is not
    read. allow_private, listed_in: what URLs that stand in a list may name, by `web`.

    Raises storage.Unavailable where the trouble is not these files' own, so that all of them are
    to be read again later: a store or disk that does not answer, no web at all, or, unless it is
    the last attempt, a web server that answered for others of them. What is left are dead links.
    """
    hosts = _Hosts()
    read = partial(
        _read_file,
        max_bytes=max_bytes,
        allow_private=allow_private,
        listed_in=listed_in,
        hosts=hosts,
    )
    yield from read_ahead(items, read)
    hosts.check(last_attempt)


def read_ahead(items: Iterable[Item], read: Callable[[Item], Item]) -> Iterator[Item]:
    """`read` of each, in order; of those that are not local, several at a time."""
    pool = ThreadPoolExecutor(REMOTE_READS)
    # A local file is read when it is its turn
    started = (
        partial(read, item) if storage.is_local(item.uri) else pool.submit(read, item).result
        for item in items
    )
    try:
        in_flight = deque(islice(started, 2 * REMOTE_READS))
        while in_flight:
            yield in_flight.popleft()()
            in_flight.extend(islice(started, 1))
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass
class _Hosts:
    """Of the web, as one unit met them."""

    answered: set[str] = field(default_factory=set)
    failed: dict[str, storage.Unavailable] = field(default_factory=dict)

    def check(self, last_attempt: bool) -> None:
        """Raises storage.Unavailable for what looks like an outage rather than dead links."""
        passing = [host for host in self.failed if host in self.answered and not last_attempt]
        if self.failed and not self.answered:
            passing = list(self.failed)
        if passing:
            raise self.failed[passing[0]]


def _read_file(
    item: Item, max_bytes: int, allow_private: bool, listed_in: str | None, hosts: _Hosts
) -> Item:
    """The item with its bytes, or with the reason why it has none."""
    if item.data is not None or item.error:
        return item
    refused = listed_in and web.refusal(item.uri, listed_in)
    if refused:
        return replace(item, error=refused)
    try:
        if is_web(item.uri):
            data = _read_web(item.uri, max_bytes, allow_private, hosts)
        else:
            data = storage.with_retries(item.uri, lambda: storage.read_file(item.uri, max_bytes))
    except storage.Unavailable as error:
        if not is_web(item.uri):
            raise
        return replace(item, error=trouble(error))
    except Exception as error:  # whatever a filesystem raises is this one image's trouble
        return replace(item, error=trouble(error))
    return replace(item, data=data, size=len(data))


def _read_web(url: str, max_bytes: int, allow_private: bool, hosts: _Hosts) -> bytes:
    """`web.read`; hosts: learns of what came of it."""
    host = url.split("/")[2]
    patience_s = storage.READ_PATIENCE_S if host in hosts.answered else FIRST_PATIENCE_S
    try:
        data = storage.with_retries(
            url, lambda: web.read(url, max_bytes, allow_private), patience_s
        )
    except storage.Unavailable as error:
        hosts.failed[host] = error
        raise
    except (FileNotFoundError, ClientResponseError):  # so says the server
        hosts.answered.add(host)
        raise
    hosts.answered.add(host)
    return data


def trouble(error: Exception) -> str:
    """Why an image cannot be read: one short line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, storage.UnfitFile | storage.Unavailable):
        return storage.public_text(str(error))
    return f"{type(error).__name__}: {one_line(error, 200)}"
