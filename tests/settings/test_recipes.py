"""Recipes, figure by figure, as they are published; each with its source."""

from __future__ import annotations

import pytest

from curate.settings.recipe import Option, Recipe
from curate.settings.recipes import RECIPES

SIMCORE = "github.com/sungnyun/openssl-simcore"


def of(method: str, preset: str) -> Recipe:
    return RECIPES[method][preset]


# Method and preset: rate at its batch, batch, epochs, warm-up epochs, and options
PUBLISHED: dict[tuple[str, str], tuple[float, int, int, float, dict[str, Option]]] = {
    # arXiv:2002.05709, section 2.2, appendix B.9
    ("simclr", "paper"): (4.8, 4096, 1000, 10, {"projection_dim": 128, "temperature": 0.1}),
    # arXiv:2006.07733, section 3.3
    ("byol", "paper"): (
        *(3.2, 4096, 1000, 10),
        {"projection_dim": 256, "hidden_dim": 4096, "momentum": 0.996, "views_apart": True},
    ),
    # arXiv:2011.10566, section 3
    ("simsiam", "paper"): (
        *(0.1, 512, 100, 0),
        {"projection_dim": 2048, "hidden_dim": 512, "views_apart": True, "as_byol": False},
    ),
    # github.com/facebookresearch/swav, scripts/swav_200ep_bs256_pretrain.sh
    ("swav", "paper"): (
        *(0.6, 256, 200, 0),
        {"epsilon": 0.05, "queue": 3840, "queue_from_epoch": 15, "prototypes": 3000},
    ),
    # the same, scripts/swav_800ep_pretrain.sh
    ("swav", "paper-4096"): (
        *(4.8, 4096, 800, 10),
        {"epsilon": 0.05, "queue": 0, "freeze_prototypes_epochs": 1, "hidden_dim": 2048},
    ),
    # SIMCORE: ssl/swav.py, util/sampling.py
    ("swav", "simcore"): (
        *(0.1, 512, 5000, 0),
        {
            **{"hidden_dim": 4096, "projection_dim": 2048, "epsilon": 0.02, "prototypes": 100},
            **{"queue": 0, "freeze_prototypes_epochs": 10, "temperature": 0.1},
        },
    ),
    # SIMCORE: ssl/byol.py, ssl/simsiam.py
    ("byol", "simcore"): (
        *(0.1, 512, 5000, 0),
        {"projection_dim": 256, "hidden_dim": 4096, "momentum": 0.996, "views_apart": False},
    ),
    ("simsiam", "simcore"): (
        *(0.1, 512, 5000, 0),
        {"projection_dim": 256, "hidden_dim": 4096, "as_byol": True, "views_apart": False},
    ),
    # arXiv:2104.14294, section 3.2 and its code's defaults
    ("dino", "paper"): (
        *(2e-3, 1024, 100, 10),
        {"norm_last_layer": True, "teacher_warmup_epochs": 30, "freeze_last_layer_epochs": 1},
    ),
    # SIMCORE: ssl/dino.py, util/sampling.py
    ("dino", "simcore"): (
        *(1e-3, 512, 5000, 100),
        {
            **{"norm_last_layer": False, "teacher_warmup_epochs": 2000},
            **{"freeze_last_layer_epochs": 10, "projection_dim": 65_536},
        },
    ),
    # arXiv:2111.06377, appendix A.1
    ("mae", "paper"): (2.4e-3, 4096, 800, 40, {"mask_ratio": 0.75, "decoder_depth": 8}),
    # SIMCORE: util/sampling.py
    ("mae", "simcore"): (3e-4, 512, 5000, 100, {"mask_ratio": 0.75, "decoder_dim": 512}),
    # github.com/facebookresearch/dinov2, dinov2/configs/ssl_default_config.yaml
    ("dinov2", "paper"): (
        *(4e-3, 1024, 100, 10),
        {
            **{"momentum": 0.992, "teacher_temperature": 0.04, "teacher_temperature_end": 0.07},
            **{"teacher_warmup_epochs": 30, "projection_dim": 65_536, "bottleneck_dim": 256},
            **{"mask_probability": 0.5, "mask_ratio_min": 0.1, "mask_ratio_max": 0.5},
            **{"koleo_weight": 0.1, "ibot_weight": 1.0, "drop_path": 0.3, "hidden_dim": 2048},
        },
    ),
    # arXiv:2101.04731, section 4.1; github.com/jacobswan1/SEED, tools/opts.py, but the temperature
    # of the teacher, 1e-4 there
    ("distill", "seed"): (0.03, 256, 200, 0, {"queue": 65_536, "student_temperature": 0.2}),
}


@pytest.mark.parametrize(("method", "preset"), PUBLISHED)
def test_as_published(method: str, preset: str) -> None:
    recipe = of(method, preset)
    rate, batch, epochs, warmup, options = PUBLISHED[method, preset]
    optimizer = recipe.optimizer
    assert (optimizer.learning_rate, recipe.batch_size, recipe.epochs) == (rate, batch, epochs)
    assert optimizer.warmup_epochs == warmup
    assert {name: recipe.options[name] for name in options} == options


def test_crops_of_byol_dino_and_mae_are_bicubic() -> None:
    bicubic = {
        (method, preset)
        for method, presets in RECIPES.items()
        for preset, recipe in presets.items()
        if all(view.bicubic for view in recipe.views)
    }
    assert bicubic == {
        *(("byol", "paper"), ("dino", "paper"), ("dinov2", "paper")),
        *(("mae", "paper"), ("mae", "simcore")),
    }


def test_what_binds_all_weights() -> None:
    """SwAV's LARC is around biases and norms too; DINO clips each weight's gradient by itself."""
    recipes = {(m, p): r for m, presets in RECIPES.items() for p, r in presets.items()}
    adapting = {name for name, recipe in recipes.items() if recipe.optimizer.adapt_all}
    assert adapting == {("swav", "paper"), ("swav", "paper-4096")}
    each = {name for name, recipe in recipes.items() if recipe.optimizer.clip_each}
    assert each == {("dino", "paper"), ("dino", "simcore")}
    assert {recipes[name].optimizer.clip_gradient for name in each} == {3.0}
