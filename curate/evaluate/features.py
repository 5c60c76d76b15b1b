"""Labelled images → features of an encoder, by centre crops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from curate.dataset.training_set import TrainingSet
from curate.embedding import encoders
from curate.evaluate.bench import Bench, device_here
from curate.images import EncodedImage, Preprocessing, Refused, resize_crop
from curate.settings import ImageSettings

BATCH = 256
GREY = 128  # of what stands for an image that cannot be decoded


@dataclass(frozen=True)
class Features:
    """Of two sets, image by image, labelled or not: unit rows."""

    train: NDArray[np.float32]  # (N, D)
    test: NDArray[np.float32]  # (M, D)


def features_of_sets(bench: Bench) -> Features:
    encoder = encoders.build(bench.encoder)
    train, test = (
        features_of(
            encoder.module, encoder.preprocessing, bench.limits, images, np.arange(len(images))
        )
        for images in bench.open_sets()
    )
    return Features(train, test)


@torch.no_grad()
def features_of(
    module: nn.Module,
    eye: Preprocessing,
    limits: ImageSettings,
    images: TrainingSet,
    rows: NDArray[np.int64],
    device: torch.device | None = None,
    bf16: bool = False,
    unit: bool = True,
) -> NDArray[np.float32]:
    """The images at `rows` → (N, D). The module is left in the mode it was in.

    eye: how it sees an image; limits: an image beyond them counts as a grey one;
    device: where the module is; None moves it to a GPU where there is one;
    unit: rows of length one, else as the module gives them.
    """
    if device is None:
        device = device_here()
        module = module.to(device).to(memory_format=torch.channels_last)
    mean = torch.tensor(eye.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(eye.std, device=device).view(1, 3, 1, 1)
    training = module.training
    module.eval()
    found = []
    for start in range(0, len(rows), BATCH):
        places = rows[start : start + BATCH]
        pixels = np.stack([_centre(images.image(int(place)), eye, limits) for place in places])
        batch = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255
        batch = ((batch - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            features = module(batch).float()
        if unit:
            features = nn.functional.normalize(features, dim=1)
        found.append(features.cpu().numpy())
    module.train(training)
    return np.concatenate(found)


def _centre(data: bytes, eye: Preprocessing, limits: ImageSettings) -> NDArray[np.uint8]:
    px = eye.image_px
    try:
        image = EncodedImage(data, limits).decode(round(px / eye.crop_fraction))
    except Refused:
        return np.full((px, px, 3), GREY, np.uint8)
    return resize_crop(image, px, eye.crop_fraction)
