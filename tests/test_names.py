"""Names that are not UTF-8, and names with braces."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from curate import names

# What a file system takes as a name, with much of what looks like an escape
PIECES = [
    b"%",
    b"25",
    b"%25",
    b"%FF",
    b"%C3%A9",
    b"%e9",
    b"\xff",
    b"\xc3",
    b"\xa9",
    b"\xc3\xa9",
    b"a",
]
NAMES = (
    st.one_of(
        st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map(b"".join),
        st.binary(min_size=1, max_size=20).map(
            lambda data: data.replace(b"\0", b"").replace(b"/", b"")
        ),
    )
    .filter(bool)
    .map(os.fsdecode)
)  # a path has no part without a name
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@given(PATHS)
@example("a%FF.jpg")
@example("a%25FF.jpg")
@example("a%2525FF.jpg")
@example("%C3\udca9")
@example("\udcff%FF%25")
def test_every_name_comes_back(path: str) -> None:
    text = names.escaped(path)
    text.encode()
    assert names.unescaped(text) == path


@given(st.lists(PATHS, min_size=2, max_size=2, unique=True))
def test_no_two_names_become_one(paths: list[str]) -> None:
    assert names.escaped(paths[0]) != names.escaped(paths[1])


@given(PATHS, PATHS)
def test_parts_of_a_path_stand_for_themselves(above: str, below: str) -> None:
    """A key is the end of a URI, and a URI is joined of what is escaped already."""
    assert names.escaped(f"{above}/{below}") == f"{names.escaped(above)}/{names.escaped(below)}"


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "100%.jpg",
        "100%25.jpg",
        "a%20b.jpg",
        "caf%C3%A9.jpg",
        "café.jpg",
        "%ff%zz.jpg",
        "%",
        "",
    ],
)
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    assert names.escaped(name) == names.unescaped(name) == name


def test_what_escapes_look_like() -> None:
    latin = os.fsdecode("50%/café/%41.jpg".encode("latin-1"))
    assert names.escaped(latin) == "50%/caf%E9/%41.jpg", "the part alone"
    assert names.escaped(os.fsdecode(b"50%caf\xe9")) == "50%25caf%E9"
    assert names.escaped("caf%E9.jpg") == "caf%25E9.jpg", "the one that would be taken for it"
    url = os.fsdecode(b"http://host/a%20caf\xe9%FF")
    assert names.escaped(url) == "http://host/a%20caf%E9%FF"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{b,a}", ["b", "a"]),
        ("x{,y}", ["x", "xy"]),
        ("{l,r}/{0..1}.tar", ["l/0.tar", "l/1.tar", "r/0.tar", "r/1.tar"]),
        ("{a,b{1..2}}", ["a", "b1", "a", "b2"]),
        ("s3://b/{0..1}-*.tar", ["s3://b/0-*.tar", "s3://b/1-*.tar"]),
        ("{x}-{..}-{a..b}.tar", ["{x}-{..}-{a..b}.tar"]),
        ("{", ["{"]),
    ],
)
def test_braces(pattern: str, expected: list[str]) -> None:
    assert names.expanded(pattern) == expected


def test_braces_as_in_a_thousand_shards() -> None:
    names_ = names.expanded("shard-{000000..000999}.tar")
    assert names_ == sorted(names_) == [f"shard-{i:06d}.tar" for i in range(1000)]
