"""The frozen plan of a run: which units there are, in which order.

Plan order is (unit, row in unit). It is fixed before any work starts and independent of how many
workers there are, and it breaks every tie of the selection.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from curate import storage
from curate.errors import CurateError, one_line
from curate.settings import RunSettings
from curate.sources import Item, Unit, plan_source

SetName = Literal["target", "open"]

_ITEM = pa.struct({"key": pa.string(), "uri": pa.string(), "label": pa.string()})
SCHEMA = pa.schema(
    {
        "unit": pa.int64(),
        "set": pa.string(),
        "source": pa.string(),
        "uri": pa.string(),
        "start": pa.int64(),
        "stop": pa.int64(),
        "items": pa.list_(_ITEM),
    }
)


@dataclass(frozen=True)
class PlannedUnit:
    number: int
    set: SetName
    source: str
    unit: Unit


def make(settings: RunSettings) -> list[PlannedUnit]:
    """List every source: the target's units first, then the open sets' in the config's order."""
    planned: list[PlannedUnit] = []
    for set_name, sources in (("target", [settings.target]), ("open", settings.open)):
        for source in sources:
            for unit in plan_source(source, settings.embed.unit_images):
                planned.append(PlannedUnit(len(planned), set_name, source.name, unit))  # type: ignore[arg-type]
    return planned


def write(uri: str, plan: list[PlannedUnit]) -> None:
    file = io.BytesIO()
    pq.write_table(to_table(plan), file, compression="zstd")
    storage.write_bytes(uri, file.getvalue())


def read(uri: str) -> list[PlannedUnit]:
    try:
        return from_table(pq.read_table(io.BytesIO(storage.read_bytes(uri))))
    except FileNotFoundError:
        raise CurateError(f"{uri}: no such file; run the same `curate run` again") from None
    except pa.ArrowException as error:
        raise CurateError(f"{uri}: damaged: {one_line(error)}; start over with --fresh") from error


def to_table(plan: list[PlannedUnit]) -> pa.Table:
    rows = [
        {
            "unit": planned.number,
            "set": planned.set,
            "source": planned.source,
            "uri": planned.unit.uri,
            "start": planned.unit.start,
            "stop": planned.unit.stop,
            "items": None
            if planned.unit.items is None
            else [
                {"key": item.key, "uri": item.uri, "label": item.label}
                for item in planned.unit.items
            ],
        }
        for planned in plan
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def from_table(table: pa.Table) -> list[PlannedUnit]:
    return [
        PlannedUnit(
            row["unit"],
            row["set"],
            row["source"],
            Unit(
                row["uri"],
                None if row["items"] is None else tuple(Item(**item) for item in row["items"]),
                row["start"],
                row["stop"],
            ),
        )
        for row in table.to_pylist()
    ]
