"""`coreset.where` against SQLite, which has the same logic of what is not known."""

from __future__ import annotations

import sqlite3
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.coreset.where import holds
from curate.errors import CurateError
from curate.settings import where

COLUMNS = {
    "width": [100, 224, None, 512, 300, 0],
    "score": [0.5, None, 2.5, -1.0, 1.0, 0.25],
    "license": ["cc0", "cc-by", None, "", "it's", "CC0"],
    "nsfw": [True, False, None, False, True, None],
}
TABLE = pa.table(COLUMNS)


def by_sqlite(text: str) -> list[bool]:
    with sqlite3.connect(":memory:") as db:
        db.execute("create table t (n integer, width integer, score real, license text, nsfw int)")
        rows = zip(range(6), *COLUMNS.values(), strict=True)
        db.executemany("insert into t values (?, ?, ?, ?, ?)", rows)
        found = {n for (n,) in db.execute(f"select n from t where {text}")}
    return [n in found for n in range(6)]


def an_expression(rng: np.random.Generator, depth: int) -> str:
    def pick(values: list[str]) -> str:
        return values[rng.integers(len(values))]

    if depth and rng.random() < 0.7:
        inner = [f"({an_expression(rng, depth - 1)})" for _ in range(2)]
        return pick([f"{inner[0]} and {inner[1]}", f"{inner[0]} or {inner[1]}", f"not {inner[0]}"])
    column = pick([*COLUMNS])
    values = {
        "width": ["224", "0", "-1", "300.0", "score"],
        "score": ["0.5", "1", "-1.0", "width"],
        "license": ["'cc0'", "''", "'zz'"],
        "nsfw": ["true", "false"],
    }[column]
    if column == "nsfw":
        return pick(["nsfw", "nsfw is null", "nsfw == true", "nsfw in (true, false)", "not nsfw"])
    constants = [v for v in values if v not in COLUMNS]
    several = f"({constants[0]}, {pick(constants)})"
    return pick(
        [
            f"{column} {pick(['<', '<=', '>', '>=', '==', '!='])} {pick(values)}",
            f"{column} {pick(['in', 'not in'])} {several}",
            f"{column} is {pick(['null', 'not null'])}",
        ]
    )


def test_as_sql_has_it() -> None:
    rng = np.random.default_rng(0)
    expressions = {an_expression(rng, depth=3) for _ in range(400)}
    some = 0
    for text in expressions:
        expected = by_sqlite(text)
        assert holds(text, TABLE).tolist() == expected, text
        some += 0 < sum(expected) < 6
    assert some > 100


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("100 < width <= 300", [1, 4]),
        ("license == 'it\\'s'", [4]),
        ('license == "it\'s"', [4]),
        ("column('license') in ['cc0', 'CC0']", [0, 5]),
        ("width in ()", []),
        ("not (width in ())", [0, 1, 3, 4, 5]),
        ("score is None or nsfw == True", [0, 1, 4]),
    ],
)
def test_beyond_sql(text: str, rows: list[int]) -> None:
    assert np.flatnonzero(holds(text, TABLE)).tolist() == rows


def test_names_of_any_kind() -> None:
    table = pa.table({"a b": [1, 2], "class": ["x", "y"]})
    text = "column('a b') == 2 and column('class') == 'y'"
    assert holds(text, table).tolist() == [False, True]
    assert where.columns(text) == ["a b", "class"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("width == 'x'", "coreset.where: .*width is int64"),
        ("license < 3", "license is string"),
        ("license in (1, 2)", "license is string"),
        ("width and nsfw", "width is int64"),
    ],
)
def test_what_cannot_be_compared(text: str, said: str) -> None:
    with pytest.raises(CurateError, match=said):
        holds(text, TABLE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("width >", "does not parse at its end"),
        ("width = 3", "does not parse at character 7"),
        ("", "does not parse"),
        ("1 == 1", "names no column"),
        ("width == null", "`null`: compare with `in` or `is null`"),
        ("width is 3", "must be `is null` or `is not null`"),
        ("width in license", "must be in a list"),
        ("width in (1, null)", "a null is in no list"),
        ("width in (1, 'a')", "all texts or all numbers"),
        ("width in (height,)", "must be a number, a text in quotes, true or false"),
        ("width + 1 > 3", "must be a number"),
        ("len(width) > 3", "must be a number"),
        ("__import__('os')", "not of its language"),
        ("f(width)", "not of its language"),
        ("width.real == 1", "must be a number"),
        ("[x for x in width]", "not of its language"),
        ("lambda: width", "not of its language"),
        ("width == 1j", "must be a number"),
        ("(width, 1) == (1, 1)", "must be a number"),
        ("(" * 500 + "width" + ")" * 500, "does not parse"),
    ],
)
def test_what_is_not_of_its_language(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        where.parse(text)


def test_an_empty_table() -> None:
    empty: Any = TABLE.slice(0, 0)
    assert holds("width > 3", empty).tolist() == []
