"""Which image it is that its reader does not come back from."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from curate.embedding.careful import Bounds, Careful
from curate.images import Preprocessing
from curate.settings import ImageSettings
from curate.settings.sources import WebDatasetSettings
from curate.sources import Unit
from tests.datasets import picture
from tests.imagery import tar


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good, slow, good, no image, slow. A slow one is a small file that takes seconds to decode."""
    file = io.BytesIO()
    Image.new("RGB", (9900, 9900)).save(file, "JPEG", progressive=True)
    slow = file.getvalue()
    members = [picture(0), slow, picture(2), b"nothing", slow]
    path = tmp_path_factory.mktemp("careful") / "a.tar"
    path.write_bytes(tar([(f"{i}.jpg", data) for i, data in enumerate(members)]))
    return path


def deadly(path: Path, seconds: float, stamp: str = "") -> tuple[dict[int, str], str | None]:
    source = WebDatasetSettings(name="tars", kind="webdataset", path=[str(path)])
    unit = Unit(str(path), digest="", stamp=stamp)
    preprocessing = Preprocessing(32, 1.0, (0.5,) * 3, (0.5,) * 3)
    return Careful(source, unit, ImageSettings(), preprocessing, Bounds(seconds)).deadly()


def test_images_that_stall_are_told_from_those_that_do_not(archive: Path) -> None:
    found, fatal = deadly(archive, seconds=1.0)
    assert found == dict.fromkeys([1, 4], "its decoder kills the reader: more than 1 s")
    assert fatal is None


def test_who_has_the_time_finds_none(archive: Path) -> None:
    assert deadly(archive, seconds=600) == ({}, None)


def test_another_file_than_was_planned_is_no_image_s_doing(tmp_path: Path) -> None:
    """The reader that comes after says so: no image is rejected for it."""
    path = tmp_path / "a.tar"
    path.write_bytes(tar([("0.png", picture(0))]))
    assert deadly(path, seconds=600, stamp="of another") == ({}, None)
    path.unlink()
    assert deadly(path, seconds=600) == ({}, None)
