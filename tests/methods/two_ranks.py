"""Two steps of every method, by one process with the whole batch or by each of two with half, while
a third is there and does nothing."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from curate.methods import Batch, Clock, Method, simclr
from curate.methods.ranks import gather, group, only, own_rows
from curate.pretraining.accumulate import backward_in_parts
from curate.settings.recipe import Option
from tests.methods.building import SIDE, build, part, random_batch

RANKS = 2
PROCESSES = 3
IMAGES = 8  # in the global batch
STEPS = 2

# Method, preset, options. Queues are in use by the second step: SwAV's, of the first step's
# batch, is full then, and MoCo's wraps around. No weights are frozen in the first epoch.
CASES: dict[str, tuple[str, str | None, dict[str, Option]]] = {
    "simclr": ("simclr", None, {}),
    "simclr-simcore": ("simclr", "simcore", {}),
    "moco": ("moco", None, {"queue": 12, "momentum": 0.9}),
    "moco-short-queue": ("moco", "v1", {"queue": 5, "momentum": 0.9}),
    "byol": ("byol", None, {"momentum": 0.9}),
    "simsiam": ("simsiam", None, {}),
    "swav": (
        "swav",
        None,
        {"queue": IMAGES, "queue_from_epoch": 0, "freeze_prototypes_epochs": 0},
    ),
    "dino": ("dino", None, {"freeze_last_layer_epochs": 0, "momentum": 0.9}),
    "dinov2": ("dinov2", None, {"freeze_last_layer_epochs": 0, "momentum": 0.9}),
    "mae": ("mae", None, {}),
    "distill": ("distill", None, {"queue": 12}),
    "distill-short-queue": ("distill", None, {"queue": 5, "teacher_temperature": 0.1}),
    "drlim": ("drlim", None, {}),
    "drlim-labels": ("drlim", None, {"label_pairs": True}),
    "exemplar": ("exemplar", None, {}),
}


def build_case(case: str) -> Method:
    """BatchNorm is in evaluation mode: its statistics are another matter, of SyncBatchNorm's."""
    name, preset, options = CASES[case]
    return build(name, preset, **options).eval()


def batch_of(case: str, method: Method, step: int) -> Batch:
    """The global batch of a step: rank 0's images, then rank 1's."""
    small = (8, 8) if CASES[case][0] in ("swav", "dino", "dinov2") else ()
    batch = random_batch(IMAGES, (SIDE, SIDE, *small), seed=step, noise=method.noise)
    # Similar pairs are uneven among ranks
    batch.labels.copy_(torch.tensor([0, 0, 0, 1, 1, 2, -1, -1]))
    return batch


def two_steps(method: Method, module: nn.Module, batches: list[Batch]) -> dict[str, Any]:
    """Losses and gradients of each step, and the state in the end. module: the method, or the
    wrapper that averages its gradients."""
    losses: list[Tensor] = []
    gradients: list[dict[str, Tensor]] = []
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        method.before_step(Clock(step, 10, 5))
        loss, _ = module(batch)
        loss.backward()
        method.after_backward()
        losses.append(loss.detach())
        gradients.append(
            {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        )
        optimizer.step()
        method.after_step()
    state = {name: value.clone() for name, value in method.state_dict().items()}
    return {"losses": losses, "gradients": gradients, "state": state}


def one_process(case: str) -> dict[str, Any]:
    method = build_case(case)
    return two_steps(method, method, [batch_of(case, method, step) for step in range(STEPS)])


def one_of_two(case: str) -> dict[str, Any]:
    method = build_case(case)
    rows = own_rows(IMAGES // RANKS)
    batches = [part(batch_of(case, method, step), rows) for step in range(STEPS)]
    return two_steps(method, _averaging(method), batches)


def _averaging(method: Method) -> DistributedDataParallel:
    return DistributedDataParallel(method, process_group=group())


def one_of_two_in_parts(case: str) -> dict[str, Any]:
    """This rank's images in two parts, of one step."""
    method = build_case(case)
    wrapped = _averaging(method)
    n = IMAGES // RANKS
    own = part(batch_of(case, method, 0), own_rows(n))
    method.before_step(Clock(0, 10, 5))
    makers = [partial(part, own, slice(start, start + n // 2)) for start in (0, n // 2)]
    whole = Batch([], own.ids, own.labels, own.noise)
    loss, _ = backward_in_parts(method, wrapped, makers, whole, lambda _: contextlib.nullcontext())
    method.after_backward()
    gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    return {"losses": [loss], "gradients": [gradients]}


def gather_without_sum(x: Tensor) -> Tensor:
    """The usual mistake: the rows of other ranks are constants."""
    everyone = gather(x.detach()).clone()
    everyone[own_rows(len(x))] = x
    return everyone


@contextlib.contextmanager
def constant_negatives() -> Any:
    simclr.gather = gather_without_sum  # type: ignore[attr-defined]
    try:
        yield
    finally:
        simclr.gather = gather  # type: ignore[attr-defined]


def gathered_twice() -> dict[str, Tensor]:
    """Gradients of Σ (gather(a) + gather(b)) · (1 + rank): autograd hands one tensor to both."""
    a, b = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    ((gather(a) + gather(b)) * (1 + dist.get_rank())).sum().backward()
    assert a.grad is not None and b.grad is not None
    return {"a": a.grad, "b": b.grad}


def work(rank: int, folder: str) -> None:
    """One of the processes; what those of the two ranks found is written to the folder."""
    torch.set_num_threads(1)
    init = f"file://{Path(folder) / 'init'}"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=PROCESSES)
    try:
        if not only(RANKS):
            return
        found: dict[str, Any] = {case: one_of_two(case) for case in CASES}
        found |= {f"{case} in parts": one_of_two_in_parts(case) for case in CASES}
        with constant_negatives():
            found["constant negatives"] = one_of_two("simclr")
        found["gathered twice"] = gathered_twice()
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
