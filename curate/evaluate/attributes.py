"""Multi-attribute classification: a table with a column an attribute, a linear head each on frozen
features. Heads on frozen features share nothing, so that each is a linear probe of its own.

SimCore, table 7d, does this on aircraft, cars and faces.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate import storage
from curate.dataset.training_set import TrainingSet, on_this_machine
from curate.errors import CurateError, one_line
from curate.evaluate.linear import Accuracy, linear_probe
from curate.settings import AttributesSettings

Table = dict[str, dict[str, str]]  # attribute → key → value, where there is one
MISSING = -1


@dataclass(frozen=True)
class Attribute:
    """One column, matched with two sets: numbers of `values`, -1 where an image has none."""

    name: str
    values: list[str]
    train: NDArray[np.int64]  # (N,)
    test: NDArray[np.int64]  # (M,)

    @property
    def test_images(self) -> int:
        return int((self.test != MISSING).sum())


def read_table(told: AttributesSettings) -> Table:
    """The columns that are asked for. Values are strings, whole numbers or booleans; an empty one
    (in CSV also NA or null) is missing.

    Raises CurateError for a table that cannot be read, a column that it does not have, one that
    measures instead of naming, and two rows of one key.
    """
    where = f"evaluate.attributes.table={told.table}"
    table = _arrow(told, where)
    there = [name for name in table.column_names if name != told.key_column]
    if told.key_column not in table.column_names:
        raise CurateError(
            f"{where}: no column {told.key_column}; it has {', '.join(table.column_names)}; set "
            "evaluate.attributes.key_column"
        )
    unknown = [name for name in told.columns or () if name not in there]
    if unknown:
        raise CurateError(
            f"evaluate.attributes.columns: {told.table} has no {unknown[0]}; it has "
            f"{', '.join(there)}"
        )
    if not there:
        raise CurateError(f"{where}: no column beside {told.key_column}")
    keys = [str(key) for key in table[told.key_column].to_pylist()]
    key, times = Counter(keys).most_common(1)[0] if keys else ("", 0)
    if times > 1:
        raise CurateError(f"{where}: {times} rows of key {key}; one an image")
    found: Table = {}
    for name in told.columns or there:
        values = [_value(value, name, where) for value in table[name].to_pylist()]
        pairs = zip(keys, values, strict=True)
        found[name] = {key: value for key, value in pairs if value is not None}
    return found


def attributes_of(table: Table, train: str, test: str) -> list[Attribute]:
    """The table's values for the images of two sets' folders, by their keys.

    Raises CurateError where no key is an image's, and for a value that test alone has.
    """
    keys = [TrainingSet(on_this_machine(folder)).keys() for folder in (train, test)]
    return matched(table, keys[0], keys[1])


def matched(table: Table, train: list[str], test: list[str]) -> list[Attribute]:
    known = set().union(*table.values())
    for name, keys in (("train", train), ("test", test)):
        if known.isdisjoint(keys):
            raise CurateError(
                f"evaluate.attributes.table: no key is an image's of evaluate.{name}, whose first "
                f"is {keys[0]}; the table has {min(known, default='none')}"
            )
    return [_matched(name, column, train, test) for name, column in table.items()]


def attribute_probe(
    attribute: Attribute, train: NDArray[np.float32], test: NDArray[np.float32], seed: int
) -> tuple[Accuracy, float]:
    """train (N, D), test (M, D), unit rows of all the sets' images → accuracy over those that have
    the attribute, and the C that was chosen: `linear_probe`."""
    known, asked = attribute.train != MISSING, attribute.test != MISSING
    return linear_probe(
        train[known], attribute.train[known], test[asked], attribute.test[asked], seed
    )


def _matched(name: str, column: dict[str, str], train: list[str], test: list[str]) -> Attribute:
    where = f"evaluate.attributes: {name}"
    found = [[column.get(key) for key in keys] for keys in (train, test)]
    counts = Counter(value for value in found[0] if value is not None)
    values = sorted(counts)
    if len(values) < 2:
        only = f"one value only, {values[0]}," if values else "no value"
        raise CurateError(f"{where} has {only} in evaluate.train; two at least")
    alone = sorted({value for value in found[1] if value is not None} - set(values))
    if alone:
        raise CurateError(f"{where}: value {alone[0]} is in evaluate.test alone")
    if not any(found[1]):
        raise CurateError(f"{where}: no image of evaluate.test has a value")
    rare = min(values, key=lambda value: counts[value])
    if counts[rare] < 2:
        raise CurateError(f"{where}: value {rare} has one image in evaluate.train; two at least")
    numbers = {value: number for number, value in enumerate(values)}
    rows = [np.array([numbers.get(value or "", MISSING) for value in part]) for part in found]
    return Attribute(name, values, rows[0], rows[1])


def _arrow(told: AttributesSettings, where: str) -> pa.Table:
    try:
        with storage.open_seekable(told.table) as file:
            if told.table.endswith(".parquet"):
                return pq.read_table(file)
            if told.table.endswith(".csv"):
                # A key like 0012 is no number
                options = pacsv.ConvertOptions(
                    column_types={told.key_column: pa.string()}, strings_can_be_null=True
                )
                return pacsv.read_csv(file, convert_options=options)
    except FileNotFoundError:
        raise CurateError(f"{where}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise CurateError(f"{where}: not readable: {one_line(error)}") from error
    raise CurateError(f"{where}: neither .csv nor .parquet")


def _value(value: Any, name: str, where: str) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():  # whole numbers with some missing
        return str(int(value))
    if not isinstance(value, str | int):
        raise CurateError(f"{where}: {name} has {value!r}, which names no class; leave it out")
    return str(value)
