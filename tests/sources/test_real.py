"""The real sets that CURATE_TEST_DATA names, read whole: exact counts, and every image decodes."""

from __future__ import annotations

import os
from typing import Any

import pytest

from curate import storage
from curate.images import EncodedImage
from curate.settings import ImageSettings
from tests.sources.reading import plan_source, read_unit, source

DATA = os.environ.get("CURATE_TEST_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="CURATE_TEST_DATA names no folder of real images")

SETS: list[tuple[str, str, dict[str, Any], int, int]] = [
    ("webdataset", "open-tiny-imagenet/*.tar", {}, 22_850, 96),
    (
        "parquet",
        "open-cifar10/*.parquet",
        {"key_column": "path", "label_column": "label"},
        10_000,
        10,
    ),
    ("image_folder", "open-imagenet-fullres", {}, 160, 160),
]


@pytest.mark.parametrize(("kind", "path", "settings", "images", "most_labels"), SETS)
def test_counts_labels_and_pixels(
    kind: str, path: str, settings: dict[str, Any], images: int, most_labels: int
) -> None:
    real = source(kind, storage.join(DATA, path), **settings)
    keys: set[tuple[str, str]] = set()
    labels: set[str | None] = set()
    count = 0
    for unit in plan_source(real):
        for item in read_unit(real, unit):
            assert item.data is not None, item.error
            keys.add((item.uri, item.key))
            labels.add(item.label)
            if count % (images // 160) == 0:  # every one of them takes too long
                EncodedImage(item.data, ImageSettings()).decode(64)
                if item.offset is not None:
                    at_offset = storage.read_range(item.uri, item.offset, len(item.data))
                    assert at_offset == item.data
            count += 1
    assert count == len(keys) == images
    assert None not in labels and len(labels) <= most_labels
    if kind != "image_folder":
        assert len(labels) == most_labels


@pytest.mark.parametrize("limit", [1, 999, 12_345])
def test_limits(limit: int) -> None:
    for kind, path, settings, images, _ in SETS:
        real = source(kind, storage.join(DATA, path), limit=limit, **settings)
        units = plan_source(real)
        assert sum(unit.images or 0 for unit in units) == min(limit, images)
