"""A coreset as `embedding-atlas` opens it: a point an image, by its embedding, beside its nearest
others, with a small picture. No I/O.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.coreset import projection
from curate.coreset.similarity import widen
from curate.images import EncodedImage
from curate.settings import ImageSettings

MOST_IMAGES = 200_000  # of which each is held against all others
NEIGHBOURS = 15  # with the image itself, as embedding-atlas makes them
SIDE_PX = 128  # the longer one of a picture
SEED = 0
OPTIONS = "--x x --y y --neighbors neighbors --image image"  # of the command `embedding-atlas`


@dataclass(frozen=True)
class Map:
    """Of N images: place (N, 2); near (N, k) which are nearest, distance (N, k) 1 - cosine."""

    place: NDArray[np.float32]
    near: NDArray[np.int64]
    distance: NDArray[np.float32]


def map_of(embeddings: NDArray[np.floating]) -> Map:
    """Of (N, D) unit rows: by UMAP where it is installed, else on their two main directions."""
    rows = np.ascontiguousarray(widen(embeddings))
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    cosine, near = index.search(rows, min(NEIGHBOURS, len(rows)))
    try:
        [place] = projection.umap([rows], SEED)
    except ImportError:
        [place], _ = projection.pca([rows])
    return Map(place.astype(np.float32), near, np.clip(1 - cosine, 0, 2).astype(np.float32))


def thumbnail(data: bytes, limits: ImageSettings) -> bytes:
    """A JPEG. Raises Refused."""
    small = EncodedImage(data, limits).decode(SIDE_PX)
    small.thumbnail((SIDE_PX, SIDE_PX))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


def table_of(rows: pa.Table, first: int, pictures: Mapping[int, bytes], of: Map) -> pa.Table:
    """Rows of a manifest from `first` on → what the atlas has of them. pictures: by the place in
    the manifest; one that is missing is null, since neighbours are counted by rows."""
    here = slice(first, first + len(rows))
    images = [
        {"bytes": pictures[n]} if n in pictures else None for n in range(here.start, here.stop)
    ]
    near = pa.array(
        [
            {"ids": ids, "distances": distances}
            for ids, distances in zip(
                of.near[here].tolist(), of.distance[here].tolist(), strict=True
            )
        ],
        pa.struct({"ids": pa.list_(pa.int64()), "distances": pa.list_(pa.float32())}),
    )
    columns = {
        "image": pa.array(images, pa.struct({"bytes": pa.binary()})),
        "x": pa.array(of.place[here, 0]),
        "y": pa.array(of.place[here, 1]),
        "neighbors": near,
    }
    # A manifest may keep columns of these names
    others = {
        f"{name}_" if name in columns else name: rows[name].combine_chunks()
        for name in rows.column_names
    }
    return pa.table(columns | others).replace_schema_metadata()
