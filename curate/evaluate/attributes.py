"""Multi-attribute classification: a table with a column an attribute, a linear head each on frozen
features. Heads on frozen features share nothing, so that each is a linear probe of its own.

SimCore, table 7d, does this on aircraft, cars and faces.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curate import storage
from curate.cluster import results
from curate.errors import CurateError, one_line
from curate.evaluate.accuracy import Accuracy
from curate.evaluate.bench import open_sets
from curate.evaluate.logistic import linear_probe
from curate.evaluate.subject import Json, Result, Subject, Timed, accuracies, on_cpu
from curate.settings import AttributesSettings

Table = dict[str, dict[str, str]]  # attribute → key → value, where there is one
MISSING = -1  # what a linear probe leaves out


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


def check(subject: Subject) -> None:
    """Raises CurateError for a table that cannot be read, or does not fit the images."""
    subject.once(found_attributes)


def run(subject: Subject) -> Iterator[Result]:
    """Of each column, and the mean over them."""
    attributes = subject.once(found_attributes)
    features = subject.features
    tasks = [
        [
            on_cpu(linear_probe, features.train, one_train, features.test, one_test, seed)
            for seed in subject.seeds
        ]
        for one_train, one_test in ((ray.put(a.train), ray.put(a.test)) for a in attributes)
    ]
    columns: list[list[Timed[Accuracy]]] = []
    for attribute, waiting in zip(attributes, tasks, strict=True):
        runs: list[Timed[tuple[Accuracy, float]]] = results(waiting)
        columns.append([(accuracy, seconds) for (accuracy, _), seconds in runs])
        config: dict[str, Json] = {"values": attribute.values, "C": [c for (_, c), _ in runs]}
        what = f"attribute {attribute.name}"
        yield from accuracies(what, columns[-1], attribute.test_images, config)
    means = [_mean(seed) for seed in zip(*columns, strict=True)]
    images = max(attribute.test_images for attribute in attributes)
    names = {"columns": [attribute.name for attribute in attributes]}
    yield from accuracies("attributes, mean", means, images, names)


def _mean(found: tuple[Timed[Accuracy], ...]) -> Timed[Accuracy]:
    """Over columns; and the seconds of all of them."""
    top1 = float(np.mean([accuracy.top1 for accuracy, _ in found]))
    mean_per_class = float(np.mean([accuracy.mean_per_class for accuracy, _ in found]))
    return Accuracy(top1, mean_per_class), sum(seconds for _, seconds in found)


def found_attributes(subject: Subject) -> list[Attribute]:
    settings = subject.evaluation.attributes
    assert settings is not None  # the settings say so
    task = on_cpu(attributes_of, read_table(settings), subject.bench.train, subject.bench.test)
    [(attributes, _)] = results([task])
    found: list[Attribute] = attributes
    return found


def read_table(settings: AttributesSettings) -> Table:
    """The columns that are asked for. Values are strings, whole numbers or booleans; an empty one
    (in CSV also NA or null) is missing.

    Raises CurateError for a table that cannot be read, a column that it does not have, one that
    measures instead of naming, and two rows of one key.
    """
    where = f"evaluate.attributes.table={settings.table}"
    table = _arrow(settings, where)
    columns = [name for name in table.column_names if name != settings.key_column]
    if settings.key_column not in table.column_names:
        raise CurateError(
            f"{where}: no column {settings.key_column}; it has {', '.join(table.column_names)}; "
            "set evaluate.attributes.key_column"
        )
    unknown = [name for name in settings.columns or () if name not in columns]
    if unknown:
        raise CurateError(
            f"evaluate.attributes.columns: {settings.table} has no {unknown[0]}; it has "
            f"{', '.join(columns)}"
        )
    if not columns:
        raise CurateError(f"{where}: no column beside {settings.key_column}")
    keys = [str(key) for key in table[settings.key_column].to_pylist()]
    key, times = Counter(keys).most_common(1)[0] if keys else ("", 0)
    if times > 1:
        raise CurateError(f"{where}: {times} rows of key {key}; one an image")
    found: Table = {}
    for name in settings.columns or columns:
        values = [_value(value, name, where) for value in table[name].to_pylist()]
        pairs = zip(keys, values, strict=True)
        found[name] = {key: value for key, value in pairs if value is not None}
    return found


def attributes_of(table: Table, train: str, test: str) -> list[Attribute]:
    """The table's values for the images of two sets' folders, by their keys.

    Raises CurateError where no key is an image's, and for a value that test alone has.
    """
    train_set, test_set = open_sets(train, test)
    return attributes_by_key(table, train_set.keys(), test_set.keys())


def attributes_by_key(table: Table, train: list[str], test: list[str]) -> list[Attribute]:
    """train, test: each image's key."""
    known = set().union(*table.values())
    for name, keys in (("train", train), ("test", test)):
        if known.isdisjoint(keys):
            raise CurateError(
                f"evaluate.attributes.table: no key is an image's of evaluate.{name}, whose first "
                f"is {keys[0]}; the table has {min(known, default='none')}"
            )
    return [_attribute(name, column, train, test) for name, column in table.items()]


def _attribute(name: str, column: dict[str, str], train: list[str], test: list[str]) -> Attribute:
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


def _arrow(settings: AttributesSettings, where: str) -> pa.Table:
    try:
        with storage.open_seekable(settings.table) as file:
            if settings.table.endswith(".parquet"):
                return pq.read_table(file)
            if settings.table.endswith(".csv"):
                # A key like 0012 is no number
                options = pacsv.ConvertOptions(
                    column_types={settings.key_column: pa.string()}, strings_can_be_null=True
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
