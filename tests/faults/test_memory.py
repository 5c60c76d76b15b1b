"""An image that eats the memory of whoever decodes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate.embedding.careful import Bounds, Careful
from curate.images import Preprocessing
from curate.settings import ImageSettings
from curate.sources import Unit
from tests.datasets import picture
from tests.imagery import encode, tar
from tests.sources.reading import source

MEMORY = 256 << 20  # a picture of a few pixels takes next to none, the large one over 500 MB


@pytest.mark.slow
def test_the_image_that_is_too_much_is_found_and_the_others_are_not(tmp_path: Path) -> None:
    """36 megapixels with transparency, well within the limits."""
    greedy = encode(Image.fromarray(np.zeros((6000, 6000, 4), np.uint8)), "PNG")
    archive = tmp_path / "a.tar"
    archive.write_bytes(tar([("0.png", picture(0)), ("1.png", greedy), ("2.png", picture(2))]))
    preprocessing = Preprocessing(32, 1.0, (0.5,) * 3, (0.5,) * 3)
    settings = source("webdataset", str(archive))
    unit = Unit(str(archive), digest="")
    limits = ImageSettings()
    found = Careful(settings, unit, limits, preprocessing, Bounds(60, MEMORY)).deadly()
    assert found == ({1: "its decoder kills the reader: out of memory"}, None)
    found = Careful(settings, unit, limits, preprocessing, Bounds(60, 8 << 30)).deadly()
    assert found == ({}, None)
