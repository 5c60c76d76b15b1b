"""DINO: a student matches its slowly moving teacher, who sees the views of full size alone.

Caron et al. 2021, arXiv:2104.14294.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from curate.methods.base import (
    Batch,
    Clock,
    Context,
    Embedded,
    Method,
    by_image,
    by_size,
    cosine,
    follow,
    momentum_copy,
)
from curate.methods.ranks import reduced, world


def distillation(
    student: list[Tensor],
    teacher: list[Tensor],
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Equation 3: each of the student's views learns from each of the teacher's but its own.

    student: (n, K) of every view; teacher: (n, K) of those of full size, the first ones.
    """
    total, terms = student[0].new_zeros((), dtype=torch.float32), 0
    for i, output in enumerate(teacher):
        wanted = F.softmax((output.float() - center) / teacher_temperature, dim=1).detach()
        for v, view in enumerate(student):
            if v != i:
                given = F.log_softmax(view.float() / student_temperature, dim=1)
                total = total - (wanted * given).sum(1).mean()
                terms += 1
    return total / terms


class Head(nn.Module):
    """Three layers, a unit bottleneck, and prototypes of unit length, which `normed` keeps."""

    def __init__(self, dim: int, hidden: int, bottleneck: int, out: int, *, normed: bool) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            *(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = weight_norm(nn.Linear(bottleneck, out, bias=False))
        lengths = self.last.parametrizations.weight.original0
        lengths.data.fill_(1)
        lengths.requires_grad_(not normed)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(F.normalize(self.mlp(x), dim=1))
        return out


class DINO(Method):
    center: Tensor
    teacher_temperature: float

    def __init__(self, backbone: nn.Module, context: Context) -> None:
        super().__init__(backbone, context)
        self.head = Head(
            context.feature_dim,
            *(context.count(k) for k in ("hidden_dim", "bottleneck_dim", "projection_dim")),
            normed=context.flag("norm_last_layer"),
        )
        self.teacher_backbone = momentum_copy(backbone)
        without_drop_path(self.teacher_backbone)
        self.teacher_head = momentum_copy(self.head)
        self.register_buffer("center", torch.zeros(1, context.count("projection_dim")))
        self.teacher_temperature = context.number("teacher_temperature")

    def before_step(self, clock) -> None:  # type: ignore[no-untyped-def]
        super().before_step(clock)
        self.teacher_temperature = teacher_temperature(self.context, clock)

    def embed(self, batch: Batch) -> Embedded:
        full, views = self.context.global_views, len(batch.views)
        features = by_size(self.backbone, batch.views)  # (V·n, D)
        with torch.no_grad():
            seen = self.teacher_head(self.teacher_backbone(torch.cat(batch.views[:full])))
        return {
            "student": by_image(self.head(features), views),
            "teacher": by_image(seen, full),
            "features": by_image(features, views)[:, :full].detach(),
        }

    def compare(self, embedded: Embedded, batch: Batch) -> Tensor:
        seen = embedded["teacher"]
        loss = distillation(
            list(embedded["student"].unbind(1)),
            list(seen.unbind(1)),
            self.center,
            self.context.number("student_temperature"),
            self.teacher_temperature,
        )
        self._move_center(seen.flatten(0, 1))
        return loss

    @torch.no_grad()
    def _move_center(self, seen: Tensor) -> None:
        """Equation 4, over the global batch."""
        mean = reduced(seen.float().mean(0, keepdim=True)) / world()
        # A new tensor: the loss's gradient does not need the old one, but autograd cannot know
        self.center = torch.lerp(mean, self.center, self.context.number("center_momentum"))

    def after_backward(self) -> None:
        if self.clock.epoch < self.context.number("freeze_last_layer_epochs"):
            for weight in self.head.last.parameters():
                weight.grad = None

    def after_step(self) -> None:
        momentum = cosine(self.context.number("momentum"), 1.0, self.clock.progress)
        follow(self.teacher_backbone, self.backbone, momentum)
        follow(self.teacher_head, self.head, momentum)

    def encoder(self) -> nn.Module:
        return self.teacher_backbone  # section 5.2: the better of the two all through training


def teacher_temperature(context: Context, clock: Clock) -> float:
    """Warms up linearly, and stays where it has come to."""
    start, end = (
        context.number(name) for name in ("teacher_temperature", "teacher_temperature_end")
    )
    warmup = context.number("teacher_warmup_epochs")
    return start + (end - start) * (min(1.0, clock.epoch / warmup) if warmup else 0.0)


def without_drop_path(backbone: nn.Module) -> None:
    """A teacher sees with all of its network."""
    for module in backbone.modules():
        if hasattr(module, "drop_prob") and not isinstance(module, nn.Dropout):
            cast("Any", module).drop_prob = 0.0
