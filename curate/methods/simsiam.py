"""SimSiam: one view's projection predicts the other's, which no gradient passes.

Chen & He 2021, arXiv:2011.10566; or, as SimCore's authors have it, BYOL whose target is itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from curate.methods.base import Batch, Context, Method, in_turn, mlp, unit
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

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        apart = self.context.flag("views_apart")
        features = in_turn(self.backbone, batch.views[:2], apart)  # (2n, D)
        a, b = in_turn(self.projector, features.chunk(2), apart).chunk(2)
        predicted_a, predicted_b = in_turn(self.predictor, (a, b), apart).chunk(2)
        if self.as_byol:
            loss = prediction_error(predicted_a, b.detach())
            loss = loss + prediction_error(predicted_b, a.detach())
        else:
            loss = (negative_cosine(predicted_a, b) + negative_cosine(predicted_b, a)) / 2
        return loss, features

    def constant_rate(self) -> Iterable[nn.Parameter]:
        # Section 4.1: it must keep up with what it predicts
        return () if self.as_byol else self.predictor.parameters()
