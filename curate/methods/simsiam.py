"""SimSiam: one view's projection predicts the other's, which no gradient passes.

Chen & He 2021, arXiv:2011.10566.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from curate.methods.base import Batch, Context, Method, mlp, unit


def negative_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """Equation 1, the mean over rows (n, d)."""
    return -(unit(predicted) * unit(target.detach())).sum(1).mean()


class SimSiam(Method):
    def __init__(self, backbone: nn.Module, context: Context) -> None:
        super().__init__(backbone, context)
        out = context.count("projection_dim")
        self.projector = mlp(context.feature_dim, out, out, out, last_norm=True)
        self.predictor = mlp(out, context.count("hidden_dim"), out)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        features = self.backbone(torch.cat(batch.views[:2]))  # (2n, D)
        projected = self.projector(features)
        a, b = projected.chunk(2)
        predicted_a, predicted_b = self.predictor(projected).chunk(2)
        loss = (negative_cosine(predicted_a, b) + negative_cosine(predicted_b, a)) / 2
        return loss, features

    def constant_rate(self) -> Iterable[nn.Parameter]:
        return self.predictor.parameters()  # section 4.1: it must keep up with what it predicts
