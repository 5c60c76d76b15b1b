"""The filesystem of a URI: a bare path is local, everything else names its protocol."""

from __future__ import annotations

import posixpath
from datetime import datetime
from typing import Any

import aiohttp
import fsspec
from fsspec.config import conf
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from curate import names
from curate.errors import CurateError, one_line
from curate.faults import is_local, is_web
from curate.privacy import public

# Of an HTTP server. aiohttp's own limit is five minutes for a whole file, too long for a dead
# server and too short for a large tar.
CONNECT_S = 15
SILENT_S = 30  # without a byte
HTTP_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S)
# botocore tries five times, and s3fs five times that; with ours around them, two of each will do
S3_TRIES = 2
LOCAL = LocalFileSystem()  # to look its one instance up takes as long as to open a file
S3_CONNECTIONS = 64  # botocore's ten would be all that is ever in flight


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URI and the path inside it."""
    if "://" not in uri:  # no chain for fsspec, though a name may have :: in it
        return LOCAL, names.unescaped(LOCAL._strip_protocol(uri))
    try:
        if is_web(uri):
            return url_to_fs(uri, client_kwargs={"timeout": HTTP_TIMEOUT})
        if uri.startswith(("s3://", "s3a://")):
            return _s3(uri)
        fs, path = url_to_fs(uri)
        return fs, names.unescaped(path) if isinstance(fs, LocalFileSystem) else path
    except (ValueError, ImportError) as error:
        raise CurateError(f"{public(uri)}: {one_line(error)}") from error


def _s3(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Without s3fs's memory of listings, which other processes' files are not in."""
    options = {
        "retries": {"total_max_attempts": S3_TRIES, "mode": "standard"},
        "max_pool_connections": S3_CONNECTIONS,
        **conf.get("s3", {}).get("config_kwargs", {}),
    }
    fs, path = url_to_fs(uri, use_listings_cache=False, config_kwargs=options)
    fs.retries = S3_TRIES
    if fs.session is None:  # not connected yet
        from aiobotocore.session import AioSession  # a tenth of a second, for object stores alone

        fs.session = AioSession(**fs.kwargs)
        parsers = fs.session.get_component("response_parser_factory")
        parsers.set_parser_defaults(timestamp_parser=_time)
    return fs, path


def _time(text: Any) -> datetime:
    """botocore's own parser tries every format there is: of a page of 1,000 keys, 54 ms instead
    of 11."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        from botocore.utils import parse_timestamp

        parsed: datetime = parse_timestamp(text)
        return parsed


def join(base: str, *parts: str) -> str:
    return posixpath.join(base.rstrip("/") if base != "/" else base, *parts)


def named_like(uri: str, path: str) -> str:
    """A path that a filesystem returned, in the form in which the user wrote `uri`."""
    if is_local(uri):
        return names.escaped(path)
    protocol = uri.split("://", 1)[0]
    return path if "://" in path else f"{protocol}://{path}"
