"""Images from wherever a list says: addresses that nobody vouches for.

Guarded where they are used, at the connection: what a name resolves to, and where a redirect leads,
is known only there.
"""

from __future__ import annotations

import errno
import re
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from curate import __version__, storage
from curate.faults import is_web
from curate.filesystems import CONNECT_S, SILENT_S

SCHEMES = frozenset({"http", "https", "s3", "gs", "gcs", "abfs", "abfss", "az"})
TOTAL_S = 120  # an image, redirects included
CONNECTIONS_A_HOST = 8  # of one process
REDIRECTS = 10
USER_AGENT = f"curate/{__version__}"

NAT64 = IPv6Network("64:ff9b::/96")  # IPv4 addresses as a network without any writes them
PRIVATE = re.compile(r"private address [0-9a-fA-F.:]+")


def refusal(uri: str, listed_in: str) -> str | None:
    """Why what the list or table `listed_in` names is not read; None for what may be.

    A local list names local files. Any list names files of its own filesystem, and of SCHEMES.
    """
    if storage.is_local(uri):
        return None if storage.is_local(listed_in) else "a local path, in a list that is not local"
    if "::" in uri and not is_web(uri):  # fsspec would read what stands behind
        return "a chain of filesystems"
    scheme = uri.partition("://")[0].lower()
    if scheme in SCHEMES or scheme == listed_in.partition("://")[0].lower():
        return None
    return f"no scheme to read images by: {scheme}"


def read(url: str, max_bytes: int, allow_private: bool) -> bytes:
    """The image at an http(s) URL.

    Raises storage.UnfitFile for what the rules refuse, and what aiohttp raises for what fails.
    """
    timeout = aiohttp.ClientTimeout(total=TOTAL_S, sock_connect=CONNECT_S, sock_read=SILENT_S)
    client = _anywhere if allow_private else _guarded
    # fsspec keeps one of each in a process, and it one session
    web = HTTPFileSystem(
        get_client=client, client_kwargs={"timeout": timeout}, max_redirects=REDIRECTS + 1
    )
    try:
        data = storage.streamed(web, url, max_bytes + 1)
    except aiohttp.ClientConnectorError as error:
        if private := PRIVATE.search(str(error.os_error)):
            reason = f"{private[0]}; set allow_private: true on the source"
            raise storage.UnfitFile(reason) from error
        raise
    except aiohttp.TooManyRedirects as error:
        raise storage.UnfitFile(f"more than {REDIRECTS} redirects") from error
    if len(data) > max_bytes:
        raise storage.UnfitFile(storage.more_than(max_bytes))
    return data


async def _anywhere(**options: Any) -> aiohttp.ClientSession:
    return _session(aiohttp.TCPConnector(limit_per_host=CONNECTIONS_A_HOST), options)


async def _guarded(**options: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        limit_per_host=CONNECTIONS_A_HOST, socket_factory=_socket_to_public
    )
    return _session(connector, options)


def _session(connector: aiohttp.TCPConnector, options: dict[str, Any]) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": USER_AGENT},
        **options,
    )


def _socket_to_public(info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, (host, *_) = info
    if is_private(ip_address(host.partition("%")[0])):
        raise OSError(errno.EACCES, f"private address {host}")
    return socket.socket(family, kind, protocol)


def is_private(address: IPv4Address | IPv6Address) -> bool:
    """Whether it leads into a private network, to this machine, or to nobody in particular."""
    if isinstance(address, IPv6Address):
        teredo = address.teredo[1] if address.teredo else None
        inside = address.ipv4_mapped or address.sixtofour or teredo
        if address in NAT64:
            inside = IPv4Address(int(address) & 0xFFFFFFFF)
        if inside is not None:
            return is_private(inside)
        if address.is_site_local:
            return True
    return not address.is_global or address.is_multicast or address.is_reserved
