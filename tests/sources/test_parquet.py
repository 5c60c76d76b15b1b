"""Tables with images in them, or with paths to images."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import storage
from curate.sources import Changed
from tests.imagery import jpeg
from tests.sources.reading import (
    error_of,
    parquet,
    plan_source,
    read,
    read_located,
    read_unit,
    source,
    write,
)

IMAGES = [jpeg(i) for i in range(10)]
NAMES = [f"{i}.jpg" for i in range(10)]


def columns(image: str) -> dict[str, object]:
    """The same ten images in each way that a column may hold them."""
    return {
        "bytes": pa.array(IMAGES, pa.binary()),
        "large": pa.array(IMAGES, pa.large_binary()),
        "struct": [{"bytes": data, "path": None} for data in IMAGES],
        "mixed": [
            {"bytes": data if i % 2 else None, "path": name}
            for i, (data, name) in enumerate(zip(IMAGES, NAMES, strict=True))
        ],
        "paths": NAMES,
        "dictionary": pa.array(NAMES).dictionary_encode(),
    }[image]  # type: ignore[return-value]


@pytest.mark.parametrize("image", ["bytes", "large", "struct", "mixed", "paths", "dictionary"])
def test_however_the_image_is_held(root: str, image: str) -> None:
    write(root, {f"images/{name}": data for name, data in zip(NAMES, IMAGES, strict=True)})
    table = {"image": columns(image), "class": list(range(10)), "id": NAMES}
    write(root, {"images/t.parquet": parquet(table, row_group_rows=3)})
    items = read(
        "parquet",
        storage.join(root, "images/t.parquet"),
        unit_images=4,
        key_column="id",
        label_column="class",
    )
    assert [item.data for item in items] == IMAGES
    assert [item.key for item in items] == NAMES
    assert [item.label for item in items] == [str(i) for i in range(10)]
    assert [item.row for item in items] == list(range(10))
    assert [item.size for item in items] == [len(data) for data in IMAGES]


def test_path_column_relative_and_not(root: str) -> None:
    write(root, {f"images/{name}": data for name, data in zip(NAMES, IMAGES, strict=True)})
    paths = [
        f"images/{name}" if i % 2 else storage.join(root, "images", name)
        for i, name in enumerate(NAMES)
    ]
    paths[4] = "images/gone.jpg"
    write(root, {"t.parquet": parquet({"file": paths, "image": [b""] * 10})})
    items = read("parquet", storage.join(root, "t.parquet"), path_column="file")
    assert [item.error for item in items if item.error] == ["no such file"]
    assert [item.data for item in items] == [*IMAGES[:4], None, *IMAGES[5:]]
    assert [item.key for item in items] == [f"t.parquet:{i}" for i in range(10)]


@pytest.mark.parametrize("limit", [1, 3, 6, 7, 10, 11, 19, 20, 99])
@pytest.mark.parametrize("unit_images", [1, 5, 100])
def test_limit_takes_the_first_rows_across_files(
    tmp_path: Path, limit: int, unit_images: int
) -> None:
    root = str(tmp_path)
    for name in "ab":
        rows = [f"{name}{i}".encode() for i in range(10)]
        write(root, {f"{name}.parquet": parquet({"image": rows}, row_group_rows=3)})
    order = [f"{name}{i}".encode() for name in "ab" for i in range(10)]
    settings = source("parquet", storage.join(root, "*.parquet"), limit=limit)
    units = plan_source(settings, unit_images)
    items = [list(read_unit(settings, unit)) for unit in units]
    assert [len(group) for group in items] == [unit.images for unit in units]
    assert [item.data for group in items for item in group] == order[:limit]


def test_rows_without_an_image_are_items(root: str) -> None:
    write(root, {"t.parquet": parquet({"image": [IMAGES[0], None, b"", IMAGES[1]]})})
    items = read("parquet", storage.join(root, "t.parquet"))
    assert [item.error for item in items] == [
        None,
        "no image in this row",
        "no image in this row",
        None,
    ]
    write(root, {"n.parquet": parquet({"image": [[1, 2], [3]]})})
    items = read("parquet", storage.join(root, "n.parquet"))
    assert [item.error for item in items] == ["a list, no encoded image"] * 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"image_column": "img"}, "image_column"),
        ({"path_column": "img"}, "path_column"),
        ({"key_column": "img"}, "key_column"),
        ({"label_column": "img"}, "label_column"),
    ],
)
def test_a_missing_column(root: str, settings: dict[str, str], named: str) -> None:
    write(root, {"ok.parquet": parquet({"image": IMAGES, "img": NAMES})})
    write(root, {"t.parquet": parquet({"image": IMAGES, "class": NAMES})})
    message = error_of("parquet", storage.join(root, "*.parquet"), **settings)
    assert message.endswith(f"t.parquet: no column 'img'; set {named} to one of image, class")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"<html>" * 50])
def test_no_parquet_at_all(root: str, data: bytes) -> None:
    write(root, {"t.parquet": data})
    assert "not a Parquet file" in error_of("parquet", storage.join(root, "t.parquet"))


def test_a_damaged_footer(root: str) -> None:
    data = bytearray(parquet({"image": IMAGES}))
    data[-100:-20] = bytes(80)
    write(root, {"t.parquet": bytes(data)})
    message = error_of("parquet", storage.join(root, "t.parquet"))
    assert "t.parquet: not a Parquet file: " in message and "ray::" not in message


def test_damage_between_footer_and_rows(root: str) -> None:
    """Every row of the plan that cannot be read is an item that says why."""
    data = bytearray(parquet({"image": IMAGES}, row_group_rows=2))
    start = pq.read_metadata(io.BytesIO(data)).row_group(3).column(0).data_page_offset
    data[start : start + 40] = bytes(40)
    write(root, {"t.parquet": bytes(data)})
    items = read("parquet", storage.join(root, "t.parquet"))
    given = [item.data for item in items if not item.error]
    assert len(items) == 10 and given == IMAGES[: len(given)] and len(given) <= 6
    assert all((item.error or "").startswith("not readable: ") for item in items[len(given) :])


def test_another_file_or_none_since_it_was_planned(root: str) -> None:
    uri = storage.join(root, "t.parquet")
    settings = source("parquet", uri)
    write(root, {"t.parquet": parquet({"image": IMAGES})})
    (unit,) = plan_source(settings)
    write(root, {"t.parquet": parquet({"image": IMAGES[:4]})})
    with pytest.raises(Changed, match=r"t\.parquet: changed since it was planned"):
        list(read_unit(settings, unit))
    storage.remove_tree(uri)
    with pytest.raises(Changed, match=r"t\.parquet: gone since it was planned"):
        list(read_unit(settings, unit))


def test_tables_of_no_rows(root: str) -> None:
    write(root, {"a.parquet": parquet({"image": pa.array([], pa.binary())})})
    assert "no images" in error_of("parquet", storage.join(root, "*.parquet"))
    write(root, {"b.parquet": parquet({"image": IMAGES})})
    assert len(read("parquet", storage.join(root, "*.parquet"))) == 10


def test_images_that_are_too_large(root: str) -> None:
    """Refused with the rest of the row, and in files that rows name."""
    images = [bytes(99), bytes(101), bytes(100)]
    write(root, {f"{i}.jpg": data for i, data in enumerate(images)})
    columns = {"image": images, "path": [f"{i}.jpg" for i in range(3)]}
    write(root, {"t.parquet": parquet(columns)})
    for path_column in (None, "path"):
        settings = source("parquet", f"{root}/t.parquet", path_column=path_column)
        (unit,) = plan_source(settings)
        items = list(read_unit(settings, unit, max_bytes=100))
        assert [item.data for item in items] == [bytes(99), None, bytes(100)]
        assert "over max_bytes 100" in (items[1].error or "")
        rows = [{"source": "set", "sha256": None, **vars(item)} for item in items]
        again = list(read_located(rows, {"set": settings}, max_bytes=99))
        assert [item.data for item in again] == [bytes(99), None, None]
        assert all("over max_bytes 99" in (item.error or "") for item in again[1:])
