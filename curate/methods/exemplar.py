"""Exemplar-CNN: each image is a class of its own, and its transformed copies are the class.

Dosovitskiy et al. 2014, arXiv:1406.6909. The classifier has as many rows as there are images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curate.methods.base import Batch, Context, Embedded, Method, by_image

MOST_BYTES = 12_000_000_000


class ExemplarCNN(Method):
    def __init__(self, backbone: nn.Module, context: Context) -> None:
        super().__init__(backbone, context)
        size = 3 * 4 * context.feature_dim * context.images  # weights, gradients, momentum
        if size > MOST_BYTES:
            raise ValueError(
                f"exemplar has a class an image: {context.images:,} of {context.feature_dim} "
                f"dimensions take {size / 1e9:.0f} GB in training, over {MOST_BYTES / 1e9:.0f}; "
                "take fewer images, or another method"
            )
        self.classifier = nn.Linear(context.feature_dim, context.images)

    def embed(self, batch: Batch) -> Embedded:
        views = len(batch.views)
        features = self.backbone(torch.cat(batch.views))  # (V·n, D)
        scores = self.classifier(features).float()
        losses = F.cross_entropy(scores, batch.ids.repeat(views), reduction="none")
        return {"losses": by_image(losses, views), "features": by_image(features, views).detach()}

    def compare(self, embedded: Embedded, batch: Batch) -> Tensor:
        return embedded["losses"].mean()
