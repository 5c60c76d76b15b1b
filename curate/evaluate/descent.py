"""The optimisation loop of every protocol that trains: SGD with momentum, or Adam."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from curate.errors import CurateError
from curate.settings import (
    DetectionSettings,
    FinetuneSettings,
    SegmentationSettings,
    SgdSettings,
)

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")
TrainingSettings = SgdSettings | FinetuneSettings | DetectionSettings | SegmentationSettings

MOMENTUM = 0.9


Groups = Sequence[tuple[nn.Module, float]]  # modules, each with its peak learning rate


def sgd(groups: Groups, weight_decay: float, *, nesterov: bool = False) -> Optimizer:
    """Frozen weights are left out."""
    # The rate is set before every step
    return torch.optim.SGD(
        _to_train(groups), lr=0.0, momentum=MOMENTUM, weight_decay=weight_decay, nesterov=nesterov
    )


def adam(groups: Groups, weight_decay: float) -> Optimizer:
    """As sgd."""
    return torch.optim.Adam(_to_train(groups), lr=0.0, weight_decay=weight_decay)


def _to_train(groups: Groups) -> list[dict[str, Any]]:
    return [
        {"params": [weight for weight in part.parameters() if weight.requires_grad], "peak": peak}
        for part, peak in groups
    ]


def set_learning_rates(optimizer: Optimizer, share: float) -> None:
    """share: of each group's peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def cosine(progress: float) -> float:
    """Share of the peak learning rates: along half a cosine from 1 to 0."""
    return (1 + math.cos(math.pi * progress)) / 2


def descend(
    optimizer: Optimizer,
    loss_of: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    rate: Callable[[int], float],
    settings: TrainingSettings,
    key: str,
    after: Callable[[int], None] | None = None,
) -> None:
    """A step of the optimizer for each batch; rate: step → share of the peak learning rates; after:
    is called with how many are made.

    key: of the settings, named in errors. Raises CurateError for a loss that is not finite, and
    for a batch beyond the GPU's memory.
    """
    for step, batch in enumerate(batches):
        set_learning_rates(optimizer, rate(step))
        try:
            loss = loss_of(batch)
            if not math.isfinite(loss.item()):
                raise CurateError(
                    f"{key}.learning_rate={settings.learning_rate:g}: the loss is not finite after "
                    f"{step} steps; lower it"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        except torch.cuda.OutOfMemoryError:
            smaller = "lower it, or image_px" if hasattr(settings, "image_px") else "lower it"
            raise CurateError(
                f"{key}.batch_size={settings.batch_size}: over the GPU's memory; {smaller}"
            ) from None
        log.info("%s: step %d: loss %.4f", key, step + 1, loss.item())
        if after is not None:
            after(step + 1)
