"""Ranks of a distributed training: who this is, and rows of all of them, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


def own_rows(n: int) -> slice:
    """Where this rank's n rows stand in what `gather` returns."""
    return slice(rank() * n, (rank() + 1) * n)


class _Gather(torch.autograd.Function):
    """All ranks' rows, in the order of the ranks. The gradient of a row is the sum of those that
    all ranks have for it: without it, negatives on other ranks would be constants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A copy: autograd may hand the same tensor to others
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[own_rows(ctx.rows)]


def gather(x: Tensor) -> Tensor:
    """x (n, …) of each rank → (world · n, …), differentiable."""
    if world() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered
