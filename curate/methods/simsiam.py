"""SimSiam: one view's projection predicts the other's, which no gradient passes.

Chen & He 2021, arXiv:2011.10566; or, as SimCore's authors have it, BYOL whose target is itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from curate.methods.base import Batch, Context, Embedded, Method, by_image, in_turn, mlp, unit
from curate.methods.byol import prediction_error


def negative_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """Equation 1, the mean over rows (n, d)."""
    return -(unit(predicted) * unit(target.detach())).sum(1).mean()


class SimSiam(Method):
    def __init__(self, backbone: nn.Module, context: Context) -> None:
        super().__init__(backbone, context)
        out, hidden = context.count("projection_dim"), context.count("hidden_dim")
        self.as_byol = context.flag("as_byol")
        self.projector = (
            mlp(context.feature_dim, hidden, out)
            if self.as_byol
            else mlp(context.feature_dim, out, out, out, last_norm=True)
        )
        self.predictor = mlp(out, hidden, out)

    def embed(self, batch: Batch) -> Embedded:
        apart = self.context.flag("views_apart")
        features = in_turn(self.backbone, batch.views[:2], apart)  # (2n, D)
        a, b = in_turn(self.projector, features.chunk(2), apart).chunk(2)
        predicted = in_turn(self.predictor, (a, b), apart)
        return {
            "predicted": by_image(predicted, 2),
            "wanted": torch.stack([a, b], 1).detach(),
            "features": by_image(features, 2).detach(),
        }

    def compare(self, embedded: Embedded, batch: Batch) -> Tensor:
        predicted_a, predicted_b = embedded["predicted"].unbind(1)
        a, b = embedded["wanted"].unbind(1)
        if self.as_byol:
            return prediction_error(predicted_a, b) + prediction_error(predicted_b, a)
        return (negative_cosine(predicted_a, b) + negative_cosine(predicted_b, a)) / 2

    def constant_rate(self) -> Iterable[nn.Parameter]:
        # Section 4.1: it must keep up with what it predicts
        return () if self.as_byol else self.predictor.parameters()
