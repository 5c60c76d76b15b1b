"""Seconds to list one prefix of an object store: ours, against s3fs's pages one after another.

    python benchmarks/bench_listing.py [--keys 100000] [--latency-ms 100] [--endpoint URL]

Without --endpoint both list a server of this script's, which knows ListObjectsV2 alone and answers
each LIST after the latency, as S3 does after some 100 ms; it says how many LISTs it was asked for,
and how many at once. With --endpoint, moto's say, the keys are first put there; moto looks
at every key for every LIST, on one core: it sets the pace, not the client.

Keys are of three shapes: numbered files, hashes, and folders of a thousand. Both must give the same
files, or the run fails.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "listed"


def keys_of(shape: str, count: int) -> list[str]:
    draw = random.Random(0)
    if shape == "numbers":
        return [f"set/{i:09d}.jpg" for i in range(count)]
    if shape == "hashes":
        return sorted(f"set/{draw.getrandbits(128):032x}.jpg" for _ in range(count))
    folders = sorted(draw.sample(range(10**8), -(-count // 1000)))
    keys = [f"set/n{folder:08d}/{i:05d}.jpg" for folder in folders for i in range(1000)]
    return keys[:count]


class Store(BaseHTTPRequestHandler):
    """ListObjectsV2 of the keys of one shape; /state tells LISTs so far, and most at once."""

    protocol_version = "HTTP/1.1"
    keys: list[str]
    latency_s: float
    lock = threading.Lock()
    lists = now = most = 0

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/state":
            self._answer(f"{Store.lists} {Store.most}")
            return
        with self.lock:
            Store.lists += 1
            Store.now += 1
            Store.most = max(Store.most, Store.now)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self._page(query)
        time.sleep(self.latency_s)
        with self.lock:
            Store.now -= 1
        self._answer(body)

    def _page(self, query: dict[str, str]) -> str:
        after = query.get("continuation-token") or query.get("start-after") or ""
        first = bisect_right(self.keys, after)
        keys = self.keys[first : first + int(query.get("max-keys", 1000))]
        more = first + len(keys) < len(self.keys)
        token = f"<NextContinuationToken>{keys[-1]}</NextContinuationToken>" if more else ""
        contents = "".join(
            f"<Contents><Key>{escape(quote(key))}</Key><Size>1</Size><ETag>e</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        )
        return (
            f"<ListBucketResult><Name>{BUCKET}</Name><EncodingType>url</EncodingType>"
            f"<KeyCount>{len(keys)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{contents}</ListBucketResult>"
        )

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def serve(shape: str, count: int, latency_ms: float) -> None:
    Store.keys, Store.latency_s = keys_of(shape, count), latency_ms / 1000
    server = Server(("127.0.0.1", 0), Store)
    print(server.server_port, flush=True)
    server.serve_forever()


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.monotonic()
    result = act()
    return time.monotonic() - begun, result


def compare(label: str, endpoint: str, state: Callable[[], tuple[int, int]]) -> bool:
    """Both listings of s3://BUCKET/set, printed; whether they agree."""
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    from curate import listing, storage

    fs, path = storage.filesystem(f"s3://{BUCKET}/set")
    fs.call_s3("list_objects_v2", Bucket=BUCKET, Prefix="set/", MaxKeys=1)  # connected
    before = state()[0]
    plain_s, plain = timed(lambda: fs.find(path, detail=True))
    between = state()[0]
    ours_s, ours = timed(lambda: listing.find(f"s3://{BUCKET}/set"))
    after, most = state()
    print(
        f"{label:9} {len(ours):,} keys: one by one {plain_s:6.2f} s, {between - before} LISTs; "
        f"ours {ours_s:6.2f} s, {after - between} LISTs, {most} at once; "
        f"{plain_s / ours_s:.1f} times as fast",
        flush=True,
    )
    return sorted(plain) == [file.uri.removeprefix("s3://") for file in ours]


def on_own_server(shape: str, count: int, latency_ms: float) -> bool:
    import urllib.request

    command = [sys.executable, __file__, "--serve", shape, "--keys", str(count)]
    process = subprocess.Popen(
        [*command, "--latency-ms", str(latency_ms)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = f"http://127.0.0.1:{process.stdout.readline().strip()}"

    def state() -> tuple[int, int]:
        lists, most = urllib.request.urlopen(f"{address}/state").read().split()
        return int(lists), int(most)

    try:
        return compare(shape, address, state)
    finally:
        process.kill()
        process.wait()


def on(endpoint: str, count: int) -> bool:
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    from curate import storage

    fs, _ = storage.filesystem(f"s3://{BUCKET}")
    if not fs.exists(BUCKET):
        fs.mkdir(BUCKET)
        with ThreadPoolExecutor(16) as pool:
            keys = keys_of("numbers", count)
            list(pool.map(lambda key: fs.pipe_file(f"{BUCKET}/{key}", b"."), keys))
    return compare("numbers", endpoint, lambda: (0, 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--latency-ms", type=float, default=100)
    parser.add_argument("--endpoint")
    parser.add_argument("--shape", help="of one shape: numbers, hashes or folders")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.keys, options.latency_ms)
    if options.endpoint:
        return 0 if on(options.endpoint, options.keys) else 1
    if options.shape:
        return 0 if on_own_server(options.shape, options.keys, options.latency_ms) else 1
    # A process each: clients keep to the endpoint that they were made for
    again = [sys.executable, __file__, *sys.argv[1:], "--shape"]
    return max(subprocess.call([*again, shape]) for shape in ("numbers", "hashes", "folders"))


if __name__ == "__main__":
    sys.exit(main())
