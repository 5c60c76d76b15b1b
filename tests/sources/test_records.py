"""Lists read in pieces: whatever the ranges, the records are those of the whole."""

from __future__ import annotations

import csv
import io
import random
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest

from curate.sources import Changed, url_list
from curate.sources.records import Range, Record, split
from tests.imagery import jpeg
from tests.sources.reading import error_of, plan_source, read, read_unit, source, write

BOM = "\ufeff"
TEXTS = {
    "plain": "a\nb\nc\n",
    "no last line feed": "a\nb\nlonger than the ranges are",
    "crlf": "a\r\nb b\r\n\r\nc\r\n",
    "blank lines": "\n\n a \n\t\n\nb\n\n\n",
    "bom": BOM + "é\n漢字\n",
    "bom alone": BOM + "\n",
    "quotes say nothing": 'a"\nb\n"\nc"d"\n',
    "nothing": "",
    "one": "a",
}
TABLES = {
    "plain": "url,id\na,1\nb,2\n",
    "line feeds in quotes": 'url,id\n"a\nb",1\n"\n\n",2\nc,"x\ny"',
    "crlf in quotes": 'url,id\r\n"a\r\nb",1\r\n\r\nc,2\r\n',
    "quotes in quotes": 'url,id\n"a""\nb","""\n"\n"","\n"\nc,""\n',
    "bom": BOM + '"url",id\n"é\n",1\n\n',
    "blank lines before": '\n\r\n\nurl,id\na,"1"\n',
    "empty cells": ",\n ,b\n,,\n  \nc,\n",
    "commas": 'a,"b,c",d\n"e, \nf",,\n',
}


def ranges(path: Path, places: list[int], table: bool) -> list[Range]:
    """The list in ranges that end at these places."""
    end = path.stat().st_size
    found = [Range(str(path), *two, end, table) for two in pairwise([0, *places, end])]
    counts = [one.quotes() for one in found] if table else [0] * len(found)
    before = [0, *accumulate(counts)]
    return [replace(one, inside=bool(n % 2)) for one, n in zip(found, before, strict=False)]


def every_split(length: int) -> list[list[int]]:
    """At each byte, into pieces of each small size, and at random."""
    rng = random.Random(length)
    cuts = [[at] for at in range(1, length)]
    cuts += [list(range(size, length, size)) for size in (1, 2, 3, 5)]
    for _ in range(20):
        cuts.append(sorted(rng.sample(range(1, length), min(3, length - 1))) if length > 1 else [])
    return [[], *cuts]


def check(path: Path, table: bool) -> list[Record]:
    """The records, which are the same for every split."""
    data = path.read_bytes()
    (whole,) = [one.records() for one in ranges(path, [], table)]
    assert whole == split(data, 0, table)
    for places in every_split(len(data)):
        pieces = [one.records() for one in ranges(path, places, table)]
        assert [record for piece in pieces for record in piece] == whole, places
    for first in range(len(whole)):  # any run of them is read again by where it lies
        start, stop = whole[first].start, whole[-1].stop
        assert split(data[start:stop], start, table) == whole[first:]
    return whole


@pytest.mark.parametrize("name", TEXTS)
def test_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(TEXTS[name].encode())
    lines = [line.strip().encode() for line in TEXTS[name].removeprefix(BOM).splitlines()]
    assert [record.text for record in check(path, table=False)] == [one for one in lines if one]


def rows_of(text: str) -> list[list[str]]:
    """By the whole, as Python reads CSV."""
    return [row for row in csv.reader(io.StringIO(text.removeprefix(BOM), newline="")) if row]


@pytest.mark.parametrize("name", TABLES)
def test_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(TABLES[name].encode())
    records = check(path, table=True)
    assert [next(csv.reader([record.text.decode()])) for record in records] == rows_of(TABLES[name])


@pytest.mark.parametrize("seed", range(10))
def test_rows_of_anything(tmp_path: Path, seed: int) -> None:
    """Cells that a writer had to quote, some or all."""
    rng = random.Random(seed)
    file = io.StringIO(newline="")
    writer = csv.writer(
        file,
        quoting=csv.QUOTE_ALL if seed % 2 else csv.QUOTE_MINIMAL,
        lineterminator=rng.choice(["\n", "\r\n"]),
    )
    for _ in range(rng.randrange(1, 12)):
        writer.writerow(["".join(rng.choices('ab"\n, é', k=rng.randrange(5))) for _ in range(3)])
    path = tmp_path / "list.csv"
    path.write_bytes(file.getvalue().encode())
    records = check(path, table=True)
    assert [next(csv.reader([record.text.decode()])) for record in records] == rows_of(
        file.getvalue()
    )


def test_a_record_longer_than_what_is_read_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('a\n"' + "x\n" * 50_000 + '"\nb\n')
    for places in ([1, 2, 3], [4, 70_000, 100_002, 100_004], [99_999]):
        pieces = [one.records() for one in ranges(path, places, table=True)]
        records = [record for piece in pieces for record in piece]
        assert [len(record.text) for record in records] == [1, 100_002, 1]


# As sources


IMAGES = {f"{i:02d}.jpg": jpeg(i) for i in range(12)}


@pytest.fixture
def in_ranges(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Ranges of 16 bytes, by the tasks' own functions in this process; the items of each call."""
    called: list[Any] = []

    def over(task: Any, items: list[Any], at_once: int, *arguments: Any) -> list[Any]:
        called.append(items)
        return [task._function([item], *arguments) for item in items]

    monkeypatch.setattr(url_list, "RANGE_BYTES", 16)
    monkeypatch.setattr(url_list, "over_tasks", over)
    return called


@pytest.mark.parametrize("limit", [None, 1, 3, 7])
@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_a_list_of_many_ranges(
    tmp_path: Path, in_ranges: list[Any], suffix: str, limit: int | None
) -> None:
    header = "" if suffix == "txt" else '"id\nof it",url\n'
    lines = [name if suffix == "txt" else f'"n\n{name}",{name}' for name in IMAGES]
    write(str(tmp_path), {f"list.{suffix}": (header + "\n".join(lines)).encode(), **IMAGES})
    items = read("url_list", f"{tmp_path}/list.{suffix}", 4, limit=limit)
    assert [item.data for item in items] == list(IMAGES.values())[:limit]
    assert len(in_ranges[-1]) > 5


def test_rows_without_a_url_are_counted_and_named(tmp_path: Path) -> None:
    rows = b"id,url\n1,00.jpg\n2,\n3\n\n,01.jpg\n   \n"
    write(str(tmp_path), {"list.csv": rows, **IMAGES})
    items = read("url_list", f"{tmp_path}/list.csv", key_column="id")
    assert [(item.key, item.error) for item in items] == [
        ("1", None),
        ("byte 16", "no URL in this row"),
        ("byte 19", "no URL in this row"),
        ("01.jpg", None),
        ("byte 30", "no URL in this row"),
    ]


def test_a_first_cell_may_be_empty(tmp_path: Path) -> None:
    write(str(tmp_path), {"list.tsv": b"id\turl\n\t00.jpg\n1\t01.jpg\t\n", **IMAGES})
    items = read("url_list", f"{tmp_path}/list.tsv", key_column="id")
    assert [(item.key, item.data) for item in items] == [
        ("00.jpg", IMAGES["00.jpg"]),
        ("1", IMAGES["01.jpg"]),
    ]


@pytest.mark.parametrize("before", ["\n", "\r\n\r\n", BOM + "\n", "\n" * 40])
def test_a_header_on_another_line(tmp_path: Path, in_ranges: list[Any], before: str) -> None:
    text = before + "class,url\r\ncat,00.jpg\r\ndog,01.jpg\r\n"
    write(str(tmp_path), {"list.csv": text.encode(), **IMAGES})
    items = read("url_list", f"{tmp_path}/list.csv", label_column="class")
    assert [(item.label, item.data) for item in items] == [
        ("cat", IMAGES["00.jpg"]),
        ("dog", IMAGES["01.jpg"]),
    ]


@pytest.mark.parametrize("rows", ['"a.jpg\nb.jpg\n', 'a.jpg\n"b"".jpg\n', 'a.jpg\nb.jpg,"'])
def test_a_quote_that_is_never_closed(tmp_path: Path, rows: str) -> None:
    write(str(tmp_path), {"list.csv": f"url\n{rows}".encode()})
    message = error_of("url_list", f"{tmp_path}/list.csv")
    assert message.endswith("list.csv: a quote in it is never closed; mend the list")


def test_a_list_of_a_header_alone(tmp_path: Path) -> None:
    write(str(tmp_path), {"list.csv": b"url\n"})
    assert "no images" in error_of("url_list", f"{tmp_path}/list.csv")


def test_a_list_that_says_something_else_now(tmp_path: Path) -> None:
    """What is appended changes no unit; a line that changes is said by the list's name."""
    text = "".join(f"{name}\n" for name in IMAGES)
    write(str(tmp_path), {"list.txt": text.encode(), **IMAGES})
    settings = source("url_list", f"{tmp_path}/list.txt")
    units = plan_source(settings, 4)
    write(str(tmp_path), {"list.txt": (text + "more.jpg\n").encode()})
    assert all(url_list.says_still(settings, unit) for unit in units)
    assert len([item for unit in units for item in read_unit(settings, unit)]) == 12
    write(str(tmp_path), {"list.txt": text.replace("00.jpg", "01.jpg").encode()})
    assert [url_list.says_still(settings, unit) for unit in units] == [
        False,
        *[True] * (len(units) - 1),
    ]
    with pytest.raises(Changed, match=r"list\.txt: changed since it was planned"):
        list(read_unit(settings, units[0]))
    (tmp_path / "list.txt").unlink()
    assert not any(url_list.says_still(settings, unit) for unit in units)
    with pytest.raises(Changed, match=r"list\.txt: gone since it was planned"):
        list(read_unit(settings, units[0]))
