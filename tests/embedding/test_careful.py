"""Which image it is that its reader does not come back from."""

from __future__ import annotations

from pathlib import Path

from curate.embedding.careful import Bounds, Careful
from curate.images import Preprocessing
from curate.settings import ImageSettings
from curate.settings.sources import WebDatasetSettings
from curate.sources import Unit
from tests.datasets import picture, slow_picture
from tests.imagery import tar


def deadly(path: Path, seconds: float, stamp: str = "") -> tuple[dict[int, str], str | None]:
    source = WebDatasetSettings(name="tars", kind="webdataset", path=[str(path)])
    unit = Unit(str(path), digest="", stamp=stamp)
    preprocessing = Preprocessing(32, 1.0, (0.5,) * 3, (0.5,) * 3)
    return Careful(source, unit, ImageSettings(), preprocessing, Bounds(seconds)).deadly()


def test_an_image_that_stalls_is_told_from_those_that_do_not(tmp_path: Path) -> None:
    members = [picture(0), slow_picture(), picture(2), b"no image"]
    path = tmp_path / "a.tar"
    path.write_bytes(tar([(f"{i}.png", data) for i, data in enumerate(members)]))
    assert deadly(path, seconds=1.5) == (
        {1: "its decoder kills the reader: more than 1.5 s"},
        None,
    )


def test_another_file_than_was_planned_is_no_image_s_doing(tmp_path: Path) -> None:
    """The reader that comes after says so: no image is rejected for it."""
    path = tmp_path / "a.tar"
    path.write_bytes(tar([("0.png", picture(0))]))
    assert deadly(path, seconds=600, stamp="of another") == ({}, None)
    path.unlink()
    assert deadly(path, seconds=600) == ({}, None)
