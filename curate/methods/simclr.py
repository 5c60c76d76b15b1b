"""SimCLR: two views of an image attract, all other views of the batch repel.

Chen et al. 2020, arXiv:2002.05709.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curate.methods.base import Batch, Context, Embedded, Method, by_image, mlp, unit
from curate.methods.ranks import gather, own_rows


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Equation 1, over both directions and the global batch.

    a, b (n, d): unit projections of the two views of this rank's images.
    """
    n = len(a)
    all_a, all_b = gather(a), gather(b)  # (N, d)
    own = own_rows(n)
    place = torch.arange(own.start, own.stop, device=a.device)
    itself = F.one_hot(place, len(all_a)).bool()  # (n, N)
    losses = []
    for anchor, others, same in ((a, all_b, all_a), (b, all_a, all_b)):
        positives_and_negatives = anchor @ others.T / temperature  # (n, N)
        negatives = (anchor @ same.T / temperature).masked_fill(itself, float("-inf"))
        logits = torch.cat([positives_and_negatives, negatives], dim=1)  # (n, 2N)
        losses.append(F.cross_entropy(logits, place))
    return (losses[0] + losses[1]) / 2


class SimCLR(Method):
    def __init__(self, backbone: nn.Module, context: Context) -> None:
        super().__init__(backbone, context)
        dim = context.feature_dim
        with_norm = context.flag("batch_norm")  # SimCore's authors have none
        out = context.count("projection_dim")
        # Their code's last BatchNorm has a scale and no shift
        self.projector = mlp(
            dim, dim, out, batch_norm=with_norm, last_norm=with_norm, last_scale=with_norm
        )
        self.temperature = context.number("temperature")

    def embed(self, batch: Batch) -> Embedded:
        features = self.backbone(torch.cat(batch.views[:2]))  # (2n, D)
        projected = unit(self.projector(features))
        return {"projected": by_image(projected, 2), "features": by_image(features, 2).detach()}

    def compare(self, embedded: Embedded, batch: Batch) -> Tensor:
        a, b = embedded["projected"].unbind(1)
        return nt_xent(a, b, self.temperature)
