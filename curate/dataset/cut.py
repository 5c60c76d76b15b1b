"""Crops of whole images, cut and resized on the training device.

As Pillow resizes, with antialiasing: each row and each column of a crop is a weighted mean of the
image's, so that a batch of crops is two products of matrices. Nothing is rounded in between.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curate.dataset.views import Box
from curate.embedding.tensors import WHITE, floats_of

AT_ONCE = 64  # images as floats, for the memory that they take
# Of a row of boxes: a `Box`, and 1 where the image lies on its side, rows for columns
COLUMNS = len(Box._fields) + 1


def cut(images: Tensor, boxes: Tensor, px: int, *, bicubic: bool) -> Tensor:
    """images (N, H, W, C), as `tensor_of` makes them, each with whatever beyond it; boxes
    (N, COLUMNS), inside of the image → (N, C, px, px) of 0…1, on the images' device.
    """
    parts = [
        _cut(some, where, px, bicubic)
        for some, where in zip(images.split(AT_ONCE), boxes.split(AT_ONCE), strict=True)
    ]
    return torch.cat(parts)


def _cut(images: Tensor, boxes: Tensor, px: int, bicubic: bool) -> Tensor:
    left, top, width, height, flip, upside_down, turns, aside = boxes.to(images.device).unbind(1)
    across, down = torch.stack([left, width, flip]), torch.stack([top, height, upside_down])
    rows = _weights(_either(aside, across, down), images.shape[1], px, bicubic)
    columns = _weights(_either(aside, down, across), images.shape[2], px, bicubic)
    pixels = floats_of(images.permute(0, 3, 1, 2)) / WHITE[images.dtype]
    crops = rows.unsqueeze(1) @ pixels @ columns.mT.unsqueeze(1)
    crops = _either(aside.view(-1, 1, 1, 1), crops.mT, crops)
    for quarter in range(1, 4):
        turned = torch.rot90(crops, quarter, (2, 3))
        crops = torch.where((turns == quarter).view(-1, 1, 1, 1), turned, crops)
    return crops.clamp_(0, 1)  # bicubic weights go beyond


def _either(chosen: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.where(chosen > 0, first, second)


def _weights(along: Tensor, size: int, px: int, bicubic: bool) -> Tensor:
    """along (3, N): where a crop begins along one side of `size` px, its length, and whether it is
    to be backwards → (N, px, size): rows sum to 1, and are 0 outside of the crop."""
    start, length, backwards = along.float().view(3, -1, 1, 1)
    scale = length / px
    centre = (torch.arange(px, device=start.device).view(1, px, 1) + 0.5) * scale
    place = torch.arange(size, device=start.device).view(1, 1, size) - start + 0.5
    weights = (_cubic if bicubic else _triangle)((place - centre) / scale.clamp(min=1))
    weights = torch.where((place > 0) & (place < length), weights, 0.0)
    weights = weights / weights.sum(2, keepdim=True)
    return _either(backwards, weights.flip(1), weights)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys 1981, with Pillow's a."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
