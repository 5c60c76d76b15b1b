"""The files of a finished run, read as far as a report needs them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate import storage
from curate.errors import CurateError, one_line
from curate.report.content import Cell, Comparison, Figure
from curate.runfiles.files import ComparisonFiles, RunFiles

NARROW = [
    "source",
    "label",
    "centroid",
    "round",
    "position",
]  # of every row of a manifest; the rest of few
REJECTED_FILES = 64  # that are read, spread evenly over the plan
READ_AGAIN = "run the same `curate run` again"


@dataclass(frozen=True)
class Manifest:
    """A selection: five columns of every image, and whole rows on demand."""

    uri: str
    rows: pa.Table

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def numbers(self, column: str) -> NDArray[np.int64]:
        """centroid or round of each image; -1 where a selection has none."""
        return np.asarray(pc.fill_null(self.rows[column], -1).to_numpy(), np.int64)

    def labels(self) -> Counter[str | None]:
        pairs = self.rows["label"].value_counts().to_pylist()
        return Counter({pair["values"]: pair["counts"] for pair in pairs})

    def whole(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """All columns of some images, in the order of `positions`; of the file, only the row
        groups that they are in."""
        wanted = np.unique(np.asarray(positions, np.int64))
        found: list[dict[str, Any]] = []
        with storage.open_seekable(self.uri) as file:
            table = pq.ParquetFile(file)
            first = 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                low, high = np.searchsorted(wanted, [first, first + rows])
                if low < high:
                    inside = pa.array(wanted[low:high] - first)
                    found += table.read_row_group(group).take(inside).to_pylist()
                first += rows
        return [found[place] for place in np.searchsorted(wanted, positions)]


def read_manifest(uri: str) -> Manifest:
    return Manifest(uri, _table(uri, NARROW))


def read_rounds(run: RunFiles) -> list[tuple[int, float, int]]:
    """(round, f(S_t), images so far)."""
    table = _table(run.rounds, ["round", "objective", "total"])
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def read_rejected(run: RunFiles) -> list[dict[str, Any]]:
    """Rejected images, of at most REJECTED_FILES files."""
    names = sorted(name for name in storage.names_in(run.rejected) if name.endswith(".parquet"))
    every = np.linspace(0, len(names) - 1, min(len(names), REJECTED_FILES)).astype(int)
    found: list[dict[str, Any]] = []
    for place in every:
        found += _table(storage.join(run.rejected, names[place])).to_pylist()
    return found


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
    uri = run.evaluation.results
    document = _json(uri)
    try:
        return [
            Figure(
                str(row["metric"]),
                float(row["value"]),
                float(row["std"]),
                int(row["seeds"]),
                int(row["n"]),
                str(row.get("unit", "share")),
            )
            for row in (document or {"results": []})["results"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_its_own(uri, "curate evaluate") from error


def read_comparison(run: RunFiles) -> Comparison | None:
    """The comparison in the run's folder, or in the one above."""
    base = run.output.rstrip("/")
    for folder in (base, base.rpartition("/")[0]):
        uri = ComparisonFiles(folder).table
        document = _json(uri) if folder else None
        if document is None:
            continue
        try:
            return Comparison(
                [str(name) for name in document["arms"]],
                [str(name) for name in document["targets"]],
                [str(name) for name in document["metrics"]],
                [_cell(cell) for cell in document["cells"]],
                [dict(row) for row in document.get("selections", [])],
                int(document["steps"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _not_its_own(uri, "curate compare") from error
    return None


def _cell(cell: dict[str, Any]) -> Cell:
    return Cell(
        arm=str(cell["arm"]),
        target=str(cell["target"]),
        metric=str(cell["metric"]),
        mean=float(cell["mean"]),
        std=None if cell["std"] is None else float(cell["std"]),
        seeds=int(cell["seeds"]),
        images=int(cell["images"]),
        best=bool(cell["best"]),
    )


def _table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Raises CurateError for a file that is not there, or not whole."""
    try:
        with storage.open_seekable(uri) as file:
            return pq.read_table(file, columns=columns)
    except FileNotFoundError:
        raise CurateError(f"{uri}: no such file; {READ_AGAIN}") from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise CurateError(f"{uri}: damaged: {one_line(error, 100)}; {READ_AGAIN}") from error


def _json(uri: str) -> dict[str, Any] | None:
    """None where there is no such file."""
    if not storage.exists(uri):
        return None
    document = storage.read_json(uri)
    if not isinstance(document, dict):
        raise CurateError(f"{uri}: not readable: a JSON object is expected")
    return document


def _not_its_own(uri: str, command: str) -> CurateError:
    return CurateError(f"{uri}: not what `{command}` writes; remove it, or run that again")
