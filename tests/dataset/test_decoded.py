"""Decoded images that processes share: what one left, the others have, whole."""

from __future__ import annotations

import io
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from curate.dataset.crops import CropDataset
from curate.dataset.decoded import Decoded, decoded_bytes
from curate.dataset.training_set import TrainingSet
from curate.dataset.views import Shape
from curate.settings import ImageSettings
from curate.settings.recipe import View
from tests.dataset.test_training_set import write_set

LIMITS = ImageSettings(min_px=1)


def picture(number: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (5 + number % 7, 3 + number % 5, 3), dtype=np.uint8)


def filled(path: Path, start: int) -> None:
    """All images, from another one on each time."""
    decoded = Decoded(path, 200, 1 << 20, LIMITS)
    for step in range(200):
        place = (start + step) % 200
        found = decoded.get(place)
        if found is None:
            decoded.put(place, picture(place))
        else:
            assert np.array_equal(found, picture(place))


def test_processes_share_what_each_decoded(tmp_path: Path) -> None:
    path = tmp_path / "pixels"
    keeper = Decoded(path, 200, 1 << 20, LIMITS)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=filled, args=(path, 50 * n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    path.unlink()
    for place in range(200):
        found = keeper.get(place)
        assert found is not None and np.array_equal(found, picture(place))
        with pytest.raises(ValueError, match="read-only"):
            found[0, 0, 0] = 1
    assert int(keeper.end[0]) == sum(picture(place).size for place in range(200))  # none twice


def test_what_has_no_room_is_not_kept(tmp_path: Path) -> None:
    decoded = Decoded(tmp_path / "pixels", 3, 100, LIMITS)
    decoded.put(0, np.zeros((5, 5, 3), np.uint8))
    decoded.put(1, np.zeros((5, 5, 3), np.uint8))
    decoded.put(2, np.full((2, 4, 3), 7, np.uint8))
    small = decoded.get(2)
    assert decoded.get(0) is not None and decoded.get(1) is None
    assert small is not None and (small == 7).all()


def test_crops_are_the_same_from_the_first_epoch_on(tmp_path: Path) -> None:
    """Of what was just decoded, and of what lies there; of lossless images those without it."""
    images = []
    for number in range(6):
        file = io.BytesIO()
        Image.fromarray(np.repeat(np.repeat(picture(number), 9, 0), 9, 1)).save(file, "PNG")
        images.append(file.getvalue())
    write_set(str(tmp_path / "set"), images)
    training = TrainingSet(str(tmp_path / "set"))
    room = decoded_bytes(training, LIMITS)
    assert room >= sum(81 * picture(number).size for number in range(6))
    shapes = [Shape(View(2), 16), Shape(View(1, side=0.5, quarter_turns=True), 8)]
    decoded = Decoded(tmp_path / "pixels", 6, room, LIMITS)
    kept = CropDataset(training, shapes, LIMITS, 0, 0, decoded)
    plain = CropDataset(training, shapes, LIMITS, 0, 0)
    wanted = [(3, place) for place in range(6)]
    first, again, expected = (one.__getitems__(wanted) for one in (kept, kept, plain))
    for a, b, c in zip(first.pixels, again.pixels, expected.pixels, strict=True):
        assert (a == b).all() and (a == c).all()
    assert all(decoded.get(place) is not None for place in range(6))
