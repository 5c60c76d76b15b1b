"""Optimisers and their schedules. A rate depends on the step alone: resuming needs no state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.optim import Lars
from torch import nn
from torch.optim import Optimizer

from curate.methods.base import Clock, Method, cosine
from curate.settings.recipe import Optimizer as OptimizerRecipe


def build_optimizer(
    recipe: OptimizerRecipe,
    method: Method,
    shares: Mapping[int, float] | None = None,
    *,
    fused: bool = False,
) -> Optimizer:
    """shares: id of a weight → what it has of the learning rate, of those that have not all of it.
    fused: one kernel for all weights, which is faster on GPUs.

    AdamW and LARS leave biases and norms out of the decay (and LARS out of its adaptation), as
    the papers that use them do, unless the recipe says otherwise; those that use SGD decay all
    weights."""
    constant = {id(weight) for weight in method.constant_rate()}
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for weight in method.parameters():
        if weight.requires_grad:
            all_are = recipe.name == "sgd" or (recipe.name == "lars" and recipe.adapt_all)
            decayed = all_are or weight.ndim > 1
            share = (shares or {}).get(id(weight), 1.0)
            groups.setdefault((id(weight) in constant, decayed, share), []).append(weight)
    parts: list[dict[str, Any]] = [
        {
            "params": weights,
            "constant": is_constant,
            "decayed": decayed,
            "share": share,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for (is_constant, decayed, share), weights in groups.items()
    ]
    rate, momentum = recipe.learning_rate, recipe.momentum
    if recipe.name == "adamw":
        return torch.optim.AdamW(parts, lr=rate, betas=(momentum, recipe.adam_beta2), fused=fused)
    if recipe.name == "lars":
        # timm's adapts what is decayed by more than nothing
        adapted = [{**part, "always_adapt": part["decayed"]} for part in parts]
        return Lars(adapted, lr=rate, momentum=momentum)
    nesterov = recipe.nesterov and momentum > 0
    return torch.optim.SGD(parts, lr=rate, momentum=momentum, nesterov=nesterov, fused=fused)


def set_rates(recipe: OptimizerRecipe, optimizer: Optimizer, clock: Clock) -> float:
    """Set what this step's clock says; returns the learning rate."""
    rate = learning_rate(recipe, clock)
    decay = recipe.weight_decay
    if recipe.weight_decay_end is not None:
        decay = cosine(decay, recipe.weight_decay_end, clock.progress)
    for group in optimizer.param_groups:
        # Of a checkpoint that was written before there were shares, all have all
        share = group.get("share", 1.0)
        group["lr"] = share * (recipe.learning_rate if group["constant"] else rate)
        group["weight_decay"] = decay if group["decayed"] else 0.0
    return rate


def clip(recipe: OptimizerRecipe, weights: Iterable[nn.Parameter]) -> None:
    """Gradients, to the recipe's norm."""
    if recipe.clip_gradient is None:
        return
    for group in ([weight] for weight in weights) if recipe.clip_each else [weights]:
        nn.utils.clip_grad_norm_(group, recipe.clip_gradient)


def learning_rate(recipe: OptimizerRecipe, clock: Clock) -> float:
    """Linear warm-up from near 0, then the schedule over what is left."""
    peak = recipe.learning_rate
    warmup = min(round(recipe.warmup_epochs * clock.steps_per_epoch), clock.steps)
    if clock.step < warmup:
        return peak * (clock.step + 1) / warmup
    progress = (clock.step - warmup) / max(1, clock.steps - warmup)
    if recipe.schedule == "cosine":
        return cosine(peak, peak * recipe.final_learning_rate_share, progress)
    if recipe.schedule == "step":  # a tenth at 60 % and at 80 %, as MoCo's at 120 and 160 of 200
        return peak * 0.1 ** ((progress >= 0.6) + (progress >= 0.8))
    return peak
