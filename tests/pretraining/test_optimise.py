"""Learning rates and weight decays, step by step, and which weights they are of."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import pytest
import torch
from timm.optim import Lars
from torch import nn

from curate.methods import METHODS, Clock, Method
from curate.pretraining.optimise import build_optimizer, clip, learning_rate, set_rates
from curate.pretraining.plan import make_plan
from curate.settings import EncoderSettings, TrainingSettings
from curate.settings.recipe import Optimizer
from tests.methods.building import build, random_batch

PEAK = 0.8


def teacher_for(method: str) -> dict[str, str] | None:
    return {"backbone": "resnet18"} if METHODS[method].needs_teacher else None


def recipe_of(method: Any = "simclr", preset: str | None = None, **optimizer: Any) -> Optimizer:
    optimizer = {"learning_rate": PEAK, **optimizer}
    return make_plan(
        TrainingSettings(
            method=method, preset=preset, optimizer=optimizer, teacher=teacher_for(method)
        ),
        EncoderSettings(),
        images=10_000,
        open_images=0,
        workers=1,
        section="pretrain",
    ).recipe.optimizer


def rates(recipe: Optimizer, steps: int, steps_per_epoch: int = 10) -> list[float]:
    return [learning_rate(recipe, Clock(step, steps, steps_per_epoch)) for step in range(steps)]


# Rates


def test_warm_up_and_cosine() -> None:
    """2 epochs of 10 steps up to the peak, then 80 steps along half a cosine down to a tenth."""
    recipe = recipe_of(warmup_epochs=2, schedule="cosine", final_learning_rate_share=0.1)
    found = rates(recipe, 100)
    assert found[:20] == pytest.approx([PEAK * (step + 1) / 20 for step in range(20)])
    assert found[20] == PEAK == max(found)
    assert found[60] == pytest.approx((PEAK + PEAK / 10) / 2), "half-way"
    # cos(π / 4) at a quarter
    assert found[40] == pytest.approx(PEAK * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))
    assert found[99] == pytest.approx(PEAK * (0.1 + 0.9 * (1 - math.cos(math.pi / 80)) / 2))
    assert learning_rate(recipe, Clock(100, 100, 10)) == pytest.approx(PEAK / 10)
    assert found[20:] == sorted(found[20:], reverse=True)


def test_cosine_to_nothing_without_warm_up() -> None:
    recipe = recipe_of(method="simsiam", warmup_epochs=0)
    found = rates(recipe, 100)
    assert found[0] == PEAK and found[50] == pytest.approx(PEAK / 2)
    assert found[75] == pytest.approx(PEAK * (1 - math.sqrt(0.5)) / 2)
    assert learning_rate(recipe, Clock(100, 100, 10)) == pytest.approx(0, abs=1e-12)


def test_step_schedule() -> None:
    """MoCo's: of 200 epochs, a tenth from the 120th, a hundredth from the 160th."""
    recipe = recipe_of(method="moco", preset="v1")
    found = rates(recipe, 2000)
    assert found[0] == found[1199] == PEAK
    assert found[1200] == found[1599] == pytest.approx(PEAK / 10)
    assert found[1600] == found[1999] == pytest.approx(PEAK / 100)


def test_constant_schedule() -> None:
    found = rates(recipe_of(schedule="constant", warmup_epochs=0.5), 100)
    assert found[:5] == pytest.approx([PEAK / 5 * n for n in (1, 2, 3, 4, 5)])
    assert set(found[4:]) == {PEAK}


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_training_that_ends_before_its_warm_up(schedule: str) -> None:
    """Rates rise to the peak at the last step, and are never nothing."""
    found = rates(recipe_of(schedule=schedule, warmup_epochs=40), 20)
    assert found == pytest.approx([PEAK * (step + 1) / 20 for step in range(20)])


# What they are set for


def groups_of(recipe: Optimizer, method: Method) -> dict[int, dict[str, Any]]:
    """Weight → its group, for every weight that is trained; each in one."""
    optimizer = build_optimizer(recipe, method)
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    assert len({id(weight) for weight in weights}) == len(weights)
    trained = [weight for weight in method.parameters() if weight.requires_grad]
    assert {id(weight) for weight in weights} == {id(weight) for weight in trained}
    return {id(weight): group for group in optimizer.param_groups for weight in group["params"]}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_weights_that_decay(name: str, optimizer: str) -> None:
    """Biases and norms do with SGD alone, and with the LARS of SwAV's code."""
    method = build(name)
    recipe = recipe_of(method=name, name=optimizer, weight_decay=0.01)
    groups = groups_of(recipe, method)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
    spared = {
        id(weight)
        for module in method.modules()
        for name, weight in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, norms)
    }
    assert spared & set(groups), "or this shows nothing"
    for weight, group in groups.items():
        adapted = optimizer == "lars" and recipe.adapt_all
        none = weight in spared and optimizer != "sgd" and not adapted
        assert group["weight_decay"] == (0 if none else 0.01)


@pytest.mark.parametrize("adapt_all", [False, True])
@pytest.mark.parametrize("decay", [0.0, 1e-6])
def test_lars_adapts_at_any_decay(decay: float, adapt_all: bool) -> None:
    """You et al. 2017, equation 6: a weight moves by rate · 0.001 · ‖w‖ / (‖g‖ + β ‖w‖) times its
    gradient; those that are not adapted by rate times theirs."""
    method = build("simclr")
    optimizer = build_optimizer(
        recipe_of(name="lars", weight_decay=decay, momentum=0.0, adapt_all=adapt_all), method
    )
    rng = torch.Generator().manual_seed(1)
    before = {}
    for name, weight in method.named_parameters():
        if weight.requires_grad:
            weight.grad = torch.randn(weight.shape, generator=rng)
            before[name] = (weight, weight.detach().clone(), weight.grad.clone())
    optimizer.step()
    for weight, old, gradient in before.values():
        is_adapted = adapt_all or weight.ndim > 1
        step = gradient + (decay * old if is_adapted else 0)
        if is_adapted and old.norm() > 0:
            step = step * 0.001 * old.norm() / (gradient.norm() + decay * old.norm() + 1e-8)
        torch.testing.assert_close(weight.detach(), old - PEAK * step, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("each", [False, True])
def test_gradients_are_clipped(each: bool) -> None:
    weights = [nn.Parameter(torch.zeros(n)) for n in (3, 4, 5)]
    gradients = [torch.full((n,), size) for n, size in ((3, 10.0), (4, 0.1), (5, 2.0))]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()
    clip(recipe_of(clip_gradient=1.5, clip_each=each), weights)
    together = math.sqrt(sum(float(gradient.norm()) ** 2 for gradient in gradients))
    for weight, gradient in zip(weights, gradients, strict=True):
        norm = float(gradient.norm()) if each else together
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, gradient * min(1, 1.5 / norm), rtol=1e-5, atol=1e-6)
    clip(recipe_of("simclr"), weights)  # of a recipe without
    assert weights[0].grad is not None and float(weights[0].grad.norm()) > 0


def test_optimizers_have_the_recipes_figures() -> None:
    method = build("simclr")
    sgd = build_optimizer(recipe_of(name="sgd", momentum=0.7), method)
    assert isinstance(sgd, torch.optim.SGD)
    assert {(g["momentum"], g["nesterov"], g["lr"]) for g in sgd.param_groups} == {
        (0.7, False, PEAK)
    }
    nesterov = build_optimizer(recipe_of(preset="simcore"), method)
    assert {group["nesterov"] for group in nesterov.param_groups} == {True}
    without = build_optimizer(recipe_of(preset="simcore", momentum=0.0), method)
    assert {group["nesterov"] for group in without.param_groups} == {False}
    adamw = build_optimizer(recipe_of(method="mae"), build("mae"))
    assert isinstance(adamw, torch.optim.AdamW)
    assert {group["betas"] for group in adamw.param_groups} == {(0.9, 0.95)}
    lars = build_optimizer(recipe_of(), method)
    assert isinstance(lars, Lars)
    assert {group["momentum"] for group in lars.param_groups} == {0.9}


def test_rates_reach_every_group() -> None:
    recipe = recipe_of(method="simclr", warmup_epochs=1)
    optimizer = build_optimizer(recipe, build("simclr"))
    for step in (0, 5, 10, 50, 99):
        clock = Clock(step, 100, 10)
        assert set_rates(recipe, optimizer, clock) == learning_rate(recipe, clock)
        assert {group["lr"] for group in optimizer.param_groups} == {learning_rate(recipe, clock)}


def test_predictor_of_simsiam_keeps_its_rate() -> None:
    recipe = recipe_of(method="simsiam")
    method = build("simsiam")
    optimizer = build_optimizer(recipe, method)
    predictor = {id(weight) for weight in method.predictor.parameters()}  # type: ignore[union-attr, operator]
    for step in (0, 50, 99):
        rate = set_rates(recipe, optimizer, Clock(step, 100, 10))
        for group in optimizer.param_groups:
            inside = {id(weight) in predictor for weight in group["params"]}
            assert len(inside) == 1
            assert group["lr"] == (PEAK if inside == {True} else rate)
    assert rate < PEAK / 100
    constant = set(map(id, chain(*(g["params"] for g in optimizer.param_groups if g["constant"]))))
    assert constant == predictor


def test_weight_decay_of_dino_grows() -> None:
    """From 0.04 to 0.4 by a cosine, and of what decays alone."""
    recipe = recipe_of(method="dino")
    optimizer = build_optimizer(recipe, build("dino"))
    expected = {0: 0.04, 25: 0.4 - 0.36 * (1 + math.sqrt(0.5)) / 2, 50: 0.22, 100: 0.4}
    for step, decay in expected.items():
        set_rates(recipe, optimizer, Clock(step, 100, 10))
        found = {group["decayed"]: group["weight_decay"] for group in optimizer.param_groups}
        assert found == {True: pytest.approx(decay), False: 0}


def test_a_state_that_was_saved_takes_new_rates() -> None:
    """The optimiser's state holds its groups too; what the clock says goes before it."""
    recipe = recipe_of(method="simsiam")
    method, later = build("simsiam"), build("simsiam", seed=1)
    optimizer = build_optimizer(recipe, method)
    set_rates(recipe, optimizer, Clock(0, 100, 10))
    method(random_batch(6))[0].backward()
    optimizer.step()
    again = build_optimizer(recipe, later)
    again.load_state_dict(optimizer.state_dict())
    rate = set_rates(recipe, again, Clock(80, 100, 10))
    assert {group["constant"]: group["lr"] for group in again.param_groups} == {
        True: PEAK,
        False: rate,
    }
    assert rate < PEAK / 2
