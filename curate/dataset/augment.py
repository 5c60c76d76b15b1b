"""Rotation, colour, grey, blur and solarisation of batches, each image by parameters of its own.

One implementation for GPU and CPU. Each operation is torchvision's of the same name for one float
image; `views` draws the parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from curate.dataset.views import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GREY,
    HUE,
    ORDER,
    ROTATION,
    SATURATION,
    SOLARIZE,
)
from curate.embedding.tensors import WHITE, floats_of

BLURRED_PX = 224  # side of the images that blurs' sigmas are of
MOST_SIGMA = 2.0  # px, of all recipes
CUT_AT = 3.0  # sigmas, where a kernel ends
# Rec. 601 luma, with torchvision's digits
LUMA = (0.2989, 0.587, 0.114)


class Augment:
    """Crops and their parameters → normalised float views, on one device."""

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        image_px: int,
    ) -> None:
        """image_px: side of a view of full size."""
        self.device = device
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1)
        self.blur_scale = image_px / BLURRED_PX
        self.blur_radius = max(1, math.ceil(CUT_AT * MOST_SIGMA * self.blur_scale))

    @torch.no_grad()
    def __call__(self, pixels: Tensor, parameters: Tensor) -> Tensor:
        """pixels (N, H, W, C), as `tensor_of` makes them, parameters (N, PARAMETERS) →
        (N, C, H, W), channels_last. What changes colours leaves grey images alone."""
        images = floats_of(pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2))
        return self.changed(images.div_(WHITE[pixels.dtype]), parameters)

    @torch.no_grad()
    def changed(self, images: Tensor, parameters: Tensor) -> Tensor:
        """images (N, C, H, W) of 0…1, on the device, which may be changed.

        The parameters stay on the CPU until here, where they choose who is changed: asking a GPU
        would mean to wait for it.
        """
        turn = lambda x, p: rotated(x, p[:, ROTATION])  # noqa: E731
        _change(images, parameters[:, ROTATION] != 0, turn, parameters)
        images = colour_jitter(images, parameters)
        _change(images, parameters[:, GREY] > 0, lambda x, _: _grey(x).expand_as(x), parameters)
        radius = min(self.blur_radius, images.shape[-1] - 1)
        blur_ = lambda x, p: blur(x, p[:, BLUR] * self.blur_scale, radius)  # noqa: E731
        _change(images, parameters[:, BLUR] > 0, blur_, parameters)
        _change(images, parameters[:, SOLARIZE] > 0, lambda x, _: solarize(x), parameters)
        images = images.sub_(self.mean).div_(self.std)
        return images.contiguous(memory_format=torch.channels_last)


def rotated(images: Tensor, angle: Tensor) -> Tensor:
    """images (N, C, px, px), angle (N,) in radians, against the clock; what lies beyond the edges
    is what they mirror."""
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    matrix = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def colour_jitter(images: Tensor, parameters: Tensor) -> Tensor:
    """images (N, C, H, W) in [0, 1]; each one's four operations in the order of its own."""
    operations = (
        (BRIGHTNESS, 1.0, brightness),
        (CONTRAST, 1.0, contrast),
        (SATURATION, 1.0, saturation),
        (HUE, 0.0, hue),
    )
    order = parameters[:, ORDER].long()  # (N, 4)
    for place in range(4):
        for column, identity, operation in operations:
            chosen = (order[:, place] == column) & (parameters[:, column] != identity)
            apply = lambda x, p, f=operation, c=column: f(x, p[:, c])  # noqa: E731
            _change(images, chosen, apply, parameters)
    return images


def _change(images: Tensor, chosen: Tensor, operation, parameters: Tensor) -> None:  # type: ignore[no-untyped-def]
    """images[chosen] ← operation(images[chosen], parameters[chosen]), in place."""
    if not bool(chosen.any()):
        return
    which = chosen.nonzero(as_tuple=True)[0]
    rows = parameters[which].to(images.device, non_blocking=True)
    which = which.to(images.device, non_blocking=True)
    images[which] = operation(images[which], rows)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * _wide(factor)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Towards or away from the image's mean grey."""
    return _blend(x, _grey(x).mean(dim=(1, 2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Towards or away from the grey image."""
    return _blend(x, _grey(x), factor)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Through HSV, the hue moved by `shift` turns."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)  # each (N, H, W)
    value = x.amax(1)
    spread = value - x.amin(1)
    flat = spread == 0
    divisor = torch.where(flat, 1.0, spread)
    turned = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    h = torch.where(flat, 0.0, turned / 6) + shift.view(-1, 1, 1)
    # A channel n of 5, 3, 1 is value - spread · clamp(min(k, 4 - k), 0, 1), k = (n + 6h) mod 6
    channels = []
    for n in (5, 3, 1):
        k = (n + 6 * h) % 6
        channels.append(value - spread * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1).clamp_(0, 1)


def solarize(x: Tensor, threshold: float = 0.5) -> Tensor:
    """Bright pixels inverted."""
    return torch.where(x >= threshold, 1 - x, x)


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur, edges mirrored, of a kernel 2·radius + 1 wide.

    x (N, C, H, W), sigma (N,). Each image has a kernel of its own, so that this is no convolution
    with one; as two products with a banded matrix an image it is fast on every device.
    """
    rows = _band(sigma, x.shape[2], radius).unsqueeze(1)  # (N, 1, H, H)
    columns = _band(sigma, x.shape[3], radius).unsqueeze(1)  # (N, 1, W, W)
    return rows @ x @ columns.mT


def _band(sigma: Tensor, side: int, radius: int) -> Tensor:
    """(N,) → (N, side, side): row i weighs the pixels around i, mirrored at the edges."""
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.view(-1, 1)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)  # (N, 2r + 1)
    place = torch.arange(side, device=sigma.device).view(-1, 1) + offsets  # (side, 2r + 1)
    place = place.abs()
    place = torch.where(place >= side, 2 * (side - 1) - place, place)
    band = torch.zeros(len(sigma), side, side, device=sigma.device)
    shape = (len(sigma), side, 2 * radius + 1)
    return band.scatter_add_(2, place.expand(shape), kernel.unsqueeze(1).expand(shape))


def _grey(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, 1, H, W)"""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    ratio = _wide(factor)
    return (ratio * x + (1 - ratio) * other).clamp_(0, 1)


def _wide(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)
