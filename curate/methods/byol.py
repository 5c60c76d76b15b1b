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
        both = torch.cat(batch.views[:2])
        features = self.backbone(both)  # (2n, D)
        predicted_a, predicted_b = self.predictor(self.projector(features)).chunk(2)
        with torch.no_grad():
            target_a, target_b = self.target_projector(self.target_backbone(both)).chunk(2)
        loss = prediction_error(predicted_a, target_b) + prediction_error(predicted_b, target_a)
        return loss, features

    def after_step(self) -> None:
        momentum = cosine(self.context.number("momentum"), 1.0, self.clock.progress)
        follow(self.target_backbone, self.backbone, momentum)
        follow(self.target_projector, self.projector, momentum)
