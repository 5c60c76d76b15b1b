"""Trees of image files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from curate import storage
from curate.sources import plan_source, read_unit
from tests.imagery import jpeg
from tests.sources.reading import error_of, read, source, write

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
def test_limit(root: str, limit: int, unit_images: int) -> None:
    write(root, TREE)
    items = read("image_folder", root, unit_images, limit=limit)
    assert [item.key for item in items] == KEYS[:limit]


def test_a_file_that_vanishes_is_an_item(root: str) -> None:
    write(root, TREE)
    folder = source("image_folder", root)
    (unit,) = plan_source(folder, 1000)
    storage.remove_tree(storage.join(root, "cat/1.jpg"))
    items = list(read_unit(folder, unit))
    assert [(item.key, item.error) for item in items if item.error] == [
        ("cat/1.jpg", "no such file")
    ]
    assert len(items) == len(KEYS) and all(item.data for item in items if not item.error)


def test_unreadable_files_are_items(tmp_path: Path) -> None:
    write(str(tmp_path), TREE)
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    folder = source("image_folder", str(tmp_path))
    errors = [
        item.error
        for unit in plan_source(folder, 1000)
        for item in read_unit(folder, unit)
        if item.key == "loop.jpg"
    ]
    assert len(errors) == 1 and errors[0]


def test_nothing_there(root: str) -> None:
    assert "no such folder" in error_of("image_folder", storage.join(root, "missing"))
    write(root, {"readme.txt": b"hello"})
    assert "no images" in error_of("image_folder", root)
