"""The files of a finished run, read as far as a report needs them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from curate import storage
from curate.comparison.table import Comparison
from curate.coreset import manifest
from curate.errors import CurateError, one_line
from curate.report.collect.sampling import Labels, count_labels, spread
from curate.report.content import Evaluation, Figure
from curate.runfiles.files import ComparisonFiles, RunFiles
from curate.runfiles.shards import REJECT_SCHEMA

T = TypeVar("T")

REJECTED_FILES = 64  # that are read, spread evenly over the plan
READ_AGAIN = "run the same `curate run` again"


@dataclass(frozen=True)
class ImageRow:
    """An image as a manifest has it: where it lies, what it is, and when it was taken."""

    source: str
    key: str
    uri: str
    offset: int | None = None
    size: int | None = None
    row: int | None = None
    label: str | None = None
    sha256: str | None = None
    round: int | None = None
    centroid: int | None = None
    similarity: float | None = None
    refused: bool = False  # by the run


def image_rows(table: pa.Table) -> list[ImageRow]:
    """Of what a manifest has, or a part of its columns."""
    names = [one.name for one in fields(ImageRow) if one.name in table.column_names]
    return [ImageRow(**row) for row in table.select(names).to_pylist()]


@dataclass(frozen=True)
class Manifest:
    """A selection: a few columns of every image, and whole rows on demand."""

    uri: str
    rows: pa.Table  # label, centroid, position

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def numbers(self, column: str) -> NDArray[np.int64]:
        """centroid or position of each image; -1 where a selection has none."""
        return np.asarray(pc.fill_null(self.rows[column], -1).to_numpy(), np.int64)

    def labels(self) -> Labels:
        return count_labels(self.rows)

    def images(self, places: Sequence[int]) -> list[ImageRow]:
        """Those at `places` of the manifest, in that order."""
        return image_rows(manifest.rows_of(self.uri, places))


@dataclass(frozen=True)
class Rejected:
    """A row of rejected/."""

    source: str
    key: str
    uri: str
    stage: str
    reason: str

    @property
    def image(self) -> ImageRow:
        return ImageRow(self.source, self.key, self.uri, refused=True)


def read_manifest(uri: str) -> Manifest:
    """Raises CurateError for a file that is not there, or no manifest."""
    if not storage.exists(uri):
        raise _not_there(uri)
    return Manifest(uri, manifest.read(uri, ["label", "centroid", "position"]))


def read_rounds(run: RunFiles) -> list[tuple[int, float, int]]:
    """(round, f(S_t), images so far)."""
    table = _table(run.rounds, ["round", "objective", "total"])
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def read_rejected(run: RunFiles) -> list[Rejected]:
    """Rejected images, of at most REJECTED_FILES files."""
    names = sorted(name for name in storage.names_in(run.rejected) if name.endswith(".parquet"))
    read = [names[place] for place in spread(len(names), REJECTED_FILES)]
    tables = [_table(storage.join(run.rejected, name), REJECT_SCHEMA.names) for name in read]
    return [Rejected(**row) for table in tables for row in table.to_pylist()]


def other_manifests(run: RunFiles) -> dict[str, str]:
    """Name of an arm → its manifest, where a comparison selected over these embeddings: SimCore's
    first, so that they stand side by side, and one random sample of several."""
    names = [
        name.removesuffix(".parquet")
        for name in storage.names_in(run.selections)
        if name.endswith(".parquet") and not re.fullmatch(r"random-[1-9]\d*\.parquet", name)
    ]
    names.sort(key=lambda name: (not name.startswith("simcore"), name))
    return {name: run.selection(name) for name in names}


def read_evaluation(run: RunFiles) -> list[Figure]:
    """What `curate evaluate` found; empty where nothing was evaluated."""
    found = _json(run.evaluation.results, Evaluation, "curate evaluate")
    return found.results if found else []


def read_comparison(run: RunFiles) -> Comparison | None:
    """The comparison in the run's folder, or in the one above."""
    base = run.folder.rstrip("/")
    folders = [folder for folder in (base, base.rpartition("/")[0]) if folder]
    found = (_json(ComparisonFiles(one).table, Comparison, "curate compare") for one in folders)
    return next(filter(None, found), None)


def _json(uri: str, kind: type[T], command: str) -> T | None:
    """None where there is no such file. Raises CurateError for one that `command` did not write."""
    if not storage.exists(uri):
        return None
    try:
        return TypeAdapter(kind).validate_python(storage.read_json(uri))
    except ValidationError as error:
        raise CurateError(
            f"{uri}: not what `{command}` writes; remove it, or run that again"
        ) from error


def _table(uri: str, columns: list[str]) -> pa.Table:
    """Raises CurateError for a file that is not there, or not whole."""
    try:
        with storage.open_seekable(uri) as file:
            return pq.read_table(file, columns=columns)
    except FileNotFoundError:
        raise _not_there(uri) from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise CurateError(f"{uri}: damaged: {one_line(error, 100)}; {READ_AGAIN}") from error


def _not_there(uri: str) -> CurateError:
    return CurateError(f"{uri}: no such file; {READ_AGAIN}")
