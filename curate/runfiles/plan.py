"""The plan of a run: which units there are, in which order.

Plan order is (unit, row in unit): the target's units, then the open sets' in the config's order. It
is fixed before any image is read and independent of how many workers there are, and it breaks every
tie of the selection. The driver holds a row a unit; what a unit is made of lies in files.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from curate import listing, storage
from curate.errors import CurateError, one_line
from curate.privacy import public
from curate.runfiles.files import PlanFiles, RunFiles
from curate.settings import RunSettings, SourceSettings
from curate.sources import Unit, plan_source

SetName = Literal["target", "open", "exclude"]
SOURCES_AT_ONCE = 16

SCHEMA = pa.schema(
    {
        "set": pa.string(),
        "source": pa.string(),
        "uri": pa.string(),  # of single files: the name of one beside the plan
        "digest": pa.string(),
        "start": pa.int64(),
        "stop": pa.int64(),
        "images": pa.int64(),
        "size": pa.int64(),
        "stamp": pa.string(),
    }
)


@dataclass(frozen=True)
class PlannedUnit:
    set: SetName
    source: str
    unit: Unit


@dataclass(frozen=True)
class Plan:
    """table: a row a unit, in order."""

    files: PlanFiles
    table: pa.Table

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def digests(self) -> pa.ChunkedArray:
        return self.table["digest"]

    def units(self, rows: pa.Array | None = None) -> list[PlannedUnit]:
        """Some of the units, or all."""
        table = self.table if rows is None else self.table.take(rows)
        return list(from_table(table, self.files))


def by_name(settings: RunSettings) -> dict[tuple[SetName, str], SourceSettings]:
    """Every source of a run by its set and name, in plan order."""
    sources: dict[tuple[SetName, str], SourceSettings] = {}
    sources["target", settings.target.name] = settings.target
    for source in settings.open:
        sources["open", source.name] = source
    for source in settings.exclude or []:
        sources["exclude", source.name] = source
    return sources


def from_table(table: pa.Table, files: PlanFiles) -> Iterator[PlannedUnit]:
    for row in table.to_pylist():
        set_name, source = row.pop("set"), row.pop("source")
        if "/" not in row["uri"]:
            row["uri"] = storage.join(files.folder, row["uri"])
        yield PlannedUnit(set_name, source, Unit(**row))


def make(settings: RunSettings, files: PlanFiles) -> Plan:
    """List every source, on tasks, all sources at once."""

    def units_of(one: tuple[tuple[SetName, str], SourceSettings]) -> pa.Table:
        (set_name, _), source = one
        place = files.single_files(f"{set_name}-{source.name}")
        units = plan_source(source, settings.embed.unit_images, place)
        return _to_table(set_name, source.name, units, files)

    with ThreadPoolExecutor(SOURCES_AT_ONCE) as pool:
        return Plan(files, pa.concat_tables(pool.map(units_of, by_name(settings).items())))


def _to_table(set_name: SetName, source: str, units: list[Unit], files: PlanFiles) -> pa.Table:
    above = files.folder + "/"
    rows = [
        {
            **{"set": set_name, "source": source, **asdict(unit)},
            "uri": public(unit.uri.removeprefix(above)),
        }
        for unit in units
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def write(plan: Plan) -> None:
    """Last of what a plan is made of: where it is, the plan is whole."""
    file = io.BytesIO()
    pq.write_table(plan.table, file, compression="zstd")
    storage.write_bytes(plan.files.units, file.getvalue())


def newest(run: RunFiles) -> Plan | None:
    """The plan in force; None where there is none yet."""
    for number in _numbers(run)[::-1]:
        files = run.plan(number)
        if storage.exists(files.units):
            return read(files)
    return None


def next_files(run: RunFiles) -> PlanFiles:
    """Where another plan may be made."""
    return run.plan(max(_numbers(run), default=-1) + 1)


def discard(run: RunFiles, made: PlanFiles) -> None:
    """What there is of a plan that is not to be."""
    storage.remove_tree(made.folder)
    if not listing.folders_in(run.plans):
        storage.remove_tree(run.plans)


def remove_others(run: RunFiles, kept: Plan) -> None:
    """Plans that are not in force any more, or were never finished."""
    for number in _numbers(run):
        files = run.plan(number)
        if files != kept.files:
            storage.remove_tree(files.folder)


def _numbers(run: RunFiles) -> list[int]:
    return sorted(int(name) for name in listing.folders_in(run.plans) if name.isdigit())


def read(files: PlanFiles) -> Plan:
    try:
        data = storage.read_bytes(files.units)
        return Plan(files, pq.read_table(io.BytesIO(data), schema=SCHEMA))
    except (pa.ArrowException, OSError) as error:
        raise CurateError(
            f"{files.units}: damaged: {one_line(error)}; remove it and run again"
        ) from error
