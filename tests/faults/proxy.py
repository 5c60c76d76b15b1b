"""An HTTP/1.1 proxy that fails as networks and object stores do, by rules, and keeps count.

with Proxy(upstream) as proxy:
    proxy.rules = [Rule("busy", share=0.05), Rule("gone", path="/bucket/a.tar")]
    ... a client of proxy.address ...
    assert proxy.counts["GET", "busy"]
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

Fault = Literal["busy", "wait", "denied", "gone", "changed", "stall", "reset", "short"]

# Of what needs no upstream: status, what S3 calls it, and further headers
REFUSALS: dict[str, tuple[str, str, str]] = {
    "busy": ("503 Slow Down", "SlowDown", ""),
    "wait": ("503 Slow Down", "SlowDown", "Retry-After: 1\r\n"),
    "denied": ("403 Forbidden", "AccessDenied", ""),
    "gone": ("404 Not Found", "NoSuchKey", ""),
    "precondition": ("412 Precondition Failed", "PreconditionFailed", ""),
}


@dataclass(frozen=True)
class Rule:
    """Which requests get which fault; the first rule that fits does.

    reset and short let the upstream do what was asked, and spoil its answer: half of the body, then
    a broken connection, or an end as if that were all of it. changed gives other bytes of the same
    length, by another ETag.
    """

    fault: Fault
    share: float = 1.0  # of the requests that fit
    method: str = ""  # any
    path: str = ""  # a regular expression that the unquoted path, with its query, contains
    stall_s: float = 3.0


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # unquoted, with its query
    head: bytes  # with the empty line
    body: bytes


class Proxy:
    """On a port of its own, in a thread of its own, until the end of a `with`.

    rules: may be replaced at any time. counts: of answers by (method, fault); "" is none.
    counts_by_path: the same by (method, path without the query, fault).
    """

    def __init__(self, upstream: str, seed: int = 0) -> None:
        at = urlsplit(upstream)
        self._host, self._port = at.hostname or "127.0.0.1", at.port or 80
        self._seed = seed
        self._outage_ends = 0.0
        self._asked: Counter[tuple[str, str]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.rules: list[Rule] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.counts_by_path: Counter[tuple[str, str, str]] = Counter()

    def __enter__(self) -> Proxy:
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def outage(self, seconds: float) -> None:
        """Answer 503 to everything from now on, for so long."""
        self._outage_ends = time.monotonic() + seconds

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader, writer)) is not None:
                if not await self._answer(request, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # a client may leave whenever it likes
        finally:
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        rule = self._rule_of(request)
        fault = rule.fault if rule else ""
        self.counts[request.method, fault] += 1
        self.counts_by_path[request.method, request.path.partition("?")[0], fault] += 1
        if rule is not None and fault == "stall":
            await asyncio.sleep(rule.stall_s)
        expected = re.search(rb"(?i)\r\nif-match: *([^\r]*)", request.head)
        if fault == "changed" and expected and expected[1] != b'"changed"':
            fault = "precondition"
        if fault in REFUSALS:
            writer.write(_refusal(fault, request.method))
            await writer.drain()
            return True
        # The condition is of the ETag that is given here
        head, body = await self._forward(request, b"|if-match" if fault == "changed" else b"")
        if fault == "changed":
            head = _without(head, rb"x-amz-checksum-[^:\r]*")
            head = re.sub(rb"(?i)\r\netag: [^\r]*", b'\r\nETag: "changed"', head)
            body = bytes(byte ^ 0xFF for byte in body)
        if fault not in ("reset", "short"):
            writer.write(head + body)
            await writer.drain()
            return True
        writer.write((head + body)[: len(head) + len(body) // 2] if body else b"")
        await writer.drain()
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)  # close says RST
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        return False

    def _rule_of(self, request: Request) -> Rule | None:
        if time.monotonic() < self._outage_ends:
            return Rule("busy")
        # By what is asked and how often it was, so that no order of arrival decides
        asked = request.method, request.path
        self._asked[asked] += 1
        for i, rule in enumerate(self.rules):
            if rule.method in ("", request.method) and re.search(rule.path, request.path):
                draw = random.Random(f"{self._seed} {i} {asked} {self._asked[asked]}").random()
                if draw < rule.share:
                    return rule
        return None

    async def _forward(self, request: Request, but: bytes = b"") -> tuple[bytes, bytes]:
        """Head and body of the upstream's answer, as of a connection that goes on. but: a header
        that it is not to see."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            head = _without(request.head, rb"connection|expect|keep-alive" + but)
            writer.write(head[:-2] + b"Connection: close\r\n\r\n" + request.body)
            await writer.drain()
            head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        finally:
            writer.close()
        head = re.sub(rb"^HTTP/1.0", b"HTTP/1.1", _without(head + b"\r\n\r\n", rb"connection"))
        if not re.search(rb"(?i)\r\n(content-length|transfer-encoding):", head):
            head = head[:-2] + b"Content-Length: %d\r\n\r\n" % len(body)
        return head, body


def _without(head: bytes, names: bytes) -> bytes:
    return re.sub(rb"(?i)\r\n(?:" + names + rb"):[^\r]*", b"", head)


def _refusal(fault: str, method: str) -> bytes:
    status, code, headers = REFUSALS[fault]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{fault}</Message></Error>"
    kind = f"Content-Type: application/xml\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return f"HTTP/1.1 {status}\r\n{kind}{'' if method == 'HEAD' else body}".encode()


async def _read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request | None:
    """None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    if re.search(rb"(?i)\r\nexpect: *100", head):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    if re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(int(length[1])) if length else b""
    return Request(method, unquote(path), head, body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A body in chunks, as it came."""
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(size + 2)
        if size == 0:
            return body
