"""Arrays of pixels as tensors.

torch has next to no operations on unsigned 16-bit integers: their bits travel as int16, and count
as what they are once they are floats.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from curate.images import Pixels

WHITE = {torch.uint8: 0xFF, torch.int16: 0xFFFF}  # the largest value of a pixel


def torch_sees(pixels: Pixels) -> Pixels:
    """The same bits, as an array of a type that torch has."""
    return pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels


def tensor_of(pixels: Pixels) -> Tensor:
    """The same memory: uint8, or uint16 as int16."""
    return torch.from_numpy(torch_sees(pixels))


def floats_of(pixels: Tensor) -> Tensor:
    """Of what `tensor_of` made: 0 … WHITE, in memory of its own."""
    return pixels.float() if pixels.dtype == torch.uint8 else (pixels.int() & 0xFFFF).float()
