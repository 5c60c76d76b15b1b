"""Plans: the papers' figures where the config says nothing, and what it says where it does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from curate.errors import CurateError
from curate.pretraining.job import Job
from curate.pretraining.plan import TrainingPlan, make_plan, rescaled_epochs
from curate.settings import EncoderSettings, OptimizerSettings, TrainingSettings, ViewSettings
from curate.settings.recipes import RECIPES


def plan_of(
    images: int = 100_000,
    open_images: int = 0,
    workers: int = 1,
    encoder: dict[str, Any] | None = None,
    **settings: Any,
) -> TrainingPlan:
    return make_plan(
        TrainingSettings(**settings),
        EncoderSettings(**(encoder or {})),
        images=images,
        open_images=open_images,
        workers=workers,
        section="pretrain",
    )


def error_of(**settings: Any) -> str:
    with pytest.raises(CurateError) as error:
        plan_of(**settings)
    assert "\n" not in str(error.value)
    return str(error.value)


# What the papers state, at their batch sizes
PAPERS: dict[str, dict[str, Any]] = {
    # 0.3 · batch / 256; "trained at batch size 4096 for [up to] 1000 epochs"
    "simclr": {"optimizer": "lars", "rate": 0.3 / 256, "batch": 4096, "warmup": 10},
    "byol": {"optimizer": "lars", "rate": 0.2 / 256, "batch": 4096, "warmup": 10},
    "moco": {"optimizer": "sgd", "rate": 0.03 / 256, "batch": 256, "warmup": 0},
    "simsiam": {"optimizer": "sgd", "rate": 0.05 / 256, "batch": 512, "warmup": 0},
    "swav": {"optimizer": "lars", "rate": 0.6 / 256, "batch": 256, "warmup": 0},
    "dino": {"optimizer": "adamw", "rate": 0.0005 / 256, "batch": 1024, "warmup": 10},
    "mae": {"optimizer": "adamw", "rate": 1.5e-4 / 256, "batch": 4096, "warmup": 40},
}


@pytest.mark.parametrize("method", PAPERS)
@pytest.mark.parametrize("batch_size", [None, 64])
def test_defaults_are_the_papers(method: str, batch_size: int | None) -> None:
    """The first preset; rates grow and shrink with the batch."""
    paper = PAPERS[method]
    plan = plan_of(method=method, batch_size=batch_size)
    assert plan.batch_size == (batch_size or paper["batch"])
    optimizer = plan.recipe.optimizer
    assert optimizer.name == paper["optimizer"] and optimizer.warmup_epochs == paper["warmup"]
    assert optimizer.learning_rate == pytest.approx(paper["rate"] * plan.batch_size)
    assert plan.preset == next(iter(RECIPES[method]))


@pytest.mark.parametrize("method", [m for m, presets in RECIPES.items() if "simcore" in presets])
def test_preset_of_simcores_authors(method: str) -> None:
    plan = plan_of(method=method, preset="simcore")
    assert sum(view.count for view in plan.recipe.views) == (1 if method == "mae" else 2)
    assert {view.scale for view in plan.recipe.views} == {(0.2, 1.0)}
    if method not in ("dino", "mae"):  # which keep their own optimisers
        optimizer = plan.recipe.optimizer
        assert (optimizer.name, optimizer.nesterov, plan.batch_size) == ("sgd", True, 512)
        assert (optimizer.learning_rate, plan.epochs, optimizer.weight_decay) == (0.1, 5000, 1e-4)
        assert optimizer.momentum == 0.9 and optimizer.final_learning_rate_share == 1e-3


def test_what_lasts_some_epochs_lasts_the_same_share_of_fewer() -> None:
    """SimCore's authors: of 5,000 epochs on X and 250,000 images, min(5000, ⌊100 · 1,281,167 / n⌋)
    = 512, with util/sampling.py's figures for them."""
    plan = plan_of(260_000, open_images=250_000, method="dino", preset="simcore", epochs="auto")
    assert plan.epochs == 512
    assert plan.recipe.optimizer.warmup_epochs == pytest.approx(10.24)
    assert plan.recipe.options["teacher_warmup_epochs"] == 204
    assert plan.recipe.options["freeze_last_layer_epochs"] == 1
    plan = plan_of(
        260_000,
        open_images=250_000,
        method="dino",
        preset="simcore",
        epochs="auto",
        options={"teacher_warmup_epochs": 7},
        optimizer={"warmup_epochs": 3},
    )
    assert plan.recipe.options["teacher_warmup_epochs"] == 7
    assert plan.recipe.optimizer.warmup_epochs == 3
    plan = plan_of(260_000, method="swav", preset="simcore", epochs=512)
    assert plan.recipe.options["freeze_prototypes_epochs"] == 10, "only auto rescales"


def test_every_recipe_makes_a_plan() -> None:
    for method, presets in RECIPES.items():
        for preset, recipe in presets.items():
            teacher = {"backbone": "resnet18"} if method == "distill" else None
            plan = plan_of(method=method, preset=preset, teacher=teacher)
            assert plan.recipe.options == recipe.options and plan.recipe.views == recipe.views
            assert json.loads(json.dumps(plan.to_dict()))["method"] == method


@pytest.mark.parametrize(
    ("images", "workers", "batch"),
    [
        (1_281_167, 1, 4096),
        (100_000, 1, 4096),
        (20_000, 1, 2500),
        (20_000, 8, 2496),
        (3_680, 1, 512),
        (300, 4, 300),
    ],
)
def test_a_recipe_made_for_a_million_images_fits_fewer(
    images: int, workers: int, batch: int
) -> None:
    plan = plan_of(images, workers=workers, method="simclr", preset="paper")
    assert plan.batch_size == batch
    assert plan.recipe.optimizer.learning_rate == pytest.approx(4.8 * batch / 4096)
    given = plan_of(images, workers=workers, method="simclr", batch_size=4096)
    assert given.batch_size == min(4096, images), "what is set is as it is set"
    assert plan_of(images, workers=workers, preset="simcore").batch_size == min(512, images)


def test_what_is_set_goes_before_the_recipe() -> None:
    """Zeros too: they are no gaps."""
    optimizer = {
        "name": "sgd",
        "learning_rate": 0.25,
        "weight_decay": 0.0,
        "weight_decay_end": 0.0,
        "momentum": 0.0,
        "nesterov": True,
        "warmup_epochs": 0.0,
        "schedule": "constant",
        "clip_gradient": 1.5,
    }
    sized = {"epochs": 7, "batch_size": 96}
    given = {"precision": "bf16", "seed": 11}
    plan = plan_of(method="dino", optimizer=optimizer, **sized, **given).to_dict()
    assert {key: plan[key] for key in given} == given
    assert {key: plan["recipe"][key] for key in sized} == sized
    assert {key: plan["recipe"]["optimizer"][key] for key in optimizer} == optimizer
    later = {"adam_beta2": 0.0, "final_learning_rate_share": 0.0}
    found = plan_of(method="dino", optimizer=later).recipe.optimizer
    assert (found.adam_beta2, found.final_learning_rate_share, found.name) == (0, 0, "adamw")


def test_nothing_given_is_the_recipes() -> None:
    """A null is a gap, which no figure is."""
    usual = plan_of(method="dino")
    gaps = dict.fromkeys(OptimizerSettings.model_fields), dict.fromkeys(ViewSettings.model_fields)
    assert plan_of(method="dino", optimizer=gaps[0], views=gaps[1]) == usual
    assert plan_of(method="dino", optimizer=None, views=None) == usual


def test_warm_up_by_steps() -> None:
    """Of 100 steps an epoch, over the recipe's own 10 epochs."""
    plan = plan_of(10_000, method="dino", batch_size=100, optimizer={"warmup_steps": 250})
    assert plan.recipe.optimizer.warmup_epochs == 2.5
    none = plan_of(10_000, method="dino", batch_size=100, optimizer={"warmup_steps": 0})
    assert none.recipe.optimizer.warmup_epochs == 0


def test_model_is_the_encoders_unless_it_is_set() -> None:
    encoder = {"backbone": "resnet18", "image_px": 48, "small_stem": True}
    plan = plan_of(encoder=encoder)
    assert (plan.backbone, plan.image_px, plan.small_stem) == ("resnet18", 48, True)
    own = plan_of(encoder=encoder, backbone="resnet50", image_px=64, small_stem=False)
    assert (own.backbone, own.image_px, own.small_stem) == ("resnet50", 64, False)


def test_options_are_merged() -> None:
    usual = plan_of(method="moco").recipe.options
    plan = plan_of(method="moco", options={"temperature": 0.5, "queue": 1024})
    assert plan.recipe.options == {**usual, "temperature": 0.5, "queue": 1024}
    assert usual["temperature"] == 0.2 and usual["queue"] == 65_536
    assert plan_of(method="moco").recipe.options == usual, "and the recipe stays as it was"


# Epochs


@pytest.mark.parametrize(
    ("epochs", "open_images", "expected"),
    [
        # min(E, 100 / (|I| / 1,281,167))
        (5000, 0, 5000),  # the target alone
        (5000, 1000, 5000),  # 128,116.7
        (5000, 25_623, 5000),  # 5,000.07
        (5000, 25_624, 4999),  # 4,999.87
        (5000, 25_630, 4998),  # 4,998.70
        (5000, 128_117, 999),  # 999.99…
        (5000, 1_281_167, 100),  # ImageNet itself
        (100, 1_281_166, 100),
        (5000, 14_197_122, 9),  # 9.02, ImageNet-21k
        (5000, 10**9, 1),  # never none
        (100, 640_583, 100),  # 200, over E
        (200, 960_000, 133),  # 133.45
    ],
)
def test_epochs_by_the_authors_formula(epochs: int, open_images: int, expected: int) -> None:
    assert rescaled_epochs(epochs, open_images) == expected


def test_auto_epochs_are_of_the_open_images_alone() -> None:
    simcore = {"method": "simclr", "preset": "simcore"}
    assert plan_of(200_000, 128_117, epochs="auto", **simcore).epochs == 999
    assert plan_of(200_000, 0, epochs="auto", **simcore).epochs == 5000
    assert plan_of(200_000, 128_117, **simcore).epochs == 5000, "where it is not asked for"
    assert plan_of(200_000, 128_117, epochs=3, **simcore).epochs == 3


# Batches


@pytest.mark.parametrize(
    ("images", "batch_size", "workers", "batches"),
    [
        (1000, 100, 4, (100, 10)),
        (1099, 100, 4, (100, 10)),
        (100, 100, 4, (100, 1)),
        (99, 100, 4, (96, 1)),
        (99, 100, 1, (99, 1)),
        (8, 4096, 4, (8, 1)),
        (2, 2, 1, (2, 1)),
    ],
)
def test_steps(images: int, batch_size: int, workers: int, batches: tuple[int, int]) -> None:
    plan = plan_of(images, workers=workers, batch_size=batch_size, epochs=3)
    assert (plan.batch_size, plan.steps_per_epoch) == batches
    assert plan.steps == 3 * batches[1] and plan.batch_size % workers == 0


def test_rate_is_of_the_batch_that_fits() -> None:
    """SimCore's 0.1 at 512."""
    plan = plan_of(images=300, method="simclr", preset="simcore")
    assert plan.batch_size == 300
    assert plan.recipe.optimizer.learning_rate == pytest.approx(0.1 * 300 / 512)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"batch_size": 100, "workers": 3},
            "pretrain.batch_size=100: not divisible by 3 workers; set it to 99",
        ),
        (
            {"batch_size": 2, "workers": 8},
            "pretrain.batch_size=2: not divisible by 8 workers; set it to 8",
        ),
        (
            {"batch_size": 4, "workers": 4},
            "pretrain.batch_size=4: 4 workers need two images each at least",
        ),
        (
            {"images": 7, "workers": 4},
            "pretrain: 7 images are too few for 4 workers; set pretrain.resources.workers=1",
        ),
        ({"images": 1}, "pretrain: a training set needs two images at least, and has 1"),
    ],
)
def test_batches_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    assert error_of(**settings) == message


# Views


def test_crop_scale_is_of_the_full_size() -> None:
    plan = plan_of(method="swav", views={"crop_scale": (0.3, 0.9)})
    assert [view.scale for view in plan.recipe.views] == [(0.3, 0.9), (0.05, 0.14)]


def test_colour_strength_multiplies_the_jitter() -> None:
    [view] = plan_of(method="simclr", views={"colour_strength": 0.5}).recipe.views
    assert view.jitter == (0.4, 0.4, 0.4, 0.1)
    [view] = plan_of(method="simclr", views={"colour_strength": 0}).recipe.views
    assert view.jitter == (0, 0, 0, 0)


@pytest.mark.parametrize(("count", "expected"), [(None, [2, 6]), (2, [2, 2]), (0, [2])])
def test_local_views(count: int | None, expected: list[int]) -> None:
    plan = plan_of(method="swav", views={"local_views": count})
    assert [view.count for view in plan.recipe.views] == expected


def test_local_views_of_a_recipe_without_any() -> None:
    assert error_of(method="simclr", views={"local_views": 4}) == (
        "pretrain.views.local_views=4: this recipe of simclr has no small views; leave it out"
    )
    assert "recipe of dino" in error_of(method="dino", preset="simcore", views={"local_views": 0})


def test_what_a_domain_has() -> None:
    given = {"flip": False, "vertical_flip": True, "quarter_turns": True, "rotation": 15}
    left_out = {"jitter": False, "grey": False, "blur": False, "solarize": False}
    plan = plan_of(method="dino", views={**given, **left_out})
    for view in plan.recipe.views:
        assert (view.flip_p, view.vertical_flip_p) == (0, 0.5)
        assert (view.quarter_turns, view.rotation) == (True, 15)
        assert (view.jitter_p, view.grey_p, view.blur_p, view.solarize_p) == (0, 0, 0, 0)
    one = plan_of(method="dino", views={"blur": False}).recipe.views[1]
    assert (one.blur_p, one.solarize_p, one.flip_p) == (0, 0.2, 0.5)


@pytest.mark.parametrize(
    ("batch_size", "group", "accumulate", "there", "expected"),
    [
        (512, 8, None, 8, (8, 1)),
        (512, 8, 2, 8, (8, 2)),
        (512, 8, None, 4, (4, 2)),  # twice as many images each, one behind the other
        (512, 8, None, 5, (4, 2)),  # four share them evenly
        (512, 8, 2, 1, (1, 16)),
        (12, 4, None, 3, (3, 2)),  # four images each, in parts that three are room for
        (12, 3, None, 2, (2, 2)),
        (14, 7, None, 2, (1, 7)),  # two would have seven each, which make no parts of two
    ],
)
def test_a_smaller_group_shares_the_same_batch(
    batch_size: int, group: int, accumulate: int | None, there: int, expected: tuple[int, int]
) -> None:
    """In parts that take no more memory than those of the whole group."""
    plan = plan_of(workers=group, batch_size=batch_size, accumulate=accumulate)
    job = Job("pretrain", plan, *[None] * 12, workers=group)  # type: ignore[arg-type]
    ranks, parts = job.shared_by(there)
    assert (ranks, parts) == expected
    assert batch_size % (ranks * parts) == 0
    assert batch_size // ranks // parts <= batch_size // group // (accumulate or 1)
