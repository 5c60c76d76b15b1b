"""Images of a coreset and what is known of them → files, as other tools read them. No I/O.

imagefolder  LABEL/NAME.jpg                       torchvision, datasets, FiftyOne
webdataset   shard-000000.tar of NAME.jpg, .json, .cls      webdataset, img2dataset's readers
parquet      part-000000.parquet with the images  pandas, datasets
hf           data/train-….parquet, README.md      the Hugging Face Hub and its viewer
csv          coreset.csv, without images
atlas        atlas.parquet: a map of the images   embedding-atlas
fiftyone     data/NAME.jpg, samples.json          fiftyone
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

Format = Literal["imagefolder", "webdataset", "parquet", "hf", "csv", "atlas", "fiftyone"]
FORMATS: tuple[Format, ...] = (
    *("imagefolder", "webdataset", "parquet", "hf", "csv"),
    *("atlas", "fiftyone"),
)
WITHOUT_IMAGES: tuple[Format, ...] = ("csv",)

Row = dict[str, Any]  # of a manifest
NO_LABEL = "unlabelled"
LONGEST = 80  # characters of a name, before what makes it unique
GROUP_ROWS = 100  # of a Parquet file: encoded images, which do not get smaller, are large
DIGITS = 12  # of the SHA-256: what makes it unique
# How the bytes of a format begin; WebP is told apart by what follows RIFF and its size
BEGINNINGS = {
    b"\xff\xd8": "jpg",
    b"\x89PNG": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}


@dataclass(frozen=True)
class Image:
    """row: of the manifest; number: of it, from 0."""

    row: Row
    number: int
    data: bytes

    @property
    def extension(self) -> str:
        if self.data[:4] == b"RIFF" and self.data[8:12] == b"WEBP":
            return "webp"
        return next(
            (ext for start, ext in BEGINNINGS.items() if self.data.startswith(start)), "bin"
        )

    @property
    def name(self) -> str:
        """Its key as a file name on any system, without an extension, and unique: two images that
        have it are the same, byte for byte, or are told apart by their place."""
        stem = re.sub(r"\.[A-Za-z]{3,4}$", "", str(self.row["key"]).rsplit("/", 1)[-1])
        return f"{safe(stem)}-{str(self.row['sha256'])[:DIGITS]}-{self.number:06d}"


def safe(text: str) -> str:
    """Letters, digits, - and _ of a text, others as _; never empty, and no name of a device."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_")[:LONGEST]
    return plain or "image"


def files_of(
    form: Format, piece: int, pieces: int, images: list[Image], schema: pa.Schema
) -> Iterator[tuple[str, bytes]]:
    """(path below the export, bytes) of a piece's images, which are in the manifest's order.
    schema: the manifest's."""
    if form in ("imagefolder", "fiftyone"):
        for image in images:
            yield path_of(form, image), image.data
    elif form == "webdataset":
        yield f"shard-{piece:06d}.tar", tar_of(images)
    elif form == "parquet":
        yield f"part-{piece:06d}.parquet", parquet_of(images, schema)
    else:
        yield f"data/train-{piece:05d}-of-{pieces:05d}.parquet", parquet_of(images, schema)


def path_of(form: Format, image: Image) -> str:
    folder = "data" if form == "fiftyone" else folder_of(image.row["label"])
    return f"{folder}/{image.name}.{image.extension}"


def folder_of(label: str | None) -> str:
    """Labels that differ have folders that do."""
    if label is None:
        return NO_LABEL
    plain = safe(label)
    if plain == label and label != NO_LABEL:
        return label
    return f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def tar_of(images: list[Image]) -> bytes:
    """Of each NAME.EXT, NAME.json and, where it has a label, NAME.cls, one after the other; equal
    images give equal bytes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for image in images:
            members = [
                (image.extension, image.data),
                ("json", json.dumps(image.row, sort_keys=True, default=str).encode()),
            ]
            if image.row["label"] is not None:
                members.append(("cls", image.row["label"].encode()))
            for extension, data in members:
                member = tarfile.TarInfo(f"{image.name}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
# What `datasets` and the Hub's viewer read: how a column is to be shown, and loaded
HF_TYPES = {"double": "float64", "float": "float32"}  # else as Arrow calls it


def parquet_of(images: list[Image], schema: pa.Schema) -> bytes:
    """A column `image`, and the manifest's."""
    pictures = [{"bytes": one.data, "path": f"{one.name}.{one.extension}"} for one in images]
    columns = [
        pa.array(pictures, IMAGE),
        *(pa.array([one.row[f.name] for one in images], f.type) for f in schema),
    ]
    sink = io.BytesIO()
    table = pa.Table.from_arrays(columns, schema=table_schema(schema))
    pq.write_table(table, sink, compression="none", row_group_size=GROUP_ROWS)
    return sink.getvalue()


def table_schema(schema: pa.Schema) -> pa.Schema:
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    for field in schema:
        kind = str(field.type)
        features[field.name] = {"dtype": HF_TYPES.get(kind, kind), "_type": "Value"}
    note = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return pa.schema([pa.field("image", IMAGE), *schema], metadata=note)


def csv_of(rows: list[Row], columns: list[str], header: bool) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def card(images: int, about: str) -> bytes:
    """README.md of a dataset on the Hub."""
    return (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        "    path: data/train-*\n---\n\n"
        f"# A coreset of {images:,} images\n\n{about}\n"
    ).encode()
