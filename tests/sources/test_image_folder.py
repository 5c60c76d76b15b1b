"""Trees of image files."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

from curate import storage
from curate.sources import Changed
from tests.imagery import jpeg
from tests.sources.reading import (
    error_of,
    plan_source,
    read,
    read_located,
    read_unit,
    source,
    write,
)

TREE = {
    "cat/1.jpg": jpeg(1),
    "cat/deep/er/2.JPEG": jpeg(2),
    "cat.dog/3.png": jpeg(3),  # the bytes decide what it is, later
    "0.jpg": jpeg(0),
    "cat/notes.txt": b"no image",
    "cat/archive.tar": b"no image",
    "ünï cödé/[1]*.webp": jpeg(4),
}
KEYS = ["0.jpg", "cat.dog/3.png", "cat/1.jpg", "cat/deep/er/2.JPEG", "ünï cödé/[1]*.webp"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_keys_labels_and_bytes(root: str, slash: str) -> None:
    write(root, TREE)
    items = read("image_folder", root + slash, unit_images=2)
    assert [item.key for item in items] == KEYS
    assert [item.label for item in items] == [None, "cat.dog", "cat", "cat", "ünï cödé"]
    assert [item.data for item in items] == [TREE[key] for key in KEYS]
    for item in items:
        assert storage.read_bytes(item.uri) == item.data
        assert item.size == len(TREE[item.key])
        assert (item.offset, item.row, item.error) == (None, None, None)


@pytest.mark.parametrize("spelling", ["relative", "./relative", "file", "link"])
def test_however_the_root_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    write(str(tmp_path / "relative"), TREE)
    monkeypatch.chdir(tmp_path)
    os.symlink("relative", "link")
    path = f"file://{tmp_path}/relative" if spelling == "file" else spelling
    assert [item.key for item in read("image_folder", path)] == KEYS


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("unit_images", [1, 2, 100])
def test_limit(tmp_path: Path, limit: int, unit_images: int) -> None:
    write(str(tmp_path), TREE)
    items = read("image_folder", str(tmp_path), unit_images, limit=limit)
    assert [item.key for item in items] == KEYS[:limit]


def test_a_file_that_vanishes_is_a_change(root: str) -> None:
    write(root, TREE)
    folder = source("image_folder", root)
    (unit,) = plan_source(folder)
    storage.remove_tree(storage.join(root, "cat/1.jpg"))
    given = []
    with pytest.raises(Changed, match=r"cat/1\.jpg: gone since it was planned"):
        given.extend(read_unit(folder, unit))
    assert sum(file.error is not None for file in given) == 0


def test_a_file_that_is_written_anew_is_a_change(root: str) -> None:
    write(root, TREE)
    folder = source("image_folder", root)
    (unit,) = plan_source(folder)
    write(root, {"cat/1.jpg": jpeg(7) + b"longer"})
    with pytest.raises(Changed, match=r"cat/1\.jpg: changed since it was planned"):
        list(read_unit(folder, unit))


def test_unreadable_files_are_items(tmp_path: Path) -> None:
    write(str(tmp_path), TREE)
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    folder = source("image_folder", str(tmp_path))
    errors = [
        item.error
        for unit in plan_source(folder)
        for item in read_unit(folder, unit)
        if item.key == "loop.jpg"
    ]
    assert len(errors) == 1 and errors[0]


def test_nothing_there(root: str) -> None:
    assert "no such folder" in error_of("image_folder", storage.join(root, "missing"))
    write(root, {"readme.txt": b"hello"})
    assert "no images" in error_of("image_folder", root)


LATIN = os.fsdecode(b"caf\xe9")


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """In folders and files: each has a key and a URI that are, and that lead back to it."""
    images = {
        f"{LATIN}/1.jpg": ("caf%E9/1.jpg", jpeg(1)),
        f"{LATIN}/50%{LATIN}.jpg": ("caf%E9/50%25caf%E9.jpg", jpeg(2)),
        "plain/caf%E9.jpg": ("plain/caf%25E9.jpg", jpeg(3)),
        "plain/100%.jpg": ("plain/100%.jpg", jpeg(4)),
    }
    write_raw(tmp_path, {name: data for name, (_, data) in images.items()})
    items = read("image_folder", str(tmp_path))
    assert {item.key: item.data for item in items} == dict(images.values())
    assert {item.label for item in items} == {"caf%E9", "plain"}
    for item in items:
        assert item.uri == f"{tmp_path}/{item.key}" and item.uri.encode()
        assert storage.read_bytes(item.uri) == item.data
    rows = [{**vars(item), "source": "set", "sha256": None} for item in items]
    assert [item.data for item in read_located(rows, {})] == [item.data for item in items]
    below = f"{tmp_path}/caf%E9"
    assert [item.key for item in read("image_folder", below)] == ["1.jpg", "50%25caf%E9.jpg"]


def write_raw(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def test_what_no_file_is_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe would be read from for ever."""
    caplog.set_level(logging.INFO)
    write(str(tmp_path), TREE)
    os.mkfifo(tmp_path / "cat/pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.jpg"))
        (tmp_path / "zero.png").symlink_to("/dev/zero")
        assert [item.key for item in read("image_folder", str(tmp_path))] == KEYS
    (line,) = [record.message for record in caplog.records if "left out" in record.message]
    assert line == (
        "source set: left out 5 files: 2 without an image's extension, 3 not a regular file"
    )


def test_a_pipe_that_takes_an_images_place(tmp_path: Path) -> None:
    write(str(tmp_path), {"1.jpg": jpeg(1)})
    folder = source("image_folder", str(tmp_path))
    (unit,) = plan_source(folder)
    (tmp_path / "1.jpg").unlink()
    os.mkfifo(tmp_path / "1.jpg")
    (item,) = read_unit(folder, unit)
    assert (item.key, item.data, item.error) == ("1.jpg", None, "not a regular file")


def test_links_to_folders_and_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As class folders often are: gone into, each once on any way down."""
    caplog.set_level(logging.INFO)
    write(str(tmp_path), {f"store/{i}/{i}.jpg": jpeg(i) for i in range(2)})
    root = tmp_path / "set"
    (root / "own").mkdir(parents=True)
    for i, name in enumerate(("cat", "dog")):
        (root / name).symlink_to(tmp_path / f"store/{i}")
    (root / "own/again.jpg").symlink_to(tmp_path / "store/0/0.jpg")
    (root / "own/up").symlink_to("..")
    (root / "own/self").symlink_to(".")
    (tmp_path / "store/1/back").symlink_to(root)
    items = read("image_folder", str(root))
    by_key = {item.key: (item.label, item.data) for item in items}
    assert by_key == {
        "cat/0.jpg": ("cat", jpeg(0)),
        "dog/1.jpg": ("dog", jpeg(1)),
        "own/again.jpg": ("own", jpeg(0)),
    }
    assert not caplog.records, "nothing is left out"


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """A hole of 31 GB, which takes no room on the disk."""
    write(str(tmp_path), {"1.jpg": jpeg(1)})
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(31_000_000_000)
    small, huge = read("image_folder", str(tmp_path))
    assert small.data == jpeg(1)
    assert huge.data is None
    assert huge.error == "31,000,000,000 bytes is over max_bytes 268435456"
