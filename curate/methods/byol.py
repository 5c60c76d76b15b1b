"""BYOL: one network predicts what its slowly moving copy makes of the other view.

Grill et al. 2020, arXiv:2006.07733.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from curate.methods.base import (
    Batch,
    Context,
    Embedded,
    Method,
    by_image,
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

    def embed(self, batch: Batch) -> Embedded:
        views, apart = batch.views[:2], self.context.flag("views_apart")
        features = in_turn(self.backbone, views, apart)  # (2n, D)
        projected = in_turn(self.projector, features.chunk(2), apart)
        predicted = in_turn(self.predictor, projected.chunk(2), apart)
        with torch.no_grad():
            target = in_turn(self.target_backbone, views, apart)
            wanted = in_turn(self.target_projector, target.chunk(2), apart)
        return {
            "predicted": by_image(predicted, 2),
            "wanted": by_image(wanted, 2),
            "features": by_image(features, 2).detach(),
        }

    def compare(self, embedded: Embedded, batch: Batch) -> Tensor:
        predicted_a, predicted_b = embedded["predicted"].unbind(1)
        wanted_a, wanted_b = embedded["wanted"].unbind(1)
        return prediction_error(predicted_a, wanted_b) + prediction_error(predicted_b, wanted_a)

    def after_step(self) -> None:
        momentum = cosine(self.context.number("momentum"), 1.0, self.clock.progress)
        follow(self.target_backbone, self.backbone, momentum)
        follow(self.target_projector, self.projector, momentum)
