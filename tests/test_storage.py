"""Files whole or absent, on the disk and elsewhere."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from curate import listing, storage
from curate.errors import CurateError
from tests.servers import Handler, Server


@pytest.fixture(params=["local", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "local": str(tmp_path),
        "file": f"file://{tmp_path}",
        "memory": f"memory://{tmp_path.name}-{os.getpid()}",
    }[request.param]


def test_write_read_remove(root: str) -> None:
    uri = storage.join(root, "a", "b", "file")
    assert not storage.exists(uri) and storage.names_in(storage.join(root, "a")) == set()
    storage.write_bytes(uri, b"0123456789")
    storage.write_bytes(storage.join(root, "a", "other"), pa.py_buffer(b"buffer"))
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.read_range(uri, 3, 4) == b"3456"
    assert storage.read_bytes(storage.join(root, "a/other")) == b"buffer"
    storage.write_bytes(uri, b"new")
    with storage.open_seekable(uri) as file:
        file.seek(1)
        assert file.read() == b"ew"
    assert storage.names_in(storage.join(root, "a/b")) == {"file"}, "no scratch file is left"
    storage.remove_tree(storage.join(root, "a"))
    storage.remove_tree(storage.join(root, "a"))
    assert not storage.exists(uri)


def test_find_and_expand_give_uris_that_can_be_read(root: str) -> None:
    names = ["b/2.txt", "b/1.txt", "a.txt", "b/c/3.bin", "b/[x].txt"]
    for name in names:
        storage.write_bytes(storage.join(root, name), name.encode())
    found = listing.find(root)
    assert [storage.read_bytes(file.uri).decode() for file in found] == sorted(names)
    assert [file.size for file in found] == [len(name) for name in sorted(names)]
    patterns = [storage.join(root, pattern) for pattern in ("b/[12].txt", "b/*.txt", "a.txt")]
    expanded = [storage.read_bytes(file.uri).decode() for file in listing.expand(patterns)]
    assert expanded == ["a.txt", "b/1.txt", "b/2.txt", "b/[x].txt"], "each once"
    literal = listing.expand([storage.join(root, "b/[x].txt")])
    assert [storage.read_bytes(file.uri) for file in literal] == [b"b/[x].txt"]
    assert len(listing.expand([storage.join(root, "**/*.*")])) == 5
    for pattern, names in {
        "*/*.txt": ["b/1.txt", "b/2.txt", "b/[x].txt"],
        "?/[!1].txt": ["b/2.txt"],
        "b/*/3*": ["b/c/3.bin"],
        "b/**/*.bin": ["b/c/3.bin"],
        "*/c/3.bin": ["b/c/3.bin"],
    }.items():
        found = listing.expand([storage.join(root, pattern)])
        assert [storage.read_bytes(file.uri).decode() for file in found] == names
    for pattern in ("b/1.txt/*", "*/x/*.bin", "b/c*"):
        with pytest.raises(CurateError, match="matches no file"):
            listing.expand([storage.join(root, pattern)])


class Denied(AbstractFileSystem):
    """Refuses to list now and then, as a store does whose credentials are renewed."""

    protocol = "denied"
    refused: ClassVar[dict[str, int]] = {}  # of a folder: how often it still is

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> Any:
        name = path.rstrip("/").rpartition("/")[2]
        if self.refused.get(name):
            self.refused[name] -= 1
            raise PermissionError(path)
        return LocalFileSystem().ls(path, detail, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        return LocalFileSystem().info(path, **kwargs)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("denied", Denied, clobber=True)
    monkeypatch.setattr(storage, "READ_PATIENCE_S", 1.0)
    for name in ("a/1.txt", "b/2.txt"):
        storage.write_bytes(str(tmp_path / name), b"")
    pattern = [f"denied://{tmp_path}/*/*.txt"]
    Denied.refused = {"a": 1, "b": 2}
    assert [file.uri.rpartition("/")[2] for file in listing.expand(pattern)] == ["1.txt", "2.txt"]
    Denied.refused = {"b": 1000}
    with pytest.raises(storage.Unavailable, match="PermissionError"):
        listing.expand(pattern)


def test_what_is_not_there(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        listing.find(storage.join(root, "missing"))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "missing"))
    with pytest.raises(CurateError, match=r"missing/\*\.tar: matches no file"):
        listing.expand([storage.join(root, "missing/*.tar")])
    storage.write_bytes(storage.join(root, "folder/file"), b"")
    with pytest.raises(CurateError, match=r"folder: a folder; name its files, as in .*folder/\*"):
        listing.expand([storage.join(root, "folder")])


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up: the file keeps its old content, and nothing else appears beside it."""
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CurateError, match=r"file: cannot be written .*No space left"):
        storage.write_bytes(uri, b"new")
    assert os.listdir(tmp_path) == ["file"] and storage.read_bytes(uri) == b"old"


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CurateError, match="choose another output or free the place"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"data")


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    uri = str(tmp_path / "file")
    contents = [bytes([i]) * (4 << 20) for i in range(4)]
    storage.write_bytes(uri, contents[0])
    writers = [
        threading.Thread(
            target=lambda data=data: [storage.write_bytes(uri, data) for _ in range(5)]
        )
        for data in contents
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert storage.read_bytes(uri) in contents
    assert storage.names_in(str(tmp_path)) == {"file"}


def test_unknown_protocols_are_named() -> None:
    with pytest.raises(CurateError, match="nosuch://a/b: Protocol not known: nosuch"):
        storage.read_bytes("nosuch://a/b")


@pytest.mark.parametrize(
    ("base", "parts", "expected"),
    [
        ("a", ("b", "c"), "a/b/c"),
        ("a/", ("b",), "a/b"),
        ("/", ("b",), "/b"),
        ("s3://bucket", ("a", "b"), "s3://bucket/a/b"),
        ("s3://bucket/", ("a",), "s3://bucket/a"),
    ],
)
def test_join(base: str, parts: tuple[str, ...], expected: str) -> None:
    assert storage.join(base, *parts) == expected


def test_braces_in_the_order_of_what_is_written(root: str) -> None:
    for name in ("a-9.txt", "a-10.txt", "b-9.txt", "{a,b}-10.txt"):
        storage.write_bytes(storage.join(root, name), b"")

    def names(*patterns: str) -> list[str]:
        found = listing.expand([storage.join(root, pattern) for pattern in patterns])
        return [file.uri.rpartition("/")[2] for file in found]

    assert names("a-{9..10}.txt") == ["a-9.txt", "a-10.txt"]
    assert names("{b,a}-9.txt", "a-*.txt") == ["b-9.txt", "a-9.txt", "a-10.txt"], "each once"
    assert names("{b,a}-*.txt") == ["b-9.txt", "a-10.txt", "a-9.txt"], "patterns, sorted"
    assert names("{a,b}-10.txt") == ["{a,b}-10.txt"], "a name as it is written"
    with pytest.raises(CurateError, match=r"/b-10\.txt: matches no file; check the path"):
        names("{a,b}-{9..10}.txt")


def test_patterns_match_no_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    (tmp_path / "b.tar").symlink_to("a.tar")
    for name in ("a.tar", "b.tar"):
        with pytest.raises(CurateError, match=rf"/{name}: not a regular file; narrow the pattern"):
            listing.expand([str(tmp_path / f"{name[0]}*")])


def test_files_up_to_a_size(root: str) -> None:
    uri = storage.join(root, "file")
    for data in (b"", b"0123456789"):
        storage.write_bytes(uri, data)
        assert storage.read_file(uri, 10) == data
    with pytest.raises(storage.UnfitFile, match="is over max_bytes 9"):
        storage.read_file(uri, 9)
    with pytest.raises(FileNotFoundError):
        storage.read_file(storage.join(root, "missing"), 9)


def test_names_with_what_fsspec_takes_for_a_chain(tmp_path: Path) -> None:
    (tmp_path / "a::b.txt").write_bytes(b"data")
    (file,) = listing.find(str(tmp_path))
    assert file.path == "a::b.txt" and storage.read_bytes(file.uri) == b"data"


# Waiting


class Faults:
    """A real HTTP server whose answers fail as told: a status, or a way to break off."""

    def __init__(self) -> None:
        self.answers: list[int | str] = []  # of the next requests; good ones follow
        self.asked = 0
        self.headers: dict[str, str] = {}
        outer = self

        class Answers(Handler):
            def do_GET(self) -> None:
                outer.asked += 1
                answer = outer.answers.pop(0) if outer.answers else 200
                if answer == "reset":
                    self.connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                    self.close_connection = True
                    return
                self.send_response(answer if isinstance(answer, int) else 200)
                self.send_header("Content-Length", "8")
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(b"data" if answer == "cut" else b"datadata")
                self.close_connection = answer == "cut"

            do_HEAD = do_GET

        self.server = Server(Answers)
        self.uri = f"{self.server.url}/file"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    monkeypatch.setattr(storage, "RETRY_PAUSE_S", 0.01)
    server = Faults()
    yield server
    server.server.end()


@pytest.mark.parametrize("fault", [500, 503, 429, 408, 425, "reset", "cut"])
@pytest.mark.parametrize("read", ["whole", "range", "own"])
def test_what_passes_is_tried_again(faults: Faults, fault: int | str, read: str) -> None:
    faults.answers = [fault] * 3
    act = {
        "whole": lambda: storage.read_file(faults.uri, 100),
        "range": lambda: storage.read_range(faults.uri, 0, 8),
    }
    data = (
        storage.read_bytes(faults.uri)
        if read == "own"
        else storage.with_retries(faults.uri, act[read], patience_s=60)
    )
    assert data == b"datadata" and faults.asked == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_what_lasts_is_told_at_once(faults: Faults, status: int) -> None:
    faults.answers = [status] * 3
    with pytest.raises(Exception) as caught:
        storage.with_retries(faults.uri, lambda: storage.read_file(faults.uri, 100), 60)
    assert storage.is_lasting(caught.value, faults.uri) and faults.asked == 1
    assert isinstance(caught.value, FileNotFoundError) == (status == 404)


def test_patience_ends(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    faults.answers = [503] * 100_000
    uri = faults.uri.replace("//", "//user:pass@") + "?token=secret"
    with pytest.raises(storage.Unavailable) as caught:
        storage.with_retries(uri, lambda: storage.read_file(uri, 100), 0.3)
    assert str(caught.value).startswith(f"{faults.uri}?token=: ClientResponseError: 503")
    assert "secret" not in str(caught.value) and "pass" not in str(caught.value)
    assert "\n" not in str(caught.value) and faults.asked > 2
    monkeypatch.setattr(storage, "OWN_PATIENCE_S", 0.1)
    with pytest.raises(CurateError, match=r"503.*; check the store"):
        storage.read_bytes(faults.uri)


@pytest.mark.parametrize(("asked", "tries"), [("7", 2), ("100", 1), ("0", 2), ("soon", 2)])
def test_a_server_says_when(
    faults: Faults, asked: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it asks for is waited, unless that is longer than our patience."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    faults.answers = [429]
    faults.headers = {"Retry-After": asked}
    read = partial(storage.read_file, faults.uri, 9)
    if tries == 1:
        with pytest.raises(storage.Unavailable, match="429"):
            storage.with_retries(faults.uri, read, 60)
        assert slept == []
    else:
        assert storage.with_retries(faults.uri, read, 60) == b"datadata"
        assert slept == [7.0] if asked == "7" else slept[0] < 7
    assert faults.asked == tries


@pytest.mark.parametrize(
    ("error", "uri", "lasting"),
    [
        (FileNotFoundError(), "s3://b/k", True),
        (storage.UnfitFile("pipe"), "/a", True),
        (IsADirectoryError(), "/a", True),
        (NotADirectoryError(), "/a", True),
        (PermissionError(), "/a", True),
        (PermissionError(), "file:///a", True),
        (PermissionError(), "s3://b/k", False),
        (OSError(errno.ELOOP, ""), "/a", True),
        (OSError(errno.ENAMETOOLONG, ""), "/a", True),
        (ValueError("null byte"), "/a", True),
        (ValueError("odd answer"), "s3://b/k", False),
        *((OSError(number, ""), "/a", False) for number in (errno.EIO, errno.ESTALE)),
        *((OSError(number, ""), "/a", False) for number in (errno.EMFILE, errno.ETIMEDOUT)),
        (OSError(errno.EBUSY, "SlowDown"), "s3://b/k", False),
        (TimeoutError(), "https://h/a", False),
    ],
)
def test_lasting_or_not(error: Exception, uri: str, lasting: bool) -> None:
    assert storage.is_lasting(error, uri) == lasting


@pytest.mark.parametrize(
    ("number", "lasting"), [(socket.EAI_NONAME, True), (socket.EAI_AGAIN, False)]
)
def test_host_names(number: int, lasting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of that name is for good; a name server that does not answer is not."""
    monkeypatch.setattr(storage, "RETRY_PAUSE_S", 0.01)

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "as the name server says")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    uri = f"http://host-{number}.invalid/a.jpg"
    with pytest.raises(Exception) as caught:
        storage.with_retries(uri, lambda: storage.read_file(uri, 9), 0.1)
    assert isinstance(caught.value, storage.Unavailable) != lasting


def test_a_disk_that_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY_PAUSE_S", 0.01)
    uri, left, replace = str(tmp_path / "file"), [1, 2, 3], os.replace

    def stale(source: str, target: str) -> None:
        if left:
            left.pop()
            raise OSError(errno.ESTALE, "Stale file handle")
        replace(source, target)

    monkeypatch.setattr(os, "replace", stale)
    storage.write_bytes(uri, b"data")
    assert not left and storage.read_bytes(uri) == b"data" and os.listdir(tmp_path) == ["file"]


# Create-only, and streams


def test_the_first_writer_wins(root: str) -> None:
    uri = storage.join(root, "a/file")
    assert storage.create_bytes(uri, b"first")
    assert not storage.create_bytes(uri, b"second")
    assert not storage.create_bytes(uri, b"first"), "equal, and another's all the same"
    assert storage.read_bytes(uri) == b"first"
    assert storage.names_in(storage.join(root, "a")) == {"file"}
    storage.remove_tree(root)


def test_one_of_many_writers_wins(tmp_path: Path) -> None:
    for attempt in range(20):
        uri = str(tmp_path / str(attempt))
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda i, uri=uri: storage.create_bytes(uri, bytes([i])), range(8)))
        assert sum(won) == 1 and storage.read_bytes(uri) == bytes([won.index(True)])


@pytest.mark.parametrize("mine", [True, False])
def test_created_though_the_answer_was_lost(
    mine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "RETRY_PAUSE_S", 0.01)
    link, answers = os.link, ["lost"]

    def lossy(source: str, target: str) -> None:
        if answers:
            answers.pop()
            if mine:
                link(source, target)
            else:
                Path(target).write_bytes(b"another's")
            raise OSError(errno.ETIMEDOUT, "Connection timed out")
        link(source, target)

    monkeypatch.setattr(os, "link", lossy)
    assert storage.create_bytes(str(tmp_path / "file"), b"data") == mine


def test_a_mount_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    uri = str(tmp_path / "file")
    assert storage.create_bytes(uri, b"first") and not storage.create_bytes(uri, b"second")
    assert storage.read_bytes(uri) == b"first" and os.listdir(tmp_path) == ["file"]


def test_a_stream_is_whole_or_nothing(root: str) -> None:
    uri = storage.join(root, "a/file")
    with pytest.raises(RuntimeError), storage.open_whole(uri) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert not storage.exists(uri)
    with storage.open_whole(uri) as stream:
        stream.write(b"one ")
        assert not storage.exists(uri)
        stream.write(b"two")
    assert storage.read_bytes(uri) == b"one two"
    with pytest.raises(RuntimeError), storage.open_whole(uri) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert storage.read_bytes(uri) == b"one two"
    assert storage.names_in(storage.join(root, "a")) == {"file"}
    storage.remove_tree(root)


def test_a_full_disk_ends_a_stream_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(CurateError, match=r"file: cannot be written .*No space"),
        storage.open_whole(str(tmp_path / "file")),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


# Stamps


def test_stamps_tell_a_change(tmp_path: Path) -> None:
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"one")
    first = listing.stamp_of(uri)
    (found,) = listing.find(str(tmp_path))
    (expanded,) = listing.expand([str(tmp_path / "*")])
    assert first == (3, str(os.stat(uri).st_mtime_ns)) == (found.size, found.stamp)
    assert (expanded.size, expanded.stamp) == first == listing.stamp_of(uri)
    os.utime(uri, ns=(0, 1))
    assert listing.stamp_of(uri) == (3, "1")
    for gone in (uri + "x", str(tmp_path)):
        with pytest.raises(FileNotFoundError):
            listing.stamp_of(gone)


def test_stamps_over_http(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    faults.headers = {"ETag": '"abc"', "Last-Modified": "Wed, 25 Nov 2026 01:00:00 GMT"}
    faults.answers = [503, 503]
    assert listing.stamp_of(faults.uri) == (8, "abc")
    faults.answers = [501, 404] * 2  # to HEAD, which it does not know, and GET
    with pytest.raises(FileNotFoundError):
        listing.stamp_of(faults.uri)
    monkeypatch.setattr(storage, "READ_PATIENCE_S", 0.1)
    faults.answers = [503] * 100_000
    with pytest.raises(storage.Unavailable, match="503"):
        listing.stamp_of(faults.uri)
