"""URLs that nobody vouches for, on real servers."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from curate import __version__, storage, web
from tests.servers import Handler, Server


class Site:
    """/N redirects N times, /to/URL once; /slow keeps who asks waiting for the others; the rest is
    there."""

    def __init__(self, host: str) -> None:
        self.agents: set[str | None] = set()
        self.connections = 0  # opened
        self.now, self.most = 0, 0  # requests at once
        lock = threading.Lock()
        site = self

        class Answers(Handler):
            def setup(self) -> None:
                super().setup()
                with lock:
                    site.connections += 1

            def do_GET(self) -> None:
                site.agents.add(self.headers["User-Agent"])
                with lock:
                    site.now += 1
                    site.most = max(site.most, site.now)
                if self.path == "/slow":
                    time.sleep(0.1)
                with lock:
                    site.now -= 1
                left = self.path[1:]
                target = None
                if left.startswith("to/"):
                    target = left[3:]
                elif left.isdigit() and int(left):
                    target = f"/{int(left) - 1}"
                if self.path == "/drip":
                    self.drip()
                    return
                self.send_response(302 if target else 200)
                if target:
                    self.send_header("Location", target)
                self.send_header("Content-Length", "4")
                self.end_headers()
                self.wfile.write(b"data")

            def drip(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.close_connection = True
                for _ in range(100):
                    try:
                        self.wfile.write(b".")
                        self.wfile.flush()
                    except OSError:  # who asked has gone
                        return
                    time.sleep(0.05)

        self.server = Server(Answers, host)
        self.port, self.url = self.server.server_port, self.server.url

    def close(self) -> None:
        self.server.end()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site("127.0.0.1")
    yield site
    site.close()


@pytest.fixture
def inside() -> Iterator[Site]:
    """A server that is not to be reached from outside."""
    site = Site("127.0.0.2")
    yield site
    site.close()


@pytest.fixture
def public_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """One whose address counts as public."""
    private = web.is_private
    monkeypatch.setattr(
        web, "is_private", lambda address: str(address) != "127.0.0.1" and private(address)
    )
    return site


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "127.8.8.8", "169.254.169.254"),
        *("0.0.0.0", "100.64.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "fec0::1", "2001:db8::1"),
        *("::ffff:10.0.0.1", "::ffff:127.0.0.1", "2002:a00:1::", "64:ff9b::10.0.0.1"),
        "64:ff9b::127.0.0.1",
    ],
)
def test_private_addresses(address: str) -> None:
    assert web.is_private(ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"]
)
def test_public_addresses(address: str) -> None:
    assert not web.is_private(ip_address(address))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"]
)
def test_no_private_address_unless_allowed(site: Site, host: str) -> None:
    url = f"http://{host}:{site.port}/a.jpg"
    with pytest.raises(storage.UnfitFile) as caught:
        web.read(url, 100, allow_private=False)
    assert str(caught.value).startswith("private address ") and "\n" not in str(caught.value)
    assert str(caught.value).endswith("; set allow_private: true on the source")
    assert site.connections == 0
    assert web.read(url, 100, allow_private=True) == b"data"


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f.1", "0177.0.0.1"])
def test_no_private_address_written_otherwise(site: Site, host: str) -> None:
    with pytest.raises(Exception) as caught:
        web.read(f"http://{host}:{site.port}/a.jpg", 100, allow_private=False)
    assert storage.is_lasting(caught.value, "http://") and site.connections == 0


def test_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        site = Site("::1")
    except OSError:
        pytest.skip("no IPv6 here")
    with pytest.raises(storage.UnfitFile, match="private address ::1;"):
        web.read(f"{site.url}/a.jpg", 100, allow_private=False)
    assert web.read(f"{site.url}/a.jpg", 100, allow_private=True) == b"data"
    site.close()


def test_names_and_redirects_are_judged_by_where_they_lead(
    public_site: Site, inside: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookup, asked = socket.getaddrinfo, Counter[str]()

    def resolve(host: str, *args: object, **kwargs: object) -> object:
        name = {"in.example": "127.0.0.2", "out.example": "127.0.0.1"}.get(host, host)
        asked[host] += 1
        return lookup(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    outside, within = f"http://out.example:{public_site.port}", f"http://in.example:{inside.port}"
    assert web.read(f"{outside}/a.jpg", 100, allow_private=False) == b"data"
    for url in (f"{within}/a", f"{outside}/to/{within}/a", f"{outside}/to/{inside.url}/a"):
        with pytest.raises(storage.UnfitFile, match=r"^private address 127\.0\.0\.2; "):
            web.read(url, 100, allow_private=False)
    assert inside.connections == 0 and asked["in.example"]
    assert web.read(f"{outside}/to/{within}/a", 100, allow_private=True) == b"data"


def test_ten_redirects_and_no_other_scheme(public_site: Site) -> None:
    assert web.read(f"{public_site.url}/10", 100, allow_private=False) == b"data"
    with pytest.raises(storage.UnfitFile, match="more than 10 redirects"):
        web.read(f"{public_site.url}/11", 100, allow_private=False)
    with pytest.raises(Exception) as caught:
        web.read(f"{public_site.url}/to/file:///etc/passwd", 100, allow_private=False)
    assert storage.is_lasting(caught.value, public_site.url)


def test_size_and_who_asks(public_site: Site) -> None:
    assert web.read(f"{public_site.url}/a", 4, allow_private=False) == b"data"
    with pytest.raises(storage.UnfitFile, match="more than 3 bytes is over max_bytes 3"):
        web.read(f"{public_site.url}/a", 3, allow_private=False)
    assert public_site.agents == {f"curate/{__version__}"}


@pytest.mark.parametrize("allow_private", [True, False])
def test_eight_connections_a_host(public_site: Site, allow_private: bool) -> None:
    with ThreadPoolExecutor(32) as pool:
        urls = [f"{public_site.url}/slow"] * 48
        read = list(pool.map(lambda url: web.read(url, 100, allow_private), urls))
    assert read == [b"data"] * 48 and 1 < public_site.most <= 8


def test_a_server_that_never_ends(public_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "TOTAL_S", 0.3)
    with pytest.raises(TimeoutError):
        web.read(f"{public_site.url}/drip", 1000, allow_private=False)


@pytest.mark.parametrize(
    ("uri", "listed_in", "reason"),
    [
        ("https://h/a.jpg", "/list.txt", None),
        ("s3://b/a.jpg", "https://h/list.txt", None),
        ("az://c/a.jpg", "s3://b/list.txt", None),
        ("/data/a.jpg", "/lists/list.txt", None),
        ("file:///data/a.jpg", "/lists/list.txt", None),
        ("sftp://h/a.jpg", "sftp://h/list.txt", None),
        ("/etc/passwd", "s3://b/list.txt", "a local path, in a list that is not local"),
        ("file:///a", "https://h/list.txt", "a local path, in a list that is not local"),
        ("FILE:///a", "https://h/list.txt", "no scheme to read images by: file"),
        ("sftp://h/a", "/list.txt", "no scheme to read images by: sftp"),
        ("simplecache::http://h/a", "/l", "a chain of filesystems"),
        ("s3://b/k::file:///etc/passwd", "s3://b/l", "a chain of filesystems"),
        ("HTTP://h/a::b", "/l", None),
    ],
)
def test_what_a_list_may_name(uri: str, listed_in: str, reason: str | None) -> None:
    assert web.refusal(uri, listed_in) == reason
