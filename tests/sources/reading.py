"""Sources, planned and read whole as a run does it."""

from __future__ import annotations

import io
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from curate import sources, storage
from curate.errors import CurateError
from curate.settings import ImageSettings, Source, SourceSettings
from curate.sources import Item, Unit, located

PLANS = tempfile.TemporaryDirectory()  # files of all plans that the tests make


def source(kind: str, path: str | list[str], **settings: Any) -> Any:
    document = {"name": "set", "kind": kind, "path": path, **settings}
    return TypeAdapter(Source).validate_python(document)


def plan_source(source: SourceSettings, unit_images: int = 1000) -> list[Unit]:
    return sources.plan_source(source, unit_images, f"{PLANS.name}/{uuid.uuid4().hex}")


def read_unit(
    source: SourceSettings, unit: Unit, max_bytes: int = ImageSettings().max_bytes
) -> Iterator[Item]:
    return sources.read_unit(source, unit, max_bytes)


def read_located(
    rows: list[dict[str, Any]],
    sources: dict[str, SourceSettings],
    max_bytes: int = ImageSettings().max_bytes,
) -> Iterator[Item]:
    return located.read_located(rows, sources, max_bytes)


def read(kind: str, path: str | list[str], unit_images: int = 1000, **settings: Any) -> list[Item]:
    """Every item, in plan order."""
    settings_ = source(kind, path, **settings)
    return [
        item for unit in plan_source(settings_, unit_images) for item in read_unit(settings_, unit)
    ]


def error_of(kind: str, path: str | list[str], **settings: Any) -> str:
    """What planning says; a line that names the source."""
    with pytest.raises(CurateError) as error:
        plan_source(source(kind, path, **settings))
    message = str(error.value)
    assert message.startswith("source set: ") and "\n" not in message
    return message


def write(root: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        storage.write_bytes(storage.join(root, name), data)


def parquet(columns: dict[str, Any], row_group_rows: int = 1000) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=row_group_rows)
    return file.getvalue()
