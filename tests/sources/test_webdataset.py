"""Tars, as they should be and as they come."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from curate import storage
from curate.sources import plan_source, read_unit
from tests.imagery import jpeg, tar
from tests.sources.reading import error_of, read, source, write

IMAGES = [(f"{i:03d}.jpg", jpeg(i)) for i in range(6)]
LABELS = [(f"{i:03d}.cls", f"class {i % 2}\n".encode()) for i in range(6)]


def orders() -> dict[str, list[tuple[str, bytes]]]:
    return {
        "sorted": sorted(IMAGES + LABELS),
        "images first": IMAGES + LABELS,
        "labels first": LABELS + IMAGES[::-1],
        "interleaved": [member for pair in zip(IMAGES[::-1], LABELS) for member in pair],  # noqa: B905
    }


@pytest.mark.parametrize("order", sorted(orders()))
def test_any_order_reads_the_same(root: str, order: str) -> None:
    write(root, {"a.tar": tar(orders()[order])})
    items = read("webdataset", storage.join(root, "a.tar"))
    assert [(item.key, item.label) for item in items] == [
        (f"{i:03d}", f"class {i % 2}") for i in range(6)
    ]
    assert [item.data for item in items] == [data for _, data in IMAGES]
    for item in items:  # the manifest's promise: anybody can fetch the bytes by these three
        assert item.offset is not None and item.size is not None
        assert storage.read_range(item.uri, item.offset, item.size) == item.data


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (
            ["a/b/1.jpg", "a/b/1.cls", "a/b/1.json", "a/b/1.txt", "a/1.jpg"],
            {"a/1": None, "a/b/1": "a/b/1.cls"},
        ),
        (["1.jpg", "1.seg.png", "1.depth.png", "1.cls"], {"1": "1.cls"}),
        (["photo.v2.jpg", "photo.v2.cls"], {"photo.v2": "photo.v2.cls"}),
        (["1.left.jpg", "1.right.jpg", "1.cls"], {"1.left": "1.cls", "1.right": "1.cls"}),
        (["a.b/c.d.e.jpeg", "a.b/x.PNG"], {"a.b/c.d.e": None, "a.b/x": None}),
        (["./1.jpg", "./1.cls"], {"1": "./1.cls"}),
        (["__meta__.json", "1.jpg", "1.jpg.txt"], {"1": None}),
        ([f"{'deep/' * 40}1.webp"], {f"{'deep/' * 40}1": None}),
        (["ключ.jpg", "ключ.cls"], {"ключ": "ключ.cls"}),
    ],
    ids=lambda value: value[0][:20] if isinstance(value, list) else "",
)
def test_keys_and_sidecars(
    tmp_path: Path, members: list[str], expected: dict[str, str | None]
) -> None:
    write(str(tmp_path), {"a.tar": tar([(name, name.encode()) for name in members])})
    items = read("webdataset", str(tmp_path / "a.tar"))
    assert {item.key: item.label for item in items} == expected
    assert not any(item.error for item in items)
    for item in items:
        assert item.data is not None and item.data.decode().removeprefix("./").startswith(item.key)


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_written_by_others(tmp_path: Path, format_: int) -> None:
    """With folders, links and each dialect's own headers in them."""
    (tmp_path / "files/sub").mkdir(parents=True)
    (tmp_path / "files/sub/1.jpg").write_bytes(jpeg(1))
    (tmp_path / "files/link.jpg").symlink_to("sub/1.jpg")
    with tarfile.open(tmp_path / "a.tar", "w", format=format_) as archive:
        archive.add(tmp_path / "files", ".")
    (item,) = read("webdataset", str(tmp_path / "a.tar"))
    assert (item.key, item.data) == ("sub/1", jpeg(1))


def shards(root: str) -> str:
    """Three tars of four images; the keys are the same in all of them."""
    for name in "abc":
        members = [(f"{i}.jpg", f"{name}{i}".encode()) for i in range(4)]
        write(root, {f"{name}.tar": tar(members)})
    return storage.join(root, "*.tar")


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 8, 11, 12, 50])
def test_limit_takes_the_first_images_across_tars(root: str, limit: int) -> None:
    pattern = shards(root)
    order = [f"{name}{i}".encode() for name in "abc" for i in range(4)]
    assert [item.data for item in read("webdataset", pattern)] == order
    assert [item.data for item in read("webdataset", pattern, limit=limit)] == order[:limit]
    units = plan_source(source("webdataset", pattern, limit=limit), 1000)
    assert sum(unit.images or 0 for unit in units) == min(limit, 12)


# Damage


@pytest.mark.parametrize("missing", [1, 512, 1000, 1024, 1025])
def test_a_cut_anywhere_keeps_what_lies_before_it(tmp_path: Path, missing: int) -> None:
    whole = tar(IMAGES)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        ends = [member.offset_data + member.size for member in archive.getmembers()]
        starts = [member.offset_data for member in archive.getmembers()]
    lengths = [*range(1, len(whole) - 10240, 173), *ends, *starts, ends[-1] - missing]
    path = tmp_path / "a.tar"
    for length in sorted(set(lengths)):
        path.write_bytes(whole[:length])
        items = read("webdataset", str(path))
        good = [item for item in items if item.error is None]
        assert [item.data for item in good] == [
            data for (_, data), end in zip(IMAGES, ends, strict=True) if end <= length
        ]
        assert items[-1].error and "the rest is lost" in items[-1].error
        inside = [item.error for item in items[:-1] if item.error]
        assert set(inside) <= {"the archive ends inside this image"} and len(inside) <= 1


def test_a_broken_header_in_the_middle(root: str) -> None:
    """tarfile would take that for the end, in silence."""
    data = bytearray(tar(IMAGES))
    third = data.index(b"003.jpg")
    data[third : third + 200] = bytes(range(200))
    write(root, {"a.tar": bytes(data)})
    items = read("webdataset", storage.join(root, "a.tar"))
    assert [item.key for item in items if not item.error] == ["000", "001", "002"]
    assert "damaged" in (items[-1].error or "")


def test_a_label_that_was_cut_is_no_label(tmp_path: Path) -> None:
    data = tar([("1.jpg", jpeg()), ("1.cls", b"warplane")])
    (tmp_path / "a.tar").write_bytes(data[: data.index(b"warplane") + 3])
    items = read("webdataset", str(tmp_path / "a.tar"))
    assert [(item.key, item.label) for item in items if not item.error] == [("1", None)]
    assert items[-1].error


@pytest.mark.parametrize(
    "data", [b"", b"<html>", bytes(range(256)) * 40], ids=["empty", "html", "noise"]
)
def test_no_tar_at_all_is_one_item(root: str, data: bytes) -> None:
    write(root, {"a.tar": data, "b.tar": tar(IMAGES)})
    items = read("webdataset", storage.join(root, "*.tar"))
    assert [item.key for item in items if not item.error] == [f"{i:03d}" for i in range(6)]
    assert len([item for item in items if item.error]) == 1
    assert items[0].uri.endswith("/a.tar")


def test_a_tar_of_nothing_is_whole(root: str) -> None:
    write(root, {"a.tar": tar([]), "b.tar": tar(IMAGES)})
    assert len(read("webdataset", storage.join(root, "*.tar"))) == 6
    assert len(read("webdataset", storage.join(root, "*.tar"), limit=2)) == 2


def test_a_tar_that_vanishes_is_one_item(root: str) -> None:
    settings = source("webdataset", shards(root))
    first, *_ = plan_source(settings, 1000)
    storage.remove_tree(first.uri)
    (item,) = read_unit(settings, first)
    assert item.uri == first.uri and item.error and "FileNotFoundError" in item.error


def test_patterns(root: str) -> None:
    shards(root)
    folder, missing = root, storage.join(root, "none-*.tar")
    assert "matches no file" in error_of("webdataset", missing)
    assert "none-*.tar" in error_of("webdataset", [storage.join(root, "a.tar"), missing])
    assert "a folder" in error_of("webdataset", folder)
    write(root, {"z.tar.gz": b"x"})
    assert "decompress" in error_of("webdataset", storage.join(root, "*"))
    both = [storage.join(root, "[ab].tar"), storage.join(root, "b.tar")]
    assert len(read("webdataset", both)) == 8, "a tar that two patterns match is read once"
