"""Every figure of every recipe, as before recipes, settings and plans shared one definition.

A figure that changes here changes what a training comes to; it needs a source, and a new line.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import pytest

from curate.pretraining.plan import TrainingPlan, make_plan
from curate.settings import EncoderSettings, TrainingSettings
from curate.settings.recipe import View
from curate.settings.recipes import RECIPES

# Optimizer, learning rate, weight decay and its end, momentum, beta2, nesterov;
# schedule, epochs of warm-up, final share of the rate, norm of the gradients, batch, epochs, steps,
# all for 100,000 images; the same for 300 on four workers: learning rate, batch and steps;
# and a digest of views and options.
FIGURES: dict[tuple[str, str], tuple[Any, ...]] = {
    ("simclr", "paper"): (
        *("lars", 4.8, 1e-06, None, 0.9, 0.999, False),
        *("cosine", 10, 0.0, None, 4096, 1000, 24000),
        *(0.3515625, 300, 1000, "21688a0c9b72"),
    ),
    ("simclr", "simcore"): (
        *("sgd", 0.1, 0.0001, None, 0.9, 0.999, True),
        *("cosine", 0, 0.001, None, 512, 5000, 975000),
        *(0.05859375, 300, 5000, "76971b10f372"),
    ),
    ("moco", "v2"): (
        *("sgd", 0.03, 0.0001, None, 0.9, 0.999, False),
        *("cosine", 0, 0.0, None, 256, 200, 78000),
        *(0.03, 256, 200, "e524827545ea"),
    ),
    ("moco", "v1"): (
        *("sgd", 0.03, 0.0001, None, 0.9, 0.999, False),
        *("step", 0, 0.0, None, 256, 200, 78000),
        *(0.03, 256, 200, "caf4f8b83f3a"),
    ),
    ("moco", "simcore"): (
        *("sgd", 0.1, 0.0001, None, 0.9, 0.999, True),
        *("cosine", 0, 0.001, None, 512, 5000, 975000),
        *(0.05859375, 300, 5000, "18f4a056779a"),
    ),
    ("byol", "paper"): (
        *("lars", 3.2, 1.5e-06, None, 0.9, 0.999, False),
        *("cosine", 10, 0.0, None, 4096, 1000, 24000),
        *(0.234375, 300, 1000, "465df30a3cfb"),
    ),
    ("byol", "simcore"): (
        *("sgd", 0.1, 0.0001, None, 0.9, 0.999, True),
        *("cosine", 0, 0.001, None, 512, 5000, 975000),
        *(0.05859375, 300, 5000, "5563f4c5f90c"),
    ),
    ("simsiam", "paper"): (
        *("sgd", 0.1, 0.0001, None, 0.9, 0.999, False),
        *("cosine", 0, 0.0, None, 512, 100, 19500),
        *(0.05859375, 300, 100, "52e45242fd3b"),
    ),
    ("simsiam", "simcore"): (
        *("sgd", 0.1, 0.0001, None, 0.9, 0.999, True),
        *("cosine", 0, 0.001, None, 512, 5000, 975000),
        *(0.05859375, 300, 5000, "a8472f3c9a02"),
    ),
    ("swav", "paper"): (
        *("lars", 0.6, 1e-06, None, 0.9, 0.999, False),
        *("cosine", 0, 0.001, None, 256, 200, 78000),
        *(0.6, 256, 200, "20fefe7ae588"),
    ),
    ("swav", "paper-4096"): (
        *("lars", 4.8, 1e-06, None, 0.9, 0.999, False),
        *("cosine", 10, 0.001, None, 4096, 800, 19200),
        *(0.3515625, 300, 800, "6cac5ae20b58"),
    ),
    ("swav", "simcore"): (
        *("sgd", 0.1, 0.0001, None, 0.9, 0.999, True),
        *("cosine", 0, 0.001, None, 512, 5000, 975000),
        *(0.05859375, 300, 5000, "7be5383e91a8"),
    ),
    ("dino", "paper"): (
        *("adamw", 0.002, 0.04, 0.4, 0.9, 0.999, False),
        *("cosine", 10, 0.0005, 3.0, 1024, 100, 9700),
        *(0.0005859375, 300, 100, "8a793d02f90c"),
    ),
    ("dino", "simcore"): (
        *("adamw", 0.001, 0.04, 0.4, 0.9, 0.999, False),
        *("cosine", 100, 0.0005, 3.0, 512, 5000, 975000),
        *(0.0005859375, 300, 5000, "405c273d1ab7"),
    ),
    ("dinov2", "paper"): (
        *("adamw", 0.004, 0.04, 0.4, 0.9, 0.999, False),
        *("cosine", 10, 0.00025, 3.0, 1024, 100, 9700),
        *(0.001171875, 300, 100, "bb10c6cc4998"),
    ),
    ("mae", "paper"): (
        *("adamw", 0.0024, 0.05, None, 0.9, 0.95, False),
        *("cosine", 40, 0.0, None, 4096, 800, 19200),
        *(0.00017578125, 300, 800, "9e95fd644c9c"),
    ),
    ("mae", "simcore"): (
        *("adamw", 0.0003, 0.05, None, 0.9, 0.95, False),
        *("cosine", 100, 0.0, None, 512, 5000, 975000),
        *(0.00017578125, 300, 5000, "9e95fd644c9c"),
    ),
    ("distill", "seed"): (
        *("sgd", 0.03, 0.0001, None, 0.9, 0.999, False),
        *("cosine", 0, 0.0, None, 256, 200, 78000),
        *(0.03, 256, 200, "b5b89d577143"),
    ),
    ("drlim", "paper"): (
        *("sgd", 0.1, 0.0001, None, 0.9, 0.999, False),
        *("cosine", 0, 0.0, None, 512, 100, 19500),
        *(0.05859375, 300, 100, "97463160d0a9"),
    ),
    ("exemplar", "paper"): (
        *("sgd", 0.01, 0.0001, None, 0.9, 0.999, False),
        *("cosine", 0, 0.0, None, 128, 200, 156200),
        *(0.01, 128, 400, "b27f4ee5c005"),
    ),
}


def plan_of(method: Any, preset: str, images: int, workers: int) -> TrainingPlan:
    return make_plan(
        TrainingSettings(
            method=method,
            preset=preset,
            teacher={"backbone": "resnet18"} if method == "distill" else None,
        ),
        EncoderSettings(),
        images=images,
        open_images=0,
        workers=workers,
        section="pretrain",
    )


def own_of(view: View) -> dict[str, Any]:
    """Without what no recipe has."""
    fields = asdict(view)
    for name in ("vertical_flip_p", "quarter_turns", "rotation"):
        assert not fields.pop(name)
    return fields


def test_every_recipe_has_its_figures_here() -> None:
    assert list(FIGURES) == [(m, preset) for m, presets in RECIPES.items() for preset in presets]


@pytest.mark.parametrize(("method", "preset"), FIGURES)
def test_figures_stay(method: str, preset: str) -> None:
    plan, small = plan_of(method, preset, 100_000, 1), plan_of(method, preset, 300, 4)
    o = plan.recipe.optimizer
    drawn = [[own_of(view) for view in plan.recipe.views], plan.recipe.options]
    found = (
        *(o.name, o.learning_rate, o.weight_decay, o.weight_decay_end, o.momentum, o.adam_beta2),
        *(o.nesterov, o.schedule, o.warmup_epochs, o.final_learning_rate_share, o.clip_gradient),
        *(plan.batch_size, plan.epochs, plan.steps),
        *(small.recipe.optimizer.learning_rate, small.batch_size, small.steps),
        hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:12],
    )
    assert found == FIGURES[method, preset]
