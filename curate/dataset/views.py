"""What a random view of an image is: which crop, and which changes of its pixels, by a seed.

A view is drawn in two steps. The crop is cut here, on the CPU, from the decoded image. The change
of colour and sharpness is only drawn here, as a row of parameters; `augment` applies it to whole
batches on the training device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curate.images import Pixels
from curate.settings.recipe import View

ASPECT = (3 / 4, 4 / 3)  # of crops, as in all the methods' sources
TRIES = 10  # to find a crop that lies inside the image

# Columns of a row of parameters. Factors of 1 and a hue shift of 0 leave a view as it is.
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0, 1, 2, 3
ORDER = slice(4, 8)  # of the four above: a permutation of 0…3
GREY, BLUR, SOLARIZE = 8, 9, 10  # 0 or 1; sigma in px, 0 for none; 0 or 1
ROTATION = 11  # radians
PARAMETERS = 12


class Box(NamedTuple):
    """A crop in pixels, and how it is then laid."""

    left: int
    top: int
    width: int
    height: int
    flip: bool
    upside_down: bool = False
    turns: int = 0  # quarters, against the clock


@dataclass(frozen=True)
class Shape:
    """A view whose size is settled: `view.count` squares of `px` × `px` pixels."""

    view: View
    px: int


def shapes(views: tuple[View, ...], image_px: int, patch_px: int = 1) -> list[Shape]:
    """The views' sizes: shares of image_px, in whole patches of the backbone's."""
    return [
        Shape(view, max(1, round(view.side * image_px / patch_px)) * patch_px) for view in views
    ]


def draw_box(rng: np.random.Generator, view: View, width: int, height: int) -> Box:
    """A crop of random area and aspect, as torchvision's RandomResizedCrop takes it; a centre crop
    where none of the tries fits."""
    log_aspect = np.log(ASPECT)
    laid = (
        bool(rng.random() < view.flip_p),
        # Drawn where there is a choice alone: other recipes' views stay what they were
        view.vertical_flip_p > 0 and bool(rng.random() < view.vertical_flip_p),
        int(rng.integers(4)) if view.quarter_turns else 0,
    )
    for _ in range(TRIES):
        area = width * height * rng.uniform(*view.scale)
        aspect = math.exp(rng.uniform(*log_aspect))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(0, width - w + 1))
            return Box(left, int(rng.integers(0, height - h + 1)), w, h, *laid)
    aspect = min(max(width / height, ASPECT[0]), ASPECT[1])
    w = min(width, round(height * aspect))
    h = min(height, round(width / aspect))
    return Box((width - w) // 2, (height - h) // 2, w, h, *laid)


def draw_parameters(rng: np.random.Generator, view: View) -> NDArray[np.float32]:
    """(PARAMETERS,) of one view. Of one recipe always draws as many random numbers, whatever comes
    of them."""
    row = np.zeros(PARAMETERS, np.float32)
    u = rng.random(9)
    order = rng.permutation(4)
    b, c, s, h = view.jitter
    row[:3] = 1
    row[ORDER] = order
    if u[0] < view.jitter_p:
        for column, strength, draw in ((BRIGHTNESS, b, 1), (CONTRAST, c, 2), (SATURATION, s, 3)):
            low = max(0.0, 1 - strength)
            row[column] = low + u[draw] * (1 + strength - low)
        row[HUE] = (2 * u[4] - 1) * h
    row[GREY] = u[5] < view.grey_p
    if u[6] < view.blur_p:
        low, high = view.blur_sigma
        row[BLUR] = low + u[8] * (high - low)
    row[SOLARIZE] = u[7] < view.solarize_p
    if view.rotation:
        row[ROTATION] = math.radians(rng.uniform(-view.rotation, view.rotation))
    return row


def crop(image: Pixels, box: Box, shape: Shape) -> Pixels:
    """image (H, W, C): cut, resize with antialiasing, flip and turn → (px, px, C) of the same."""
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    filter_ = Image.Resampling.BICUBIC if shape.view.bicubic else Image.Resampling.BILINEAR
    pixels = resized(part, (shape.px, shape.px), filter_)
    pixels = pixels[:: -1 if box.upside_down else 1, :: -1 if box.flip else 1]
    return np.rot90(pixels, box.turns)


def resized(image: Pixels, size: tuple[int, int], how: Image.Resampling) -> Pixels:
    """(H, W, C) → (height, width, C) by Pillow; size: width and height."""
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, how))
    grey = np.ascontiguousarray(image[..., 0])
    if grey.dtype == np.uint8:
        return np.asarray(Image.fromarray(grey).resize(size, how))[..., None]
    fine = np.asarray(Image.fromarray(grey.astype(np.float32)).resize(size, how))
    return np.rint(fine.clip(0, 0xFFFF)).astype(np.uint16)[..., None]


def scaled(box: Box, from_size: tuple[int, int], to_size: tuple[int, int]) -> Box:
    """The same crop in an image decoded at another (width, height)."""
    if from_size == to_size:
        return box
    x, y = to_size[0] / from_size[0], to_size[1] / from_size[1]
    left, top = min(int(box.left * x), to_size[0] - 1), min(int(box.top * y), to_size[1] - 1)
    return box._replace(
        left=left,
        top=top,
        width=max(1, min(round(box.width * x), to_size[0] - left)),
        height=max(1, min(round(box.height * y), to_size[1] - top)),
    )


def least_px(boxes: list[Box], sizes_px: list[int], shorter_px: int) -> int:
    """To what shorter side an image may be reduced so that no view has to be enlarged for it."""
    return max(
        math.ceil(px * shorter_px / min(box.width, box.height))
        for box, px in zip(boxes, sizes_px, strict=True)
    )
