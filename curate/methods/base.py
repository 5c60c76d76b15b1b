"""What every self-supervised method is: a module whose forward pass gives its loss on a batch.

A method owns the backbone and whatever it trains beside it. It knows neither Ray nor files. What it
does has two parts: `embed` sees one image at a time, but for BatchNorm, and uses all that is
trained; `compare` makes a loss of what came of all images, and moves queues and centres.

Losses are those of the *global* batch: what a rank computes, averaged over ranks as DDP averages
gradients, is the loss and the gradient that one process with the whole batch would have. So it is
for a rank that embeds its images a part at a time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from curate.settings.recipe import Option


@dataclass(frozen=True)
class Batch:
    """One rank's part of a batch: N images, each in several views."""

    views: list[Tensor]  # each (N, 3, px, px), normalised; of full size first, then small ones
    ids: Tensor  # (N,) place of the image in the training set
    labels: Tensor  # (N,) class number, -1 where unknown
    noise: Tensor  # (N, L) uniform in 0…1, drawn with the views; L is the method's `noise`


Embedded = dict[str, Tensor]


@dataclass(frozen=True)
class Clock:
    """Where training stands: `step` of `steps`, counted from 0."""

    step: int
    steps: int
    steps_per_epoch: int

    @property
    def progress(self) -> float:
        return self.step / self.steps

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch


@dataclass(frozen=True)
class Teacher:
    """A frozen network, and how it wants the images that the student sees."""

    module: nn.Module  # (N, 3, px, px) → (N, feature_dim); in evaluation mode
    feature_dim: int
    px: int
    # From the student's normalised pixels to its own: x · scale + shift, each (1, 3, 1, 1)
    scale: Tensor
    shift: Tensor

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, 3, ·, ·) as the student sees them → (N, feature_dim)."""
        images = images * self.scale + self.shift
        if images.shape[-1] != self.px:
            images = F.interpolate(images, size=self.px, mode="bicubic", antialias=True)
        features: Tensor = self.module(images)
        return features


@dataclass(frozen=True)
class Context:
    """What a method is built for."""

    feature_dim: int  # of the backbone
    images: int  # in the training set
    view_px: int  # side of a view of full size
    global_views: int  # of full size
    options: dict[str, Option]
    begun: bool = False  # the backbone has weights to begin from, which are to be left as they are
    teacher: Teacher | None = None  # of the method that needs one

    def number(self, name: str) -> float:
        return float(self.options[name])

    def count(self, name: str) -> int:
        return int(self.options[name])

    def flag(self, name: str) -> bool:
        return bool(self.options[name])


class Method(nn.Module):
    """The protocol. Subclasses set what they need in __init__, and implement embed and compare.

    __init__ raises ValueError for options that cannot be.
    """

    noise = 0  # how many random numbers an image
    needs_labels = False
    needs_vit = False
    needs_teacher = False

    def __init__(self, backbone: nn.Module, context: Context) -> None:
        super().__init__()
        self.backbone = backbone
        self.context = context
        self.clock = Clock(0, 1, 1)

    def before_step(self, clock: Clock) -> None:
        """Schedules of the method's own. An override calls this one first."""
        self.clock = clock

    def embed(self, batch: Batch) -> Embedded:
        """What `compare` needs to know of some images, and `features` (n, V, D) of the backbone, of
        some of the views, to be watched.

        Tensors whose rows are the images', in one order for all of them: those of two batches, one
        under the other, are those of both.
        """
        raise NotImplementedError

    def compare(self, embedded: Embedded, batch: Batch) -> Tensor:
        """→ the loss. batch: its views may be absent."""
        raise NotImplementedError

    def forward(self, batch: Batch, compared: bool = True) -> Any:
        """→ the loss, and the features (V·n, D); or, if nothing is to be compared, what `embed`
        gives: DDP wants to be told of all that is done with its weights."""
        embedded = self.embed(batch)
        if not compared:
            return embedded
        return self.compare(embedded, batch), by_view(embedded["features"])

    def after_backward(self) -> None:
        """Before the gradients are clipped and applied."""

    def after_step(self) -> None:
        """Once the weights have moved: momentum encoders follow."""

    def constant_rate(self) -> Iterable[nn.Parameter]:
        """Weights whose learning rate no schedule lowers."""
        return ()

    def encoder(self) -> nn.Module:
        """What is kept of the training."""
        return self.backbone


def mlp(
    *dims: int, batch_norm: bool = True, last_norm: bool = False, last_scale: bool = False
) -> nn.Sequential:
    """Linear layers with ReLU between; batch_norm: also BatchNorm before each ReLU; last_norm:
    BatchNorm after the last layer, without shift, and with a scale where last_scale says so."""
    layers: list[nn.Module] = []
    for i, (low, high) in enumerate(pairwise(dims)):
        last = i == len(dims) - 2
        normed = last_norm if last else batch_norm
        layers.append(nn.Linear(low, high, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(high, affine=not last or last_scale))
            if last and last_scale:
                layers[-1].bias.requires_grad_(False)
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def of_one_size(views: Sequence[Tensor]) -> Iterator[slice]:
    """Runs of views of the same shape, to be worked on in one go."""
    start = 0
    for _, run in groupby(views, key=lambda view: view.shape):
        stop = start + len(list(run))
        yield slice(start, stop)
        start = stop


def by_size(backbone: nn.Module, views: list[Tensor]) -> Tensor:
    """Features of all views in their order, those of one size in one pass."""
    return torch.cat([backbone(torch.cat(views[run])) for run in of_one_size(views)])


def by_image(x: Tensor, views: int) -> Tensor:
    """(V·n, …), view by view → (n, V, …)."""
    return x.unflatten(0, (views, -1)).transpose(0, 1)


def by_view(x: Tensor) -> Tensor:
    """(n, V, …) → (V·n, …), view by view."""
    return x.transpose(0, 1).flatten(0, 1)


def in_turn(module: nn.Module, views: Sequence[Tensor], apart: bool) -> Tensor:
    """Features of some views, one after the other. apart: a pass for each, so that BatchNorm has
    statistics of each; else one pass for all."""
    if apart:
        return torch.cat([module(view) for view in views])
    features: Tensor = module(torch.cat(list(views)))
    return features


def momentum_copy(module: nn.Module) -> nn.Module:
    """A copy that no gradient moves; `follow` does."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """slow ← momentum · slow + (1 - momentum) · fast, weights alone: buffers are each one's own."""
    slow_weights = [p.data for p in slow.parameters()]
    fast_weights = [p.data for p in fast.parameters()]
    torch._foreach_lerp_(slow_weights, fast_weights, 1 - momentum)


def through_blocks(vit: Any, tokens: Tensor, **more: Any) -> Tensor:
    """A transformer's blocks one after the other, as its own forward pass has them."""
    again = vit.grad_checkpointing and torch.is_grad_enabled()
    for block in vit.blocks:
        tokens = (
            checkpoint(block, tokens, use_reentrant=False, **more)
            if again
            else block(tokens, **more)
        )
    return tokens


@torch.no_grad()
def enqueue(queue: Tensor, end: Tensor, rows: Tensor) -> None:
    """Rows take the place of the queue's oldest, in place; they may be more than it has.

    queue (K, d); end (): where the newest ends.
    """
    rows = rows[-len(queue) :]
    place = (end + torch.arange(len(rows), device=rows.device)) % len(queue)
    queue[place] = rows
    end.copy_((end + len(rows)) % len(queue))


def cosine(start: float, end: float, progress: float) -> float:
    """From start to end along half a cosine; progress in 0…1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in float32 whatever autocast made of them."""
    return F.normalize(x.float(), dim=1)
