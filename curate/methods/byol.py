"""BYOL: one network predicts what its slowly moving copy makes of the other view.

Grill et al. 2020, arXiv:2006.07733.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from curate.methods.base import (
    Batch,
    Context,
    Method,
    cosine,
    follow,
    in_turn,
    mlp,
    momentum_copy,
    unit,
)


def prediction_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Equation 2: the mean squared distance of unit rows (n, d)."""
    return (2 - 2 * (unit(predicted) * unit(target)).sum(1)).mean()


class BYOL(Method):
    def __init__(self, backbone: nn.Module, context: Context) -> None:
        super().__init__(backbone, context)
        hidden, out = context.count("hidden_dim"), context.count("projection_dim")
        self.projector = mlp(context.feature_dim, hidden, out)
        self.predictor = mlp(out, hidden, out)
        self.target_backbone = momentum_copy(backbone)
        self.target_projector = momentum_copy(self.projector)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        views, apart = batch.views[:2], self.context.flag("views_apart")
        features = in_turn(self.backbone, views, apart)  # (2n, D)
        projected = in_turn(self.projector, features.chunk(2), apart)
        predicted = in_turn(self.predictor, projected.chunk(2), apart)
        with torch.no_grad():
            target = in_turn(self.target_backbone, views, apart)
            target_a, target_b = in_turn(self.target_projector, target.chunk(2), apart).chunk(2)
        predicted_a, predicted_b = predicted.chunk(2)
        loss = prediction_error(predicted_a, target_b) + prediction_error(predicted_b, target_a)
        return loss, features

    def after_step(self) -> None:
        momentum = cosine(self.context.number("momentum"), 1.0, self.clock.progress)
        follow(self.target_backbone, self.backbone, momentum)
        follow(self.target_projector, self.projector, momentum)
