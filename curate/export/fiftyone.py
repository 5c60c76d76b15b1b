"""Rows of a manifest as samples of a FiftyOne dataset: `fiftyone.types.FiftyOneDataset`, in the
JSON that all of its versions read. No I/O.
"""

from __future__ import annotations

import json
from datetime import date
from typing import Any

Row = dict[str, Any]  # of a manifest

LABEL = "ground_truth"
# What a sample has anyway
RESERVED = {"id", "filepath", "tags", "metadata", "created_at", "last_modified_at", LABEL}


def sample_of(row: Row, path: str) -> Row:
    """path: of the image below the dataset. What is null is left out."""
    sample: Row = {
        "filepath": path,
        "tags": [],
        "metadata": {
            "_cls": "ImageMetadata",
            **{"size_bytes": row["size"], "width": row["width"], "height": row["height"]},
        },
    }
    if row["label"] is not None:
        sample[LABEL] = {"_cls": "Classification", "label": row["label"]}
    for name, value in row.items():
        if name not in ("label", "size", "width", "height") and value is not None:
            # Names that begin with _ are FiftyOne's own
            name = f"{name.lstrip('_')}_" if name in RESERVED or name[0] == "_" else name
            sample[name] = str(value) if isinstance(value, date) else value
    return sample


def lines_of(samples: list[Row]) -> bytes:
    return b"".join(json.dumps(sample).encode() + b"\n" for sample in samples)


def metadata(about: str) -> Row:
    """Of the dataset."""
    return {"media_type": "image", "info": {"about": about}}
