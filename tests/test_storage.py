"""Files whole or absent, on the disk and elsewhere."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from curate import listing, storage
from curate.errors import CurateError


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
