"""Lists of files, and the web."""

from __future__ import annotations

import contextlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate import storage
from curate.sources import Item, base
from curate.sources.base import read_files
from tests.imagery import jpeg, tar
from tests.sources.reading import error_of, parquet, plan_source, read, read_unit, source, write

IMAGES = {f"{i:02d}.jpg": jpeg(i) for i in range(12)}


def test_text_of_paths(root: str) -> None:
    write(root, {f"images/{name}": data for name, data in IMAGES.items()})
    lines = [f"images/{name}" for name in reversed(IMAGES)]
    lines[3] = storage.join(root, lines[3])
    lines[5] = "images/gone.jpg"
    text = "\ufeff" + "\r\n".join([*lines, "", "   "])
    write(root, {"list.txt": text.encode()})
    items = read("url_list", storage.join(root, "list.txt"), unit_images=5)
    assert [item.key for item in items] == lines
    assert [item.error for item in items if item.key == lines[5]] == ["no such file"]
    for item in items:
        assert item.error or item.data == IMAGES[item.uri.rpartition("/")[2]]


@pytest.mark.parametrize(("suffix", "comma"), [("csv", ","), ("tsv", "\t")])
def test_table_with_keys_and_labels(root: str, suffix: str, comma: str) -> None:
    write(root, IMAGES)
    rows = [["where", "id", "class"], ["02.jpg", "b", '"x y"'], ["01.jpg", "a", ""]]
    rows += [["", "empty", "z"], ["03.jpg"]]
    text = "\n".join(comma.join(row) for row in rows)
    write(root, {f"list.{suffix}": text.encode()})
    items = read(
        "url_list",
        storage.join(root, f"list.{suffix}"),
        url_column="where",
        key_column="id",
        label_column="class",
    )
    at = text.index(f"{comma}empty")
    assert [(item.key, item.label, item.error) for item in items] == [
        ("b", "x y", None),
        ("a", None, None),
        (f"byte {at}", None, "no URL in this row"),
        ("03.jpg", None, None),
    ]
    wanted = [IMAGES["02.jpg"], IMAGES["01.jpg"], None, IMAGES["03.jpg"]]
    assert [item.data for item in items] == wanted


@pytest.mark.parametrize("limit", [1, 4, 5, 6, 10, 12, 30])
def test_limit_takes_the_first_across_lists(tmp_path: Path, limit: int) -> None:
    names, root = list(IMAGES), str(tmp_path)
    write(root, {"1.txt": "\n".join(names[:5]).encode(), "2.txt": "\n".join(names[5:]).encode()})
    settings = source("url_list", storage.join(root, "*.txt"), limit=limit)
    units = plan_source(settings, 3)
    assert [item.key for unit in units for item in read_unit(settings, unit)] == names[:limit]
    assert sum(unit.images or 0 for unit in units) == min(limit, 12)


def test_errors_name_file_and_column(root: str) -> None:
    write(root, {"list.csv": b"link,class\n1.jpg,a\n", "empty.csv": b"", "empty.txt": b"\n\n"})
    message = error_of("url_list", storage.join(root, "list.csv"))
    assert message.endswith("list.csv: no column 'url'; set url_column to one of link, class")
    assert "no columns at all" in error_of("url_list", storage.join(root, "empty.csv"))
    assert "no images" in error_of("url_list", storage.join(root, "empty.txt"))
    assert "matches no file" in error_of("url_list", storage.join(root, "gone.txt"))
    write(root, {"odd.csv": b'"a\nb","' + b"c" * 1000 + b'"\n1.jpg,a\n'})
    odd = error_of("url_list", storage.join(root, "odd.csv"))
    assert "url_column to one of a b, ccc" in odd and len(odd) < 600


def test_a_row_that_is_no_csv_is_an_item(root: str) -> None:
    rows = [b"url", b"00.jpg", b"x" * 200_000, b"01.jpg", b'5" a', b'6" b', b"02.jpg"]
    write(root, {"list.csv": b"\n".join(rows), **IMAGES})
    items = read("url_list", storage.join(root, "list.csv"))
    assert [item.data for item in items] == [
        *(IMAGES["00.jpg"], None, IMAGES["01.jpg"], None, IMAGES["02.jpg"])
    ]
    for item, start in ((items[1], 11), (items[3], 200_019)):
        assert item.key == f"byte {start}" and (item.error or "").startswith("not readable as CSV")


# The web


class _Site(http.server.BaseHTTPRequestHandler):
    """/00.jpg … images; /hang-up breaks the connection, /short after half of what it promised;
    /flaky/… works at the second try; /unlimited never ends."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    tries: dict[str, int]

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        self.tries[path] = self.tries.get(path, 0) + 1
        flaky = path.startswith("flaky/") and self.tries[path] == 1
        if path == "hang-up" or flaky:
            self.close_connection = True
            return
        data = self.files.get(path.removeprefix("flaky/"))
        if path == "short":
            data = b"half"
        if path == "unlimited":
            self._send_for_ever()
            return
        self.send_response(200 if data else 404)
        promised = len(data or b"") * (2 if path == "short" else 1)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data or b"")
        self.close_connection = path == "short"

    def _send_for_ever(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):  # of who has hung up
            while self.command == "GET":
                self.wfile.write(bytes(1 << 16))

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served() -> dict[str, bytes]:
    """What the site has."""
    return dict(IMAGES)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, served: dict[str, bytes]) -> Iterator[str]:
    monkeypatch.setattr(storage, "RETRY_PAUSE_S", 0.01)
    monkeypatch.setattr(storage, "READ_PATIENCE_S", 0.1)
    monkeypatch.setattr(base, "FIRST_PATIENCE_S", 0.1)
    handler = type("Site", (_Site,), {"files": served, "tries": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served["a.tar"] = tar(list(IMAGES.items()))
    served["t.parquet"] = parquet({"image": list(IMAGES.values())})
    names = [*IMAGES, "gone.jpg", "hang-up", "short", "flaky/07.jpg"]
    address = f"http://127.0.0.1:{server.server_port}"
    served["list.txt"] = "\n".join(f"{address}/{name}" for name in names).encode()
    yield address
    server.shutdown()
    server.server_close()


def test_http_in_order_with_what_fails(site: str) -> None:
    items = read("url_list", f"{site}/list.txt", allow_private=True)
    by_name = {item.key.removeprefix(site + "/"): item for item in items}
    assert list(by_name) == [*IMAGES, "gone.jpg", "hang-up", "short", "flaky/07.jpg"]
    assert {name: by_name[name].data for name in IMAGES} == IMAGES
    assert by_name["gone.jpg"].error == "no such file"
    assert "ServerDisconnectedError" in (by_name["hang-up"].error or "")
    assert by_name["short"].data is None and by_name["short"].error
    assert by_name["flaky/07.jpg"].data == IMAGES["07.jpg"]


@pytest.mark.parametrize(("kind", "name"), [("webdataset", "a.tar"), ("parquet", "t.parquet")])
def test_archives_over_http(site: str, kind: str, name: str) -> None:
    items = read(kind, f"{site}/{name}")
    assert [item.data for item in items] == list(IMAGES.values())
    assert "matches no file" in error_of(kind, f"{site}/none-{name}")


@pytest.mark.parametrize("name", ["01.jpg", "flaky/01.jpg", "unlimited"])
def test_files_that_are_too_large(site: str, name: str) -> None:
    """No more than the limit is read, whatever the server says of the size; and once."""
    limit = len(IMAGES["01.jpg"])
    item = Item(key="", uri=f"{site}/{name}")
    (refused,) = read_files([item], limit - 1)
    assert refused.data is None
    assert refused.error == f"more than {limit - 1:,} bytes is over max_bytes {limit - 1}"
    if name != "unlimited":
        assert [item.data for item in read_files([item], limit)] == [IMAGES["01.jpg"]]


def test_lines_that_are_not_utf_8(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.jpg"), "caf%E9.jpg", "100%.jpg", "\u00e9.jpg"]
    for name, data in zip(names, IMAGES.values(), strict=False):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "list.txt").write_bytes(os.fsencode("\n".join(names)))
    rows = "".join(f"{name},{name[:3]}\n" for name in names)
    (tmp_path / "list.csv").write_bytes(os.fsencode("url,class\n" + rows))
    keys = ["caf%E9.jpg", "caf%25E9.jpg", "100%.jpg", "\u00e9.jpg"]
    for list_name, settings in (("list.txt", {}), ("list.csv", {"label_column": "class"})):
        items = read("url_list", str(tmp_path / list_name), **settings)
        assert {item.key: item.data for item in items} == dict(
            zip(keys, IMAGES.values(), strict=False)
        )


def test_lines_that_name_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "list.txt").write_text("pipe.jpg\n/dev/zero\n")
    items = read("url_list", str(tmp_path / "list.txt"))
    assert [item.error for item in items] == ["not a regular file"] * 2


def test_lines_that_nobody_allowed(site: str, served: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(IMAGES["01.jpg"])
    lines = [f"{site}/01.jpg", str(tmp_path / "a.jpg"), "sftp://h/a.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    served["list.txt"] = "\n".join(lines).encode()
    private = "private address 127.0.0.1; set allow_private: true on the source"
    unknown = "no scheme to read images by: sftp"
    for place, local in (
        (str(tmp_path), None),
        (site, "a local path, in a list that is not local"),
    ):
        items = {item.key: item.error for item in read("url_list", f"{place}/list.txt")}
        assert items == dict(zip(lines, (private, local, unknown), strict=True))
    served["t.parquet"] = parquet({"path": lines})
    items_ = read("parquet", f"{site}/t.parquet", path_column="path")
    assert [item.error for item in items_] == [private, local, unknown]
    allowed = read("parquet", f"{site}/t.parquet", path_column="path", allow_private=True)
    assert allowed[0].data == IMAGES["01.jpg"]


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "READ_PATIENCE_S", 0.1)
    assert "127.0.0.1:9" in error_of("url_list", "http://127.0.0.1:9/list.txt")
