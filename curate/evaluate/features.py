"""Labelled images → features of an encoder, by centre crops."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from curate.dataset.training_set import TrainingSet
from curate.embedding import encoders
from curate.embedding.tensors import floats_of, tensor_of
from curate.evaluate.bench import Bench, device_here
from curate.evaluate.loading import loaded
from curate.images import EncodedImage, Pixels, Preprocessing, Refused
from curate.settings import ImageSettings

BATCH = 256
LEAST_BATCHES = 2  # of a task, which has an encoder to build first


def parts_of(images: int, at_once: int) -> list[tuple[int, int]]:
    """First row and last + 1 of each of about `at_once` tasks: whole batches, so that features do
    not depend on how many tasks there are."""
    size = max(LEAST_BATCHES * BATCH, -(-images // (at_once * BATCH)) * BATCH)
    return [(start, min(start + size, images)) for start in range(0, images, size)]


def features_of_part(bench: Bench, folder: str, part: tuple[int, int]) -> NDArray[np.float32]:
    """A training set's images from part[0] to part[1] - 1 → (N, D) unit rows."""
    encoder, device = encoders.build(bench.encoder), device_here()
    return features_of(
        encoder.module.to(device).to(memory_format=torch.channels_last),
        encoder.preprocessing,
        bench.limits,
        TrainingSet(folder),
        np.arange(*part),
        device,
        decoders=bench.decoders,
    )


@torch.no_grad()
def features_of(
    module: nn.Module,
    preprocessing: Preprocessing,
    limits: ImageSettings,
    images: TrainingSet,
    rows: NDArray[np.int64],
    device: torch.device,
    *,
    decoders: int = 0,
    bf16: bool = False,
    unit: bool = True,
) -> NDArray[np.float32]:
    """The images at `rows` → (N, D). The module is left in the mode it was in.

    limits: an image beyond them counts as a grey one; device: where the module is;
    decoders: threads that decode ahead of the module, 0 between batches;
    unit: rows of length one, else as the module gives them.
    """
    mean = torch.tensor(preprocessing.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std, device=device).view(1, -1, 1, 1)

    def centre(row: int) -> Pixels:
        return _centre(images.image(row), preprocessing, limits)

    batches = (rows[start : start + BATCH].tolist() for start in range(0, len(rows), BATCH))
    training = module.training
    module.eval()
    found = []
    for crops in loaded(centre, batches, decoders):
        pixels = floats_of(tensor_of(np.stack(crops)).to(device).permute(0, 3, 1, 2))
        pixels /= preprocessing.white
        batch = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            features = module(batch).float()
        if unit:
            features = nn.functional.normalize(features, dim=1)
        found.append(features.cpu().numpy())
    module.train(training)
    return np.concatenate(found)


def _centre(data: bytes, preprocessing: Preprocessing, limits: ImageSettings) -> Pixels:
    try:
        return preprocessing.pixels(EncodedImage(data, limits))
    except Refused:
        return np.full(preprocessing.shape, preprocessing.white // 2 + 1, preprocessing.dtype)
