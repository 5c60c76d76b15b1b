"""DrLIM: similar pairs are drawn together, others pushed apart up to a margin.

Hadsell, Chopra, LeCun 2006, "Dimensionality Reduction by Learning an Invariant Mapping".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from curate.methods.base import Batch, Context, Embedded, Method, by_image, mlp, unit
from curate.methods.ranks import gather, world


def contrastive_margin(
    a: Tensor, b: Tensor, group_a: Tensor, group_b: Tensor, margin: float
) -> Tensor:
    """Equation 4 on all pairs of a row of `a` and a row of the global `b`.

    Similar are pairs of one group: D² / 2; the others max(0, margin - D)² / 2. The two kinds count
    the same, however many there are of each: of N images' pairs only N are similar.

    a, b (n, d), group_a, group_b (n,).
    """
    all_b, all_groups = gather(b), gather(group_b)
    squared = (a.unsqueeze(1) - all_b.unsqueeze(0)).square().sum(2)  # (n, N)
    similar = group_a.unsqueeze(1) == all_groups.unsqueeze(0)
    # The root has no finite slope at 0, where two views coincide
    distance = squared.clamp_min(1e-12).sqrt()
    attract = squared / 2
    repel = (margin - distance).clamp_min(0).square() / 2
    # Counts of the global batch: a rank's share of the pairs may be uneven
    everyone = gather(group_a).unsqueeze(1) == all_groups.unsqueeze(0)
    pairs, others = everyone.sum().clamp_min(1), (~everyone).sum().clamp_min(1)
    zero = torch.zeros_like(attract)
    total = (
        torch.where(similar, attract, zero).sum() / pairs
        + torch.where(similar, zero, repel).sum() / others
    )
    return total * world()  # since ranks' sums are averaged


class DrLIM(Method):
    def __init__(self, backbone: nn.Module, context: Context) -> None:
        super().__init__(backbone, context)
        dim = context.feature_dim
        self.projector = mlp(dim, dim, context.count("projection_dim"))
        self.needs_labels = context.flag("label_pairs")

    def embed(self, batch: Batch) -> Embedded:
        features = self.backbone(torch.cat(batch.views[:2]))  # (2n, D)
        projected = unit(self.projector(features))
        return {"projected": by_image(projected, 2), "features": by_image(features, 2).detach()}

    def compare(self, embedded: Embedded, batch: Batch) -> Tensor:
        a, b = embedded["projected"].unbind(1)
        groups = batch.ids
        if self.needs_labels:
            # An image without a label is a class of its own
            groups = torch.where(batch.labels >= 0, batch.labels, -1 - batch.ids)
        margin = self.context.number("margin")
        return contrastive_margin(a, b, groups, groups, margin)
