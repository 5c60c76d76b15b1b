"""A worker's batch worked off in parts, for the memory of one, with the loss of all.

GradCache, Gao et al. 2021, arXiv:2101.06983: what the parts are embedded as is found without a
gradient; the loss, of all of it, says how each of these is to change; then each part is embedded
again, and passes that on to the weights. No Ray, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from curate.methods.base import Batch, Embedded, Method, by_view

# Around all that is done for a part, by its number: what it draws at random must be the same twice
Around = Callable[[int], AbstractContextManager[object]]


def backward_in_parts(
    method: Method,
    wrapped: nn.Module,
    parts: Sequence[Callable[[], Batch]],
    whole: Batch,
    around: Around,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> tuple[Tensor, Tensor]:
    """→ the loss and the features (V·n, D); the gradients are in the weights, which had none.

    wrapped: the method, or DDP around it. parts: each makes its part of the batch, the same each
    time. whole: the batch without its views. scale: of the loss, as fp16 wants it. BatchNorm sees a
    part at a time.
    """
    embedded: list[Embedded] = []
    with torch.no_grad(), _without_averages(method):
        for number, part in enumerate(parts):
            batch = part()
            with around(number):
                embedded.append(method.embed(batch))
    joined = {name: torch.cat([one[name] for one in embedded]) for name in embedded[0]}
    for name, value in joined.items():
        value.requires_grad_(name != "features" and value.is_floating_point())
    with around(len(parts)):
        loss = method.compare(joined, whole)
    scale(loss).backward()
    ends = dict.fromkeys(joined, 0)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        alone = isinstance(wrapped, DistributedDataParallel) and not last
        batch = part()
        with wrapped.no_sync() if alone else nullcontext(), around(number):  # type: ignore[operator]
            _pass_on(wrapped(batch, compared=False), joined, ends)
    return loss.detach(), by_view(joined["features"])


def _pass_on(found: Embedded, joined: Embedded, ends: dict[str, int]) -> None:
    """ends: of each name, the rows that earlier parts had; moves on."""
    outputs, gradients = [], []
    for name, value in found.items():
        start = ends[name]
        ends[name] = start + len(value)
        gradient = joined[name].grad
        if value.requires_grad and gradient is not None:
            outputs.append(value)
            gradients.append(gradient[start : ends[name]])
    torch.autograd.backward(outputs, gradients)


@contextmanager
def _without_averages(method: nn.Module) -> Iterator[None]:
    """BatchNorms' running averages see each part once."""
    tracking = [m for m in method.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
