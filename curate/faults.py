"""Why a file cannot be read or written: for good, or only now."""

from __future__ import annotations

import errno
import socket
import time
from email.utils import parsedate_to_datetime

import aiohttp

from curate.errors import CurateError

LATER = {408, 425, 429}  # of the 4xx: timed out, too early, too many requests
NO_SUCH_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class UnfitFile(Exception):
    """Why a file is not even read: one short line."""


class Unavailable(Exception):
    """What cannot be read or written now, and may be later: one line, with the URI."""


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def is_web(uri: str) -> bool:
    return uri[:8].lower().startswith(("http://", "https://"))


def is_lasting(error: Exception, uri: str) -> bool:
    """Whether the error is about this very file, and trying again does not help.

    All else may pass: servers in trouble, networks, bodies cut short, disks and mounts that fail,
    and a store's 403, which is what expired credentials get.
    """
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__  # fsspec's HTTP says that of every server that does not answer
        return not (is_web(uri) and isinstance(cause, Exception)) or is_lasting(cause, uri)
    if isinstance(error, CurateError | UnfitFile | IsADirectoryError | NotADirectoryError):
        return True
    if isinstance(error, FileExistsError | aiohttp.TooManyRedirects):
        return True
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return True
    if isinstance(error, aiohttp.ClientResponseError):
        return 400 <= error.status < 500 and error.status not in LATER
    if isinstance(error, aiohttp.ClientConnectorError):
        return isinstance(error.os_error, socket.gaierror) and error.errno in NO_SUCH_HOST
    if isinstance(error, PermissionError):
        return is_local(uri)
    if isinstance(error, OSError):
        return error.errno in (errno.ELOOP, errno.ENAMETOOLONG)
    return isinstance(error, ValueError) and (is_local(uri) or is_web(uri))  # no name of a file


def is_full(error: Exception) -> bool:
    """Whether a disk has no room, or takes none: somebody has to make some."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def is_there_already(error: Exception) -> bool:
    """Whether a write was refused because there is a file: stores call it a failed condition."""
    response = getattr(error.__cause__, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return isinstance(error, FileExistsError) or status == 412


def may_be_past_the_end(error: Exception) -> bool:
    """Whether a store says so of a range, in the words of one client or another."""
    if isinstance(error, OSError):
        return error.errno == errno.EINVAL
    names = ("status", "status_code", "code")
    return next((getattr(error, name) for name in names if hasattr(error, name)), None) == 416


def retry_after_s(error: Exception) -> float:
    """Seconds that a server asked to be left alone for; 0 where it did not say."""
    if not isinstance(error, aiohttp.ClientResponseError) or error.status not in (429, 503):
        return 0.0
    asked = error.headers.get("Retry-After", "") if error.headers else ""
    if asked.strip().isdigit():
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return 0.0
