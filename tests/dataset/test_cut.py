"""Crops cut on the device, against Pillow's of one image at a time."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from curate.dataset.crops import CropDataset, parts_of
from curate.dataset.cut import cut
from curate.dataset.decoded import Decoded, decoded_bytes
from curate.dataset.training_set import TrainingSet
from curate.dataset.views import Box, Shape, crop, draw_box
from curate.dataset.wholes import LONGER, SHORTER, STEP_PX, WholeDataset, whole_bytes
from curate.embedding.tensors import tensor_of
from curate.pretraining.trainer import Trainer
from curate.settings import ImageSettings
from curate.settings.recipe import View
from tests.dataset.test_training_set import write_set
from tests.imagery import picture
from tests.pretraining.test_trainer import plan_of

LIMITS = ImageSettings(min_px=1)
LEVEL = 1 / 255


def batch_of(*images: NDArray[np.uint8]) -> torch.Tensor:
    """Side by side with nothing but noise beyond them, which nobody may see."""
    height, width = (max(image.shape[side] for image in images) + 5 for side in (0, 1))
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 256, (len(images), height, width, images[0].shape[2]), np.uint8)
    for image, place in zip(images, batch, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return tensor_of(batch)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("px", [8, 24, 60])
def test_crops_are_pillows(px: int, bicubic: bool) -> None:
    """Larger and smaller than the crop, of one px too, however it is laid."""
    images = [np.asarray(picture(80 - 7 * n, 50 + 3 * n, seed=n)) for n in range(8)]
    aside = torch.arange(8) % 3 == 1
    rng = np.random.default_rng(px)
    view = View(1, scale=(0.05, 1.0), bicubic=bicubic, vertical_flip_p=0.5, quarter_turns=True)
    boxes = [draw_box(rng, view, image.shape[1], image.shape[0]) for image in images]
    boxes[0] = Box(0, 0, images[0].shape[1], images[0].shape[0], False)
    boxes[1] = Box(3, 4, 1, 2, True)
    assert {box.turns for box in boxes} > {0, 1}
    laid = [
        image.transpose(1, 0, 2) if a else image for image, a in zip(images, aside, strict=True)
    ]
    rows = torch.cat([torch.tensor(boxes), aside.long().unsqueeze(1)], 1)
    got = cut(batch_of(*laid), rows, px, bicubic=bicubic)
    assert got.shape == (8, 3, px, px) and got.min() >= 0 and got.max() <= 1
    for image, box, mine in zip(images, boxes, got, strict=True):
        expected = crop(image, box, Shape(view, px)).astype(np.float32) / 255
        # Pillow rounds to whole levels, twice
        far = np.abs(mine.permute(1, 2, 0).numpy() - expected)
        assert far.max() < 2.5 * LEVEL and far.mean() < 0.6 * LEVEL


def test_in_any_number_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = batch_of(*(np.asarray(picture(40, 40, seed=n)) for n in range(5)))
    boxes = torch.tensor([(*Box(n, 2, 30, 20 + n, bool(n % 2)), 0) for n in range(5)])
    whole = cut(images, boxes, 16, bicubic=False)
    monkeypatch.setattr("curate.dataset.cut.AT_ONCE", 2)
    torch.testing.assert_close(cut(images, boxes, 16, bicubic=False), whole)


def test_16_bits() -> None:
    values = (np.arange(40 * 30, dtype=np.uint16).reshape(1, 40, 30, 1) * 50) + 1000
    box = Box(2, 3, 20, 30, False)
    got = cut(tensor_of(values), torch.tensor([(*box, 0)]), 10, bicubic=True)
    expected = crop(values[0], box, Shape(View(1, bicubic=True), 10))
    np.testing.assert_allclose(got[0, 0] * 65_535, expected[..., 0], atol=1)


@pytest.fixture
def images(tmp_path: Path) -> TrainingSet:
    """JPEGs, one of them a panorama, one large, one damaged."""
    sizes = [(90, 60), (64, 80), (900, 60), (700, 500), (48, 48), (40, 120)]
    found = []
    for number, size in enumerate(sizes):
        file = io.BytesIO()
        picture(*size, seed=number).save(file, "JPEG", quality=95)
        found.append(file.getvalue())
    found.append(found[0][:200])
    write_set(str(tmp_path / "set"), found)
    return TrainingSet(str(tmp_path / "set"))


@pytest.mark.parametrize("method", ["simclr", "dino", "swav"])
def test_a_trainer_sees_the_same_views(images: TrainingSet, method: str) -> None:
    backbone = "vit_tiny_patch16_224" if method == "dino" else "resnet18"
    plan = plan_of(method=method, backbone=backbone, views={"jitter": False, "solarize": False})
    trainer = Trainer(replace(plan, image_px=32), torch.device("cpu"))
    wanted = [(epoch, place) for epoch in range(2) for place in range(len(images))]
    arguments = (images, trainer.shapes, LIMITS, 3, trainer.method.noise)
    crops, wholes = (kind(*arguments).__getitems__(wanted) for kind in (CropDataset, WholeDataset))
    assert wholes.unreadable == crops.unreadable == [6, 6]
    for name in ("ids", "labels", "noise"):
        assert torch.equal(getattr(crops, name), getattr(wholes, name))
    for mine, theirs in zip(crops.parameters, wholes.parameters, strict=True):
        assert torch.equal(mine, theirs)
    assert len(wholes.pixels) == 1 and wholes.boxes is not None
    small, large = trainer.batch(crops).views, trainer.batch(wholes).views
    assert [view.shape for view in small] == [view.shape for view in large]
    std = min(trainer.std)
    kept = [n for n in range(len(wanted)) if wanted[n][1] not in (2, 3)]  # resized once more
    for a, b in zip(small, large, strict=True):
        assert float((a - b)[kept].abs().mean()) * std < LEVEL
        assert float((a - b)[kept].abs().max()) * std < 4 * LEVEL
        assert float((a - b).abs().mean()) * std < 5 * LEVEL  # of a panorama above all


def test_what_is_sent_is_bounded(images: TrainingSet) -> None:
    shapes = [Shape(View(2), 32)]
    batch = WholeDataset(images, shapes, LIMITS, 0, 0).__getitems__([(0, n) for n in range(6)])
    height, width = batch.pixels[0].shape[1:3]
    assert height % STEP_PX == width % STEP_PX == 0
    assert height <= SHORTER * 32 + STEP_PX and width <= LONGER * 32
    assert batch.pixels[0].nbytes <= whole_bytes(shapes, 6, LIMITS)
    assert batch.boxes is not None
    assert height < width and set(batch.boxes[..., -1].flatten().tolist()) == {0, 1}
    halves = parts_of(batch, 2)
    assert torch.equal(torch.cat([half.boxes for half in halves]), batch.boxes)


def test_kept_decoded_they_are_the_same(images: TrainingSet, tmp_path: Path) -> None:
    shapes = [Shape(View(1), 16)]
    kept = Decoded(tmp_path / "pixels", len(images), decoded_bytes(images, LIMITS), LIMITS)
    dataset = WholeDataset(images, shapes, LIMITS, 0, 0, kept)
    first, second = (dataset.__getitems__([(0, n) for n in range(6)]) for _ in range(2))
    assert torch.equal(first.pixels[0], second.pixels[0])
    assert first.boxes is not None and torch.equal(first.boxes, second.boxes)
