"""Colour, blur and solarisation of batches against torchvision on one image at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from curate.dataset.augment import (
    Augment,
    blur,
    brightness,
    contrast,
    hue,
    rotated,
    saturation,
    solarize,
)
from curate.dataset.views import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GREY,
    HUE,
    ORDER,
    PARAMETERS,
    ROTATION,
    SATURATION,
    SOLARIZE,
    draw_parameters,
)
from curate.settings.recipe import View
from curate.settings.recipes import RECIPES
from tests.imagery import picture
from tests.methods.conftest import one_thread  # noqa: F401

CLOSE = {"rtol": 0.0, "atol": 1e-5}
SIDE = 24  # px
CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels() -> Tensor:
    """(N, SIDE, SIDE, 3) uint8: photographs, greys, black, white, pure colours, noise."""
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    grey = np.broadcast_to(ramp[:, None, None], (SIDE, SIDE, 3))
    flat = [np.full((SIDE, SIDE, 3), level, np.uint8) for level in (0, 255, 127, 128)]
    pure = np.zeros((SIDE, SIDE, 3), np.uint8)
    for k in range(6):  # red, yellow, green, cyan, blue, magenta
        pure[:, 4 * k : 4 * k + 4] = [255 * (k in on) for on in ((0, 1, 5), (1, 2, 3), (3, 4, 5))]
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    photographs = [np.asarray(picture(SIDE, SIDE, seed)) for seed in range(3)]
    return torch.from_numpy(np.stack([*photographs, grey, *flat, pure, noise]))


def images() -> Tensor:
    """(N, 3, SIDE, SIDE) in 0…1"""
    return pixels().permute(0, 3, 1, 2).float() / 255


def nothing(n: int) -> Tensor:
    """Parameters that leave n views as they are."""
    rows = torch.zeros(n, PARAMETERS)
    rows[:, [BRIGHTNESS, CONTRAST, SATURATION]] = 1
    rows[:, ORDER] = torch.arange(4.0)
    return rows


def augment(mean: tuple = (0, 0, 0), std: tuple = (1, 1, 1)) -> Augment:
    return Augment(mean, std, CPU, SIDE)


# Each operation

Operation = Callable[[Tensor, Tensor], Tensor]
FACTORS = (0.0, 0.2, 0.9, 1.0, 1.1, 1.8, 5.0)
SHIFTS = (-0.5, -0.4, -0.1, 0.0, 1 / 6, 0.2, 0.4, 0.5)


@pytest.mark.parametrize(
    ("operation", "of_torchvision", "values"),
    [
        (brightness, F.adjust_brightness, FACTORS),
        (contrast, F.adjust_contrast, FACTORS),
        (saturation, F.adjust_saturation, FACTORS),
        (hue, F.adjust_hue, SHIFTS),
        (lambda x, s: blur(x, s, 1), lambda x, s: F.gaussian_blur(x, 3, s), (0.1, 0.7, 2.0)),
        (lambda x, s: blur(x, s, 6), lambda x, s: F.gaussian_blur(x, 13, s), (0.1, 0.7, 2.0)),
        (lambda x, _: solarize(x), lambda x, _: F.solarize(x, 0.5), (0.0,)),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "blur-3", "blur-13", "solarize"],
)
def test_each_operation_is_torchvision_s(
    operation: Operation, of_torchvision: Callable[[Tensor, float], Tensor], values: tuple
) -> None:
    """Every image by every value, all in one batch."""
    originals = images()
    batch = originals.repeat(len(values), 1, 1, 1)
    of_each = torch.tensor(values, dtype=torch.float32).repeat_interleave(len(originals))
    got = operation(batch.clone(), of_each)
    assert torch.equal(batch, originals.repeat(len(values), 1, 1, 1))
    for image, value, out in zip(batch, of_each.tolist(), got, strict=True):
        torch.testing.assert_close(out, of_torchvision(image, value), **CLOSE)


def test_blur_of_oblong_images() -> None:
    x = images()[:, :, :15]
    got = blur(x, torch.full((len(x),), 1.3), 3)
    torch.testing.assert_close(got, F.gaussian_blur(x, 7, 1.3), **CLOSE)


def test_hue_of_pure_colours() -> None:
    """A third of a turn: red to green to blue; half a turn: to the opposite colour."""
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    turned = [hue(red, torch.tensor([shift])).flatten().tolist() for shift in (1 / 3, -1 / 3, 0.5)]
    for got, expected in zip(turned, ([0, 1, 0], [0, 0, 1], [0, 1, 1]), strict=True):
        assert got == pytest.approx(expected, abs=1e-6)


# Whole pipelines


def by_torchvision(image: Tensor, row: Tensor) -> Tensor:
    """One image (H, W, 3) uint8 by its parameters: the jitter's operations in their order, then
    grey, blur, solarisation."""
    x = image.permute(2, 0, 1).float() / 255
    steps = {
        BRIGHTNESS: F.adjust_brightness,
        CONTRAST: F.adjust_contrast,
        SATURATION: F.adjust_saturation,
        HUE: F.adjust_hue,
    }
    for column in row[ORDER].int().tolist():
        x = steps[column](x, row[column].item())
    if row[GREY]:
        x = F.rgb_to_grayscale(x, 3)
    if row[BLUR]:
        x = F.gaussian_blur(x, 3, row[BLUR].item() * SIDE / 224)
    if row[SOLARIZE]:
        x = F.solarize(x, 0.5)
    return x


def normalised(x: Tensor) -> Tensor:
    return F.normalize(x, list(MEAN), list(STD))


def drawn(n: int, view: View, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([draw_parameters(rng, view) for _ in range(n)]))


EVERYTHING = View(
    1, jitter=(0.8, 0.8, 0.8, 0.5), jitter_p=0.7, grey_p=0.3, blur_p=0.5, solarize_p=0.4
)


@pytest.mark.parametrize("seed", range(4))
def test_whole_pipelines_are_torchvision_s(seed: int) -> None:
    batch = pixels().repeat(4, 1, 1, 1)
    rows = drawn(len(batch), EVERYTHING, seed)
    got = augment()(batch, rows)
    got_normalised = augment(MEAN, STD)(batch, rows)
    for image, row, out, normal in zip(batch, rows, got, got_normalised, strict=True):
        expected = by_torchvision(image, row)
        torch.testing.assert_close(out, expected, **CLOSE)
        torch.testing.assert_close(normal, normalised(expected), rtol=0, atol=1e-4)


def test_every_order_of_the_jitter_is_its_own() -> None:
    """All 24, of one image at once; no two give the same."""
    orders = torch.tensor(list(permutations(range(4)))).float()
    rows = nothing(24)
    rows[:, ORDER] = orders
    for column, value in ((BRIGHTNESS, 1.5), (CONTRAST, 0.4), (SATURATION, 1.7), (HUE, 0.2)):
        rows[:, column] = value
    image = pixels()[-1]
    got = augment()(image.expand(24, -1, -1, -1), rows)
    for row, out in zip(rows, got, strict=True):
        torch.testing.assert_close(out, by_torchvision(image, row), **CLOSE)
    for i in range(24):
        assert all((got[i] - got[j]).abs().max() > 1e-4 for j in range(i))


@pytest.mark.parametrize("name", ["simclr", "byol", "dino"])
def test_a_batch_is_its_images_one_at_a_time(name: str) -> None:
    view = next(iter(RECIPES[name].values())).views[-1]
    batch = pixels()
    rows = drawn(len(batch), view)
    together = augment(MEAN, STD)(batch, rows)
    for i in range(len(batch)):
        alone = augment(MEAN, STD)(batch[i : i + 1], rows[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)


def test_a_view_does_not_depend_on_the_others() -> None:
    """Nor on their parameters: the others change, the first three stay."""
    batch, others = pixels(), pixels().flip(0)
    rows, other_rows = drawn(len(batch), EVERYTHING, 1), drawn(len(batch), EVERYTHING, 2)
    others[:3], other_rows[:3] = batch[:3], rows[:3]
    first, second = augment()(batch, rows), augment()(others, other_rows)
    torch.testing.assert_close(first[:3], second[:3], **CLOSE)
    assert not torch.allclose(first[3:], second[3:], atol=1e-2)


def test_parameters_of_nothing_leave_images_as_they_are() -> None:
    batch = pixels()
    assert torch.equal(augment()(batch, nothing(len(batch))), images())
    got = augment(MEAN, STD)(batch, nothing(len(batch)))
    torch.testing.assert_close(got, normalised(images()), rtol=0, atol=1e-6)


def test_what_goes_in_stays_and_what_comes_out() -> None:
    batch = pixels()
    before, rows = batch.clone(), drawn(len(batch), EVERYTHING)
    rows_before = rows.clone()
    got = augment(MEAN, STD)(batch, rows)
    assert torch.equal(batch, before) and torch.equal(rows, rows_before)
    assert got.shape == (len(batch), 3, SIDE, SIDE)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("image_px", "side", "kernel"), [(32, 32, 3), (96, 96, 7), (224, 224, 13), (224, 96, 13)]
)
def test_blurs_are_in_proportion_to_the_image(image_px: int, side: int, kernel: int) -> None:
    """σ is in pixels of an image of 224, small views' as well, and no kernel cuts the largest."""
    batch = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    batch[0, side // 2, side // 2] = 255
    rows = nothing(1)
    rows[:, BLUR] = 2.0
    got = Augment((0, 0, 0), (1, 1, 1), CPU, image_px)(batch, rows)[0, 0]
    reach = (got > 0).nonzero()
    expected = [side // 2 - kernel // 2, side // 2 + kernel // 2]
    for axis in range(2):
        assert [int(reach[:, axis].min()), int(reach[:, axis].max())] == expected
    assert float(got.sum()) == pytest.approx(1, rel=1e-4)
    if image_px > 50:  # else σ is a part of a pixel
        along = got.sum(0) / got.sum()
        place = torch.arange(side) - side // 2
        spread = float((along * place**2).sum().sqrt())
        assert spread == pytest.approx(2 * image_px / 224, rel=0.05)


# Rotation


def test_quarter_turns_are_exact() -> None:
    images = torch.rand(3, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    angles = torch.tensor([0.0, math.pi / 2, math.pi])
    found = rotated(images, angles)
    for turns, (image, expected) in enumerate(zip(found, images, strict=True)):
        expected = torch.rot90(expected, turns, (1, 2))
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_a_rotation_has_no_black_corners() -> None:
    white = torch.ones(1, 3, 16, 16)
    torch.testing.assert_close(rotated(white, torch.tensor([0.7])), white)


def test_rotated_by_its_own_angle_alone() -> None:
    augment = Augment((0.0,) * 3, (1.0,) * 3, torch.device("cpu"), 9)
    pixels = torch.randint(0, 256, (2, 9, 9, 3), dtype=torch.uint8)
    parameters = torch.zeros(2, PARAMETERS)
    parameters[:, :3] = 1
    parameters[:, ORDER] = torch.arange(4.0)
    parameters[1, ROTATION] = math.pi
    plain, turned = augment(pixels, parameters)
    images = pixels.permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(plain, images[0])
    torch.testing.assert_close(turned, torch.rot90(images[1], 2, (1, 2)), atol=1e-5, rtol=0)
