"""Linear probe by SGD on random crops, each embedded anew in every epoch: the protocol of SimCore's
authors, whose figures it makes comparable.

Their train_sup.py (github.com/sungnyun/openssl-simcore): learning rate 10, a tenth of it after 60 %
and 80 % of the epochs, Nesterov momentum 0.9, no decay, features as they come, not normalised. Two
things differ. The encoder is in eval mode here, so that it is frozen; theirs goes on moving its
BatchNorm statistics. And the last epoch counts; theirs is the best one on the test set.
"""

from __future__ import annotations

import numpy as np
import torch

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
from curate.settings import SgdSettings


def sgd_probe(bench: Bench, told: SgdSettings, seed: int) -> Accuracy:
    """Accuracy on centre crops. The seed decides order, crops and the head's first weights.

    Raises CurateError for an encoder that cannot be had, or labels that do not fit.
    """
    train, test = bench.open_sets()
    labels = matched(train, test)
    rows, asked = (np.flatnonzero(known >= 0) for known in (labels.train, labels.test))
    encoder = encoders.build(bench.encoder)
    device = device_here()
    bf16 = device.type == "cuda"
    module = encoder.module.eval().requires_grad_(False).to(device)
    module = module.to(memory_format=torch.channels_last)
    head = new_head(encoder.feature_dim, len(labels.classes), seed).to(device)
    optimizer = sgd([(head, told.learning_rate)], told.weight_decay)
    steps = told.epochs * steps_an_epoch(len(rows), told.batch_size)
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
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            features: torch.Tensor = module(pixels)
        found: torch.Tensor = head(features.float())
        return found

    descend(logits, crops, optimizer, rate, steps, told, "evaluate.sgd")
    seen = features_of(
        module, encoder.preprocessing, bench.limits, test, asked, device, bf16, unit=False
    )
    return accuracy(predicted_by(head, seen), labels.test[asked])


def rate(progress: float) -> float:
    return 0.1 ** ((progress >= 0.6) + (progress >= 0.8))
