"""Semi-supervised fine-tuning: the whole encoder with a linear head, on a part of the labels.

Chen et al. 2020, arXiv:2002.05709, section 4.2; SimCore's table 7b. Each fraction takes as many
steps as the whole set would: a tenth of the steps would measure how far training came, not what the
encoder brought along.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from curate import encoders
from curate.evaluate.bench import Bench, device_here, matched
from curate.evaluate.features import features_of
from curate.evaluate.linear import Accuracy, accuracy
from curate.evaluate.supervised import (
    batches,
    descend,
    new_head,
    predicted_by,
    sgd,
    steps_an_epoch,
)
from curate.settings import FinetuneSettings


def stratified(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """labels (N,), -1 for none → sorted rows: round(fraction · n) of each class's n, one at least.

    Of one seed, a smaller fraction's rows are among a larger one's.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for number in np.unique(labels[labels >= 0]):
        rows = rng.permutation(np.flatnonzero(labels == number))
        chosen.append(rows[: max(1, round(fraction * len(rows)))])
    return np.sort(np.concatenate(chosen))


def finetune(
    bench: Bench, told: FinetuneSettings, fraction: float, seed: int
) -> tuple[Accuracy, int]:
    """Accuracy on centre crops, and how many images were trained on. The seed decides which they
    are, their order and crops, and the head's first weights.

    Raises CurateError for an encoder that cannot be had, or labels that do not fit.
    """
    train, test = bench.open_sets()
    labels = matched(train, test)
    rows = stratified(labels.train, fraction, seed)
    asked = np.flatnonzero(labels.test >= 0)
    encoder = encoders.build(bench.encoder)
    device = device_here()
    bf16 = device.type == "cuda"
    module = encoder.module.train().to(device).to(memory_format=torch.channels_last)
    head = new_head(encoder.feature_dim, len(labels.classes), seed).to(device)
    optimizer = sgd(
        [(module, told.learning_rate), (head, told.head_learning_rate)], told.weight_decay
    )
    steps = told.epochs * steps_an_epoch(labels.train_images, told.batch_size)
    crops = batches(
        train,
        labels.train,
        rows,
        encoder.preprocessing,
        bench.limits,
        seed=seed,
        steps=steps,
        batch_size=told.batch_size,
        device=device,
        decoders=bench.decoders,
    )

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            features: torch.Tensor = module(pixels)
        found: torch.Tensor = head(features.float())
        return found

    descend(logits, crops, optimizer, rate, steps, told, "evaluate.finetune")
    seen = features_of(
        module, encoder.preprocessing, bench.limits, test, asked, device, bf16, unit=False
    )
    return accuracy(predicted_by(head, seen), labels.test[asked]), len(rows)


def rate(progress: float) -> float:
    """A cosine to 0."""
    return (1 + math.cos(math.pi * progress)) / 2
