"""Tars, as they should be and as they come."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path

import pytest

from curate import storage
from curate.sources import Changed
from curate.sources.webdataset import HEADER_BYTES
from tests.imagery import jpeg, tar
from tests.servers import Handler, Server
from tests.sources.reading import (
    error_of,
    plan_source,
    read,
    read_located,
    read_unit,
    source,
    write,
)

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
    link, item = read("webdataset", str(tmp_path / "a.tar"))
    assert (item.key, item.data) == ("sub/1", jpeg(1))
    assert (link.key, link.data) == ("link", jpeg(1))


def shards(root: str) -> str:
    """Three tars of four images; the keys are the same in all of them."""
    for name in "abc":
        members = [(f"{i}.jpg", f"{name}{i}".encode()) for i in range(4)]
        write(root, {f"{name}.tar": tar(members)})
    return storage.join(root, "*.tar")


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 8, 11, 12, 50])
def test_limit_takes_the_first_images_across_tars(tmp_path: Path, limit: int) -> None:
    pattern = shards(str(tmp_path))
    order = [f"{name}{i}".encode() for name in "abc" for i in range(4)]
    assert [item.data for item in read("webdataset", pattern)] == order
    assert [item.data for item in read("webdataset", pattern, limit=limit)] == order[:limit]
    units = plan_source(source("webdataset", pattern, limit=limit))
    assert sum(unit.images or 0 for unit in units) == min(limit, 12)


class _Ranges(Handler):
    """Files by name, in ranges, and how many bytes went out."""

    files: dict[str, bytes]
    sent: list[tuple[str, int]]

    def do_GET(self) -> None:
        data = self.files.get(self.path, b"")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2])) if asked else (0, len(data))
        body = data[first : last + 1]
        self.send_response(206 if asked else 200 if data else 404)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET" and body:
            self.wfile.write(body)
            self.sent.append((self.path, len(body)))

    do_HEAD = do_GET


def test_a_limit_over_remote_tars_reads_headers_alone() -> None:
    """And of no more tars than it takes in the first wave."""
    images = [(f"{i}.jpg", bytes(200_000)) for i in range(5)]
    files = {f"/{i}.tar": tar(images) for i in range(6)}
    sent: list[tuple[str, int]] = []
    server = Server(type("Ranges", (_Ranges,), {"files": files, "sent": sent}))
    settings = source("webdataset", f"{server.url}/{{0..5}}.tar", limit=7)
    units = plan_source(settings)
    counted = list(sent)
    assert [unit.images for unit in units] == [5, 2]
    assert {path for path, _ in counted} <= {f"/{i}.tar" for i in range(4)}
    for path in ("/0.tar", "/1.tar"):
        read_bytes = sum(size for name, size in counted if name == path)
        assert 6 * 512 <= read_bytes <= 7 * 2 * HEADER_BYTES < len(files[path]) / 8
    items = [item for unit in units for item in read_unit(settings, unit)]
    assert [item.data for item in items] == [bytes(200_000)] * 7
    server.end()


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


def test_a_tar_that_vanishes_or_changes_is_said_by_name(root: str) -> None:
    settings = source("webdataset", shards(root))
    first, second, _ = plan_source(settings)
    storage.remove_tree(first.uri)
    storage.write_bytes(second.uri, tar(IMAGES))
    for unit, what in ((first, "gone"), (second, "changed")):
        with pytest.raises(Changed) as raised:
            list(read_unit(settings, unit))
        assert str(raised.value) == f"{unit.uri}: {what} since it was planned"


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


# What else has an image's name


def member(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


def tar_of(members: list[tarfile.TarInfo | tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                archive.addfile(one)
            else:
                info = tarfile.TarInfo(one[0])
                info.size = len(one[1])
                archive.addfile(info, io.BytesIO(one[1]))
    return file.getvalue()


def test_links_inside_of_a_tar_are_images(root: str) -> None:
    """Their bytes are those of the member that they mean, wherever it stands."""
    hard, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    members = [
        member("x/early.jpg", soft, "../b/1.jpg"),
        ("./a/0.jpg", jpeg(0)),
        ("a/0.cls", b"cat"),
        member("b/hard.jpg", hard, "a/0.jpg"),
        member("b/hard.cls", hard, "./a/0.cls"),
        ("b/1.jpg", jpeg(1)),
        member("x/hard-of-soft.jpg", hard, "x/early.jpg"),
        member("soft-of-hard.jpg", soft, "./b/hard.jpg"),
        ("a/0.jpg", jpeg(2)),  # added anew: what was linked before is still what it was
    ]
    write(root, {"a.tar": tar_of(members)})
    items = read("webdataset", f"{root}/a.tar")
    assert [(item.key, item.label, item.data) for item in items] == [
        ("a/0", "cat", jpeg(0)),
        ("a/0", "cat", jpeg(2)),
        ("b/1", None, jpeg(1)),
        ("b/hard", "cat", jpeg(0)),
        ("soft-of-hard", None, jpeg(0)),
        ("x/early", None, jpeg(1)),
        ("x/hard-of-soft", None, jpeg(1)),
    ]
    for item in items:
        assert item.offset is not None and item.size is not None
        assert storage.read_range(item.uri, item.offset, item.size) == item.data
    assert read("webdataset", f"{root}/a.tar", limit=4) == items[:4]


def test_a_reason_is_a_short_line_whatever_a_link_names(root: str) -> None:
    link = member("a.jpg", tarfile.SYMTYPE, "deep/" * 200 + "b\nc.jpg")
    write(root, {"a.tar": tar_of([link])})
    (item,) = read("webdataset", f"{root}/a.tar")
    assert item.error and "a link to deep/deep/" in item.error
    assert "\n" not in item.error and len(item.error) < 300


def test_what_is_named_like_an_image_and_is_none(root: str) -> None:
    soft = tarfile.SYMTYPE
    members = [
        ("1.jpg", jpeg(1)),
        member("folder.jpg", tarfile.DIRTYPE),
        member("gone.jpg", soft, "nowhere.jpg"),
        member("hard.jpg", tarfile.LNKTYPE, "later.jpg"),
        member("loop-a.jpg", soft, "loop-b.jpg"),
        member("loop-b.jpg", soft, "loop-a.jpg"),
        member("out.jpg", soft, "../../etc/passwd"),
        member("pipe.jpg", tarfile.FIFOTYPE),
        member("to-folder.jpg", soft, "folder.jpg"),
        member("notes.txt", soft, "nowhere.txt"),
    ]
    write(root, {"a.tar": tar_of(members)})
    first, *rest = read("webdataset", f"{root}/a.tar")
    assert first.data == jpeg(1)
    outside = "a link to {}, which is no file of the archive"
    assert {item.key: item.error for item in rest} == {
        "gone": outside.format("nowhere.jpg"),
        "hard": outside.format("later.jpg"),
        "loop-a": outside.format("loop-a.jpg"),
        "loop-b": outside.format("loop-b.jpg"),
        "out": outside.format("../../etc/passwd"),
        "pipe": "not a regular file",
        "to-folder": outside.format("folder.jpg"),
    }
    assert all(item.data is None for item in rest)


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_whose_names_are_not_utf_8(root: str, format_: int) -> None:
    name = os.fsdecode(b"caf\xe9/50%")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format_, errors="surrogateescape") as archive:
        for suffix, data in ((".jpg", jpeg(1)), (".cls", b"cat")):
            info = tarfile.TarInfo(name + suffix)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    write(root, {"a.tar": file.getvalue()})
    (item,) = read("webdataset", f"{root}/a.tar")
    assert (item.key, item.label, item.data) == ("caf%E9/50%", "cat", jpeg(1))


def test_members_that_are_too_large(root: str) -> None:
    write(
        root, {"a.tar": tar([("1.jpg", bytes(99)), ("2.jpg", bytes(100)), ("3.jpg", bytes(101))])}
    )
    settings = source("webdataset", f"{root}/a.tar")
    (unit,) = plan_source(settings)
    items = list(read_unit(settings, unit, max_bytes=100))
    assert [item.error for item in items] == [None, None, "101 bytes is over max_bytes 100"]
    assert [item.data for item in items] == [bytes(99), bytes(100), None]
    rows = [
        {"source": "set", "sha256": None, **{k: v for k, v in vars(item).items() if k != "data"}}
        for item in items
    ]
    again = list(read_located(rows, {}, max_bytes=99))
    assert [item.error for item in again] == [
        None,
        *(f"{n} bytes is over max_bytes 99" for n in (100, 101)),
    ]


def test_braces(root: str) -> None:
    shards(root)
    items = read("webdataset", f"{root}/{{c,a}}.tar")
    assert [item.data for item in items] == [f"{x}{i}".encode() for x in "ca" for i in range(4)]
    message = error_of("webdataset", f"{root}/{{a,b,gone,d}}.tar")
    assert message.endswith(f"{root}/gone.tar: matches no file; check the path")
