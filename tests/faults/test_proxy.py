"""The proxy itself: each fault as a plain client sees it."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.proxy import Proxy, Rule

BODY = bytes(range(256)) * 20


class _Store(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD with BODY, and PUT with what was put."""

    def do_GET(self) -> None:
        self._answer(BODY)

    def do_HEAD(self) -> None:
        self._answer(BODY)

    def do_PUT(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"whole"')
        self.send_header("x-amz-checksum-crc32", "AAAAAA==")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(upstream: str) -> Iterator[Proxy]:
    with Proxy(upstream) as proxy:
        yield proxy


def connection(proxy: Proxy) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(proxy.address.removeprefix("http://"), timeout=5)


def ask(
    proxy: Proxy, method: str = "GET", path: str = "/a", **options: Any
) -> tuple[int, bytes, http.client.HTTPMessage]:
    client = connection(proxy)
    client.request(method, path, **options)
    answer = client.getresponse()
    return answer.status, answer.read(), answer.headers


def test_without_rules_it_is_not_there(proxy: Proxy) -> None:
    client = connection(proxy)
    for _ in range(3):  # on one connection
        client.request("GET", "/a")
        assert client.getresponse().read() == BODY
        client.request("PUT", "/b", body=BODY[:100], headers={"Expect": "100-continue"})
        assert client.getresponse().read() == BODY[:100]
        client.request("HEAD", "/a")
        answer = client.getresponse()
        assert (answer.read(), answer.headers["Content-Length"]) == (b"", str(len(BODY)))
    assert proxy.counts == {("GET", ""): 3, ("PUT", ""): 3, ("HEAD", ""): 3}


@pytest.mark.parametrize(
    ("fault", "status"), [("busy", 503), ("wait", 503), ("denied", 403), ("gone", 404)]
)
def test_refusals(proxy: Proxy, fault: Any, status: int) -> None:
    proxy.rules = [Rule(fault, path="^/a")]
    got, body, headers = ask(proxy, path="/a?list=1")
    assert got == status and body.startswith(b"<?xml")
    assert headers["Retry-After"] == ("1" if fault == "wait" else None)
    assert ask(proxy, "HEAD", "/a")[:2] == (status, b"")
    assert ask(proxy, path="/b")[:2] == (200, BODY)
    assert proxy.counts == {("GET", fault): 1, ("HEAD", fault): 1, ("GET", ""): 1}
    assert proxy.counts_by_path["GET", "/a", fault] == 1


def test_short_and_reset_come_after_half_of_the_body(proxy: Proxy) -> None:
    proxy.rules = [Rule("short", path="short"), Rule("reset", path="reset")]
    with pytest.raises(http.client.IncompleteRead) as short:
        ask(proxy, path="/short")
    assert short.value.partial == BODY[: len(BODY) // 2]
    with pytest.raises(ConnectionResetError):
        ask(proxy, path="/reset")
    with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
        ask(proxy, "HEAD", path="/reset")


def test_changed(proxy: Proxy) -> None:
    proxy.rules = [Rule("changed")]
    status, body, headers = ask(proxy)
    assert (status, headers["ETag"]) == (200, '"changed"')
    assert "x-amz-checksum-crc32" not in headers
    assert body == bytes(255 - byte for byte in BODY)
    assert ask(proxy, headers={"If-Match": '"whole"'})[0] == 412
    assert ask(proxy, headers={"If-Match": '"changed"'})[0] == 200


def test_stall(proxy: Proxy) -> None:
    proxy.rules = [Rule("stall", stall_s=0.3, method="GET")]
    start = time.monotonic()
    assert ask(proxy)[:2] == (200, BODY)
    assert time.monotonic() - start >= 0.3


def test_outage_ends(proxy: Proxy) -> None:
    proxy.outage(0.4)
    assert ask(proxy)[0] == 503
    time.sleep(0.5)
    assert ask(proxy)[0] == 200


def test_shares_are_seeded(upstream: str) -> None:
    seen = []
    for seed in (0, 0, 1):
        with Proxy(upstream, seed) as proxy:
            proxy.rules = [Rule("busy", share=0.3)]
            seen.append([ask(proxy, path=f"/{i % 7}")[0] for i in range(70)])
    assert seen[0] == seen[1] != seen[2]
    assert 8 <= Counter(seen[0])[503] <= 35
