"""SwAV: each view predicts to which prototypes another view of the image is assigned.

Caron et al. 2020, arXiv:2006.09882. The queue, here of the global batch, is the same on every rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curate.methods.base import Batch, Context, Embedded, Method, by_image, by_size, mlp, unit
from curate.methods.ranks import gather, own_rows


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """scores (B, K) → (B, K): rows sum to 1, columns to about B / K. Section 3.1, equation 3."""
    # Of no effect on the result, and keeps exp(score / 0.05) within float32
    q = torch.exp((scores.float() - scores.max()) / epsilon)
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True).clamp_min(1e-30) / q.shape[1]
        q = q / q.sum(1, keepdim=True).clamp_min(1e-30) / q.shape[0]
    return q * q.shape[0]


def swapped_prediction(scores: list[Tensor], codes: list[Tensor], temperature: float) -> Tensor:
    """Equation 1 and section 3.2: every view predicts the codes of each view of full size but its
    own. scores: (n, K) of every view; codes: (n, K) of those of full size, the first ones."""
    total, terms = scores[0].new_zeros(()), 0
    for i, code in enumerate(codes):
        for v, score in enumerate(scores):
            if v != i:
                total = total - (code * F.log_softmax(score / temperature, dim=1)).sum(1).mean()
                terms += 1
    return total / terms


class SwAV(Method):
    queue: Tensor
    queued: Tensor

    def __init__(self, backbone: nn.Module, context: Context) -> None:
        super().__init__(backbone, context)
        out = context.count("projection_dim")
        self.projector = mlp(context.feature_dim, context.count("hidden_dim"), out)
        self.prototypes = nn.Linear(out, context.count("prototypes"), bias=False)
        size = (context.global_views, context.count("queue"), out)
        self.register_buffer("queue", torch.zeros(size))
        self.register_buffer("queued", torch.zeros((), dtype=torch.long))  # rows, from the front

    def before_step(self, clock) -> None:  # type: ignore[no-untyped-def]
        super().before_step(clock)
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def embed(self, batch: Batch) -> Embedded:
        full, views = self.context.global_views, len(batch.views)
        features = by_size(self.backbone, batch.views)  # (V·n, D)
        projected = unit(self.projector(features))
        return {
            "scores": by_image(self._scores(projected), views),
            "projected": by_image(projected, views)[:, :full].detach(),
            "features": by_image(features, views)[:, :full].detach(),
        }

    def compare(self, embedded: Embedded, batch: Batch) -> Tensor:
        codes = [self._codes(i, view) for i, view in enumerate(embedded["projected"].unbind(1))]
        scores = list(embedded["scores"].unbind(1))
        return swapped_prediction(scores, codes, self.context.number("temperature"))

    def _scores(self, projected: Tensor) -> Tensor:
        with torch.autocast(projected.device.type, enabled=False):  # exp(score / 0.05) needs digits
            scores: Tensor = self.prototypes(projected)
        return scores

    @torch.no_grad()
    def _codes(self, i: int, projected: Tensor) -> Tensor:
        """This rank's assignments (n, K), balanced over the global batch and a full queue."""
        everyone = gather(projected)
        queue = self.queue[i]
        full = len(queue) > 0 and int(self.queued) >= len(queue)
        balanced = torch.cat([everyone, queue]) if full else everyone
        codes = sinkhorn(
            self._scores(balanced),
            self.context.number("epsilon"),
            self.context.count("sinkhorn_iterations"),
        )
        if len(queue) and self.clock.epoch >= self.context.number("queue_from_epoch"):
            self._enqueue(i, everyone)
        return codes[own_rows(len(projected))]

    def _enqueue(self, i: int, everyone: Tensor) -> None:
        """The newest stand first."""
        length = self.queue.shape[1]
        new = everyone[:length]
        self.queue[i] = torch.cat([new, self.queue[i, : length - len(new)]])
        if i == self.context.global_views - 1:
            self.queued += len(new)

    def after_backward(self) -> None:
        if self.clock.epoch < self.context.number("freeze_prototypes_epochs"):
            self.prototypes.weight.grad = None
