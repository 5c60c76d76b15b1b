"""MoCo: a query against its key, of a slowly moving encoder, and a queue of earlier keys.

v1: He et al. 2020, arXiv:1911.05722. v2, with an MLP head: Chen et al. 2020, arXiv:2003.04297.
The papers shuffle images among GPUs, lest BatchNorm tell which query and key belong together; here
BatchNorm is synchronised over all GPUs instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curate.methods.base import (
    Batch,
    Context,
    Embedded,
    Method,
    by_image,
    enqueue,
    follow,
    mlp,
    momentum_copy,
    unit,
)
from curate.methods.ranks import gather


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """v1, equation 1. query, key (n, d), queue (K, d), unit rows."""
    positive = (query * key).sum(1, keepdim=True)  # (n, 1)
    logits = torch.cat([positive, query @ queue.T], dim=1) / temperature  # (n, 1 + K)
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


class MoCo(Method):
    queue: Tensor
    queue_end: Tensor

    def __init__(self, backbone: nn.Module, context: Context) -> None:
        super().__init__(backbone, context)
        dim, out = context.feature_dim, context.count("projection_dim")
        self.projector = (
            mlp(dim, dim, out, batch_norm=False) if context.flag("mlp") else nn.Linear(dim, out)
        )
        self.key_backbone = momentum_copy(backbone)
        self.key_projector = momentum_copy(self.projector)
        if context.count("queue") < 1:
            raise ValueError("queue=0: MoCo needs keys to compare with")
        self.register_buffer("queue", F.normalize(torch.randn(context.count("queue"), out), dim=1))
        self.register_buffer("queue_end", torch.zeros((), dtype=torch.long))
        self.temperature = context.number("temperature")

    def embed(self, batch: Batch) -> Embedded:
        features = self.backbone(batch.views[0])
        query = unit(self.projector(features))
        with torch.no_grad():
            key = unit(self.key_projector(self.key_backbone(batch.views[1])))
        return {"query": query, "key": key, "features": by_image(features, 1).detach()}

    def compare(self, embedded: Embedded, batch: Batch) -> Tensor:
        # A copy: the queue moves on before the gradient is taken
        queue = self.queue.clone()
        enqueue(self.queue, self.queue_end, gather(embedded["key"]))
        return info_nce(embedded["query"], embedded["key"], queue, self.temperature)

    def after_step(self) -> None:
        momentum = self.context.number("momentum")
        follow(self.key_backbone, self.backbone, momentum)
        follow(self.key_projector, self.projector, momentum)
