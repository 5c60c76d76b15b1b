"""Images by where a manifest says that they lie: as the sources themselves read them, in order."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curate import storage
from curate.sources import Item
from tests.imagery import jpeg, tar
from tests.sources.reading import parquet, read, read_located, source, write

IMAGES = {f"{i:02d}.jpg": jpeg(i) for i in range(12)}


def row_of(item: Item, **changes: Any) -> dict[str, Any]:
    """The row that a manifest has of an image."""
    assert item.data is not None
    row = {
        "source": "set",
        "key": item.key,
        "uri": item.uri,
        "offset": item.offset,
        "size": item.size,
        "row": item.row,
        "label": item.label,
        "sha256": hashlib.sha256(item.data).hexdigest(),
    }
    return row | changes


def check(items: list[Item], **sources: Any) -> None:
    """From their manifest, and from it in another order, the same images come back."""
    backwards = sorted(items, key=lambda item: item.uri, reverse=True)
    for wanted in (items, items[::3], backwards):
        assert list(read_located([row_of(item) for item in wanted], sources)) == wanted


class _Site(http.server.BaseHTTPRequestHandler):
    """Files by their name; with ranges, or, below /whole, without."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    sent: dict[str, int]

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        data = self.files.get(path.removeprefix("whole/"))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        status = 200 if data is not None else 404
        body = data or b""
        if asked and status == 200 and not path.startswith("whole/"):
            first, last = int(asked[1]), int(asked[2])
            status, body = 206, body[first : last + 1]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data or b'')}")
        if not path.startswith("whole/"):
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.sent[path] = self.sent.get(path, 0) + len(body)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[str, type[_Site]]]:
    handler = type("Site", (_Site,), {"files": {}, "sent": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.files["a.tar"] = tar(list(IMAGES.items()))
    handler.files["t.parquet"] = parquet({"image": list(IMAGES.values())}, 3)
    handler.files.update(IMAGES)
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def test_ranges_of_tars(root: str) -> None:
    members = [*reversed(IMAGES.items()), ("03.cls", b"dog")]
    write(root, {"a.tar": tar(members), "b.tar": tar(list(IMAGES.items())[:5])})
    items = read("webdataset", f"{root}/*.tar")
    assert len(items) == 17 and items[3].label == "dog"
    check(items)


def test_ranges_over_http(site: tuple[str, type[_Site]]) -> None:
    """Only the images are fetched, where the server knows ranges; where it does not, they are
    right still."""
    address, handler = site
    items = read("webdataset", f"{address}/a.tar")
    handler.sent.clear()
    wanted = items[2:9:3]
    assert list(read_located([row_of(item) for item in wanted], {})) == wanted
    assert handler.sent == {"a.tar": sum(item.size or 0 for item in wanted)}
    whole = [row_of(item, uri=f"{address}/whole/a.tar") for item in wanted]
    assert [item.data for item in read_located(whole, {})] == [item.data for item in wanted]


def test_single_files(root: str) -> None:
    write(root, {f"folder/cat/{name}": data for name, data in IMAGES.items()})
    check(read("image_folder", f"{root}/folder"))


def test_single_files_and_tables_over_http(site: tuple[str, type[_Site]]) -> None:
    address, handler = site
    handler.files["list.txt"] = "\n".join(f"{address}/{name}" for name in IMAGES).encode()
    check(read("url_list", f"{address}/list.txt", allow_private=True))
    check(read("parquet", f"{address}/t.parquet"), set=source("parquet", f"{address}/t.parquet"))


def test_rows_of_tables(root: str) -> None:
    columns = {
        "picture": list(IMAGES.values()),
        "id": [f"n{i}" for i in range(12)],
        "class": ["x", None, "y"] * 4,
    }
    write(root, {"a.parquet": parquet(columns, 5), "b.parquet": parquet(columns, 1)})
    columns_of = {"image_column": "picture", "key_column": "id", "label_column": "class"}
    items = read("parquet", f"{root}/*.parquet", **columns_of)
    assert len(items) == 24 and items[1].label is None
    check(items, set=source("parquet", f"{root}/*.parquet", **columns_of))


def test_tables_of_a_source_that_is_in_no_config(root: str) -> None:
    """A manifest of another run: the usual column holds the images, and the keys are its own."""
    write(root, {"t.parquet": parquet({"image": list(IMAGES.values()), "id": list(IMAGES)}, 4)})
    check(read("parquet", f"{root}/t.parquet", key_column="id"))


def test_sparse_rows_of_a_long_table(tmp_path: Path) -> None:
    """A few rows of many row groups: the others' pictures are not even read."""
    rows, group = 12_000, 500
    columns = {"image": [b"%d" % i for i in range(rows)]}
    path = tmp_path / "long.parquet"
    path.write_bytes(parquet(columns, group))
    settings = source("parquet", str(path))
    wanted = [11_999, 0, 1, 499, 500, 5000, 7321, 7322, 9000]
    manifest = [
        {
            **dict.fromkeys(("offset", "size", "label")),
            **{"source": "set", "key": f"k{i}", "uri": str(path), "row": i},
            "sha256": hashlib.sha256(b"%d" % i).hexdigest(),
        }
        for i in wanted
    ]
    got = list(read_located(manifest, {"set": settings}))
    assert [item.data for item in got] == [b"%d" % i for i in wanted]
    assert [item.key for item in got] == [f"k{i}" for i in wanted]
    # Damage to a row group that no wanted row is near
    metadata = pq.read_metadata(path).row_group(6).column(0)  # rows 3000 … 3499
    data = bytearray(path.read_bytes())
    start = metadata.data_page_offset
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    again = list(read_located(manifest, {"set": settings}))
    assert [item.data for item in again] == [b"%d" % i for i in wanted]


def test_paths_in_tables(root: str) -> None:
    """The URI of such a row is the file's that it names."""
    write(root, {f"pictures/{name}": data for name, data in IMAGES.items()})
    paths = [f"pictures/{name}" for name in IMAGES]
    write(root, {"t.parquet": parquet({"file": paths, "image": list(IMAGES.values())}, 5)})
    settings = source("parquet", f"{root}/t.parquet", path_column="file")
    items = read("parquet", f"{root}/t.parquet", path_column="file")
    assert [item.uri.rpartition("/")[2] for item in items] == list(IMAGES)
    check(items, set=settings)


def test_images_with_bytes_or_path(root: str) -> None:
    """Hugging Face's structs have either, row by row, in a column of one name."""
    write(root, {f"pictures/{name}": data for name, data in IMAGES.items()})
    structs = [
        {"bytes": data, "path": None} if i % 2 else {"bytes": None, "path": f"pictures/{name}"}
        for i, (name, data) in enumerate(IMAGES.items())
    ]
    write(root, {"t.parquet": parquet({"image": structs}, 5)})
    items = read("parquet", f"{root}/t.parquet")
    assert [item.data for item in items] == list(IMAGES.values())
    check(items, set=source("parquet", f"{root}/t.parquet"))


# What cannot be had


def test_other_bytes_than_were_selected(root: str) -> None:
    write(root, dict(list(IMAGES.items())[:3]) | {"a.tar": tar(list(IMAGES.items()))})
    write(root, {"t.parquet": parquet({"image": list(IMAGES.values())})})
    for items in (
        read("image_folder", root),
        read("webdataset", f"{root}/a.tar"),
        read("parquet", f"{root}/t.parquet"),
    ):
        manifest = [row_of(item) for item in items[:3]]
        manifest[1]["sha256"] = hashlib.sha256(b"another").hexdigest()
        manifest[2]["sha256"] = None  # of others' manifests: nothing to compare with
        first, changed, unchecked = read_located(manifest, {})
        assert first.data == items[0].data and unchecked.data == items[2].data
        assert changed.data is None
        assert changed.error == "not the image that was selected: its bytes changed"


def test_what_is_missing_is_said_of_each_image(root: str) -> None:
    write(root, {"a.tar": tar(list(IMAGES.items())), "one.jpg": IMAGES["00.jpg"]})
    write(root, {"t.parquet": parquet({"image": list(IMAGES.values())}, 5)})
    in_tar = read("webdataset", f"{root}/a.tar")[:2]
    in_table = read("parquet", f"{root}/t.parquet")[:2]
    (file,) = read("image_folder", root)
    manifest = [
        row_of(file, uri=f"{root}/gone.jpg"),
        row_of(file),
        row_of(in_tar[0], uri=f"{root}/gone.tar"),
        row_of(in_tar[0]),
        row_of(in_tar[1], offset=10**9),
        row_of(in_table[0], row=12),
        row_of(in_table[1]),
        row_of(in_table[1], uri=f"{root}/gone.parquet"),
    ]
    got = list(read_located(manifest, {"set": source("parquet", f"{root}/t.parquet")}))
    assert [item.data is not None for item in got] == [
        *(False, True, False, True, False, False, True, False)
    ]
    assert got[0].error == "no such file" and got[5].error == "no such row"
    assert all(item.error and "\n" not in item.error for item in got if item.data is None)
    assert [item.key for item in got] == [row["key"] for row in manifest]


def test_a_table_cut_short(root: str) -> None:
    data = parquet({"image": list(IMAGES.values())}, 5)
    write(root, {"t.parquet": data})
    manifest = [row_of(item) for item in read("parquet", f"{root}/t.parquet")]
    storage.write_bytes(f"{root}/t.parquet", data[: len(data) // 2])
    got = list(read_located(manifest, {"set": source("parquet", f"{root}/t.parquet")}))
    assert len(got) == 12 and all(item.data is None and item.error for item in got)
