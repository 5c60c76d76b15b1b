"""A training set from single small objects of a store that takes 50 ms for each.

    python benchmarks/bench_training_set.py [--objects 20000] [--alone 500] [--latency-ms 50]

The store speaks enough of S3, over real HTTP on this machine, in a process of its own.

    ours       `materialise.training_images` of a manifest of all objects
    alone      the first so many of them, one after the other, by the same reader
    resumed    ours again, its driver killed when half of the objects had been asked for

Prints seconds, how many times as fast, and the GETs that the resumed set took. Every set is checked
against the objects, and the resumed one against the undisturbed one, byte for byte.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate import cluster, storage
from curate.dataset import materialise
from curate.dataset.training_set import TrainingSet
from curate.settings import RunSettings, load

OBJECT_BYTES = 20_000


def content(name: str) -> bytes:
    digest = hashlib.sha256(name.encode()).digest()
    return digest * (OBJECT_BYTES // len(digest))


class Store(asyncio.Protocol):
    """GET of an object or a range of it, late; GET /asked says how many there were."""

    latency_s = 0.0
    asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.waiting = transport, b""

    def data_received(self, data: bytes) -> None:
        *heads, self.waiting = (self.waiting + data).split(b"\r\n\r\n")
        for head in heads:
            path = head.split(b" ", 2)[1].decode()
            if path == "/asked":
                self.answer(200, str(Store.asked).encode())
                continue
            Store.asked += 1
            body, size = content(path.rpartition("/")[2]), OBJECT_BYTES // 32 * 32
            found = re.search(rb"(?i)\r\nrange: bytes=(\d+)-(\d+)", head)
            first, last = (int(found[1]), min(int(found[2]), size - 1)) if found else (0, size - 1)
            more = f"Content-Range: bytes {first}-{last}/{size}\r\n" if found else ""
            asyncio.get_running_loop().call_later(
                self.latency_s, self.answer, 206 if found else 200, body[first : last + 1], more
            )

    def answer(self, status: int, body: bytes, more: str = "") -> None:
        head = (
            f'HTTP/1.1 {status} OK\r\nContent-Length: {len(body)}\r\nETag: "0"\r\n'
            f"Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n{more}\r\n"
        )
        self.transport.write(head.encode() + body)


async def serve(latency_ms: int) -> None:
    Store.latency_s = latency_ms / 1000
    server = await asyncio.get_running_loop().create_server(Store, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def asked() -> int:
    with urllib.request.urlopen(f"{os.environ['AWS_ENDPOINT_URL']}/asked") as answer:
        return int(answer.read())


def write_manifest(path: Path, objects: int) -> None:
    names = [f"{number:06d}.bin" for number in range(objects)]
    table = pa.table(
        {
            "source": ["open"] * objects,
            "key": names,
            "uri": [f"s3://bucket/{name}" for name in names],
            "offset": pa.nulls(objects, pa.int64()),
            "size": pa.array([OBJECT_BYTES // 32 * 32] * objects),
            "row": pa.nulls(objects, pa.int64()),
            "label": pa.nulls(objects, pa.string()),
            "sha256": [hashlib.sha256(content(name)).hexdigest() for name in names],
        }
    )
    pq.write_table(table, path)


def settings_of(scratch: str) -> RunSettings:
    sources = {"target": "target", "open": "open"}
    kinds = {name: {"kind": "image_folder", "path": f"{scratch}/{name}"} for name in sources}
    return load.parse(
        {"target": kinds["target"], "open": [kinds["open"] | {"name": "open"}], "output": scratch},
        "benchmark",
    )


def make(scratch: str, folder: str) -> None:
    cluster.connect()
    materialise.training_images(settings_of(scratch), [f"{scratch}/m.parquet"], folder)


def killed_half_way(scratch: str, folder: str, objects: int) -> None:
    before = asked()
    driver = subprocess.Popen(
        [sys.executable, __file__, "--make", scratch, folder], start_new_session=True
    )
    while asked() - before < objects / 2:
        assert driver.poll() is None
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()


def measure(options: argparse.Namespace, scratch: str) -> None:
    objects = options.objects
    write_manifest(Path(scratch) / "m.parquet", objects)
    cluster.connect()
    ours = f"{scratch}/ours"
    start = time.monotonic()
    make(scratch, ours)
    seconds = time.monotonic() - start
    gets = asked()
    found = TrainingSet(ours)
    assert len(found) == objects
    for place in range(0, objects, 97):
        assert found.image(place) == content(f"{place:06d}.bin")
    print(f"ours: {objects:,} objects in {seconds:.1f} s, {objects / seconds:.0f}/s, {gets:,} GETs")

    start = time.monotonic()
    for number in range(options.alone):
        uri = f"s3://bucket/{number:06d}.bin"
        assert len(storage.read_file(uri, 1 << 20)) == OBJECT_BYTES // 32 * 32
    alone = (time.monotonic() - start) / options.alone
    print(
        f"one after the other: {options.alone} objects, {1 / alone:.1f}/s; "
        f"ours {alone * objects / seconds:.1f} times as fast"
    )

    before = asked()
    killed_half_way(scratch, f"{scratch}/resumed", objects)
    by_the_killed = asked() - before
    time.sleep(1)
    before = asked()
    make(scratch, f"{scratch}/resumed")
    print(f"killed after {by_the_killed:,} GETs, resumed with {asked() - before:,} more")
    for file in Path(ours).iterdir():
        if file.name != "index.json":
            assert file.read_bytes() == (Path(scratch) / "resumed" / file.name).read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--alone", type=int, default=500)
    parser.add_argument("--latency-ms", type=int, default=50)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.latency_ms))
        return
    if options.make:
        make(*options.make)
        return
    command = [sys.executable, __file__, "--serve", "--latency-ms", str(options.latency_ms)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{int(server.stdout.readline())}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    scratch = tempfile.mkdtemp()
    try:
        measure(options, scratch)
    finally:
        server.terminate()
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
