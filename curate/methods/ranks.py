"""Ranks of a distributed training: who this is, and rows of all of them, with their gradients.

Of all processes that there are, those that train may be fewer: `only` says so.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

_group: dist.ProcessGroup | None = None  # of those that train; all processes where None


def only(size: int) -> bool:
    """From here on the first `size` processes are all there are to the functions below; every
    process is to call this. → whether this one is among them."""
    global _group
    if size == all_processes():
        return True
    _group = cast("dist.ProcessGroup", dist.new_group(list(range(size))))
    dist.barrier()  # of all: who left before the others have found each other would be missed
    return dist.get_rank() < size


def group() -> dist.ProcessGroup | None:
    """For whatever talks to the others by itself."""
    return _group


def all_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def world() -> int:
    return all_processes() if _group is None else dist.get_world_size(_group)


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


def reduced(x: Tensor, how: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """All ranks' x into one, their sum where nothing else is said: a tensor of its own. Without a
    gradient."""
    x = x.detach().clone()
    if world() > 1:
        dist.all_reduce(x, how, group=_group)
    return x


def meet() -> None:
    """Until all ranks are here."""
    if world() > 1:
        dist.barrier(group=_group)


def own_rows(n: int) -> slice:
    """Where this rank's n rows stand in what `gather` returns."""
    return slice(rank() * n, (rank() + 1) * n)


class _Gather(torch.autograd.Function):
    """All ranks' rows, in the order of the ranks. The gradient of a row is the sum of those that
    all ranks have for it: without it, negatives on other ranks would be constants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous(), group=_group)
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A copy: autograd may hand the same tensor to others
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=_group)
        return gradient[own_rows(ctx.rows)]


def gather(x: Tensor) -> Tensor:
    """x (n, …) of each rank → (world · n, …), differentiable."""
    if world() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered
