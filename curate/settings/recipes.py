"""How each self-supervised method is trained by those who proposed it, and by SimCore's authors.

RECIPES[method][preset]; a method's first preset is its default. Learning rates stand at the
recipe's own batch size, and grow and shrink with the batch in proportion (Goyal et al. 2017).

"SimCore" below is Kim, Bae, Yun, CVPR 2023, by their code, github.com/sungnyun/openssl-simcore.
"""

from __future__ import annotations

from dataclasses import replace

from curate.settings.recipe import Optimizer, Option, Recipe, View

# SimCore: crop scale (0.2, 1), strong jitter, no blur, for every method with two views
_SIMCORE_VIEW = View(1, scale=(0.2, 1.0))
_TWO_SIMCORE_VIEWS = (replace(_SIMCORE_VIEW, count=2),)
# and one optimiser for all of them: nesterov SGD of 0.1 at 512, down to a thousandth by a cosine
_SIMCORE = Recipe(
    views=_TWO_SIMCORE_VIEWS,
    optimizer=Optimizer(
        "sgd", learning_rate=0.1, weight_decay=1e-4, nesterov=True, final_learning_rate_share=1e-3
    ),
    batch_size=512,
    epochs=5000,
)

# Chen et al. 2020, arXiv:2002.05709, section 2.2 and appendices A, B.9
_SIMCLR = Recipe(
    views=(View(2, blur_p=0.5),),
    # The learning rate is 0.3 · batch / 256
    optimizer=Optimizer("lars", learning_rate=4.8, weight_decay=1e-6, warmup_epochs=10),
    batch_size=4096,
    epochs=1000,
    options={"temperature": 0.1, "projection_dim": 128, "batch_norm": True},
)

# He et al. 2020, arXiv:1911.05722, section 3.3 and its code. There grey comes before the jitter,
# which differs from ours, the other way about, in the effect of the hue alone.
_MOCO_V1 = Recipe(
    views=(View(2, scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0),),
    optimizer=Optimizer("sgd", learning_rate=0.03, weight_decay=1e-4, schedule="step"),
    batch_size=256,
    epochs=200,
    options={
        "temperature": 0.07,
        "queue": 65_536,
        "momentum": 0.999,
        "projection_dim": 128,
        "mlp": False,
    },
)

# Chen et al. 2020, arXiv:2003.04297: an MLP head, blur, cosine schedule
_V2_VIEW = View(2, scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), blur_p=0.5)
_MOCO_V2 = replace(
    _MOCO_V1,
    views=(_V2_VIEW,),
    optimizer=replace(_MOCO_V1.optimizer, schedule="cosine"),
    options={**_MOCO_V1.options, "temperature": 0.2, "mlp": True},
)

# Grill et al. 2020, arXiv:2006.07733, section 3.3 and appendix B; crops are bicubic in both
_BYOL_VIEW = View(1, jitter=(0.4, 0.4, 0.2, 0.1), bicubic=True)
_BYOL = Recipe(
    views=(
        replace(_BYOL_VIEW, blur_p=1.0),
        replace(_BYOL_VIEW, blur_p=0.1, solarize_p=0.2),
    ),
    # The learning rate is 0.2 · batch / 256
    optimizer=Optimizer("lars", learning_rate=3.2, weight_decay=1.5e-6, warmup_epochs=10),
    batch_size=4096,
    epochs=1000,
    options={"momentum": 0.996, "projection_dim": 256, "hidden_dim": 4096, "views_apart": True},
)
# SimCore, ssl/byol.py: both views in one pass
_BYOL_SIMCORE = {**_BYOL.options, "views_apart": False}

# Chen & He 2021, arXiv:2011.10566, section 3 and appendix A; the predictor's rate stays constant
_SIMSIAM = Recipe(
    views=(_V2_VIEW,),
    # The learning rate is 0.05 · batch / 256
    optimizer=Optimizer("sgd", learning_rate=0.1, weight_decay=1e-4),
    batch_size=512,
    epochs=100,
    options={"projection_dim": 2048, "hidden_dim": 512, "views_apart": True, "as_byol": False},
)
# SimCore, ssl/simsiam.py: BYOL without its momentum, heads and loss and all
_SIMSIAM_SIMCORE: dict[str, Option] = {
    "projection_dim": 256,
    "hidden_dim": 4096,
    "views_apart": False,
    "as_byol": True,
}

# Caron et al. 2020, arXiv:2006.09882, appendix A, and the code's recipe for batches of 256. LARC
# is around all weights there, biases and norms among them
_SWAV_VIEW = View(2, scale=(0.14, 1.0), blur_p=0.5)
_SWAV = Recipe(
    views=(_SWAV_VIEW, replace(_SWAV_VIEW, count=6, side=96 / 224, scale=(0.05, 0.14))),
    optimizer=Optimizer(
        "lars",
        learning_rate=0.6,
        weight_decay=1e-6,
        final_learning_rate_share=1e-3,
        adapt_all=True,
    ),
    batch_size=256,
    epochs=200,
    options={
        "temperature": 0.1,
        "epsilon": 0.05,
        "sinkhorn_iterations": 3,
        "prototypes": 3000,
        "queue": 3840,
        "queue_from_epoch": 15,
        "freeze_prototypes_epochs": 1,
        "projection_dim": 128,
        "hidden_dim": 2048,
    },
)

# The same code for batches of 4096: eight times the rate for sixteen times the batch, and no queue
_SWAV_4096 = replace(
    _SWAV,
    optimizer=replace(_SWAV.optimizer, learning_rate=4.8, warmup_epochs=10),
    batch_size=4096,
    epochs=800,
    options={**_SWAV.options, "queue": 0},
)

# SimCore, ssl/swav.py: two views, 100 prototypes, no queue, and wider heads; frozen prototypes of
# util/sampling.py
_SWAV_SIMCORE = {
    **_SWAV.options,
    "projection_dim": 2048,
    "hidden_dim": 4096,
    "epsilon": 0.02,
    "prototypes": 100,
    "queue": 0,
    "freeze_prototypes_epochs": 10,
}

# Caron et al. 2021, arXiv:2104.14294, section 3 and its code
_DINO_VIEW = View(1, scale=(0.4, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), bicubic=True)
_DINO = Recipe(
    views=(
        replace(_DINO_VIEW, blur_p=1.0),
        replace(_DINO_VIEW, blur_p=0.1, solarize_p=0.2),
        replace(_DINO_VIEW, count=8, side=96 / 224, scale=(0.05, 0.4), blur_p=0.5),
    ),
    optimizer=Optimizer(
        "adamw",
        learning_rate=2e-3,  # 0.0005 · batch / 256
        weight_decay=0.04,
        weight_decay_end=0.4,
        warmup_epochs=10,
        final_learning_rate_share=5e-4,
        clip_gradient=3.0,
        clip_each=True,
    ),
    batch_size=1024,
    epochs=100,
    options={
        "student_temperature": 0.1,
        "teacher_temperature": 0.04,
        "teacher_temperature_end": 0.07,
        "teacher_warmup_epochs": 30,
        "momentum": 0.996,
        "center_momentum": 0.9,
        "freeze_last_layer_epochs": 1,
        "projection_dim": 65_536,
        "hidden_dim": 2048,
        "bottleneck_dim": 256,
        "norm_last_layer": True,
        "drop_path": 0.1,
    },
)
# SimCore, ssl/dino.py and util/sampling.py: two views of its own, for 5,000 epochs at 512, of which
# the warm-ups and the frozen layer last a share; what its code leaves to the command, as the rate,
# is the paper's
_DINO_SIMCORE = replace(
    _DINO,
    views=_TWO_SIMCORE_VIEWS,
    optimizer=replace(_DINO.optimizer, learning_rate=1e-3, warmup_epochs=100),
    batch_size=512,
    epochs=5000,
    options={
        **_DINO.options,
        "teacher_warmup_epochs": 2000,
        "freeze_last_layer_epochs": 10,
        "norm_last_layer": False,
    },
)

# Oquab et al. 2023, arXiv:2304.07193, section 4, and its code's default config, but for two things:
# rates are in proportion to the batch here, there to its root, and blocks' rates are equal, there
# each 0.9 of the next one's (`init.layer_decay`)
_DINOV2_VIEW = replace(_DINO_VIEW, scale=(0.32, 1.0))
_DINOV2 = Recipe(
    views=(
        replace(_DINOV2_VIEW, blur_p=1.0),
        replace(_DINOV2_VIEW, blur_p=0.1, solarize_p=0.2),
        replace(_DINOV2_VIEW, count=8, side=96 / 224, scale=(0.05, 0.32), blur_p=0.5),
    ),
    optimizer=replace(
        _DINO.optimizer, learning_rate=4e-3, final_learning_rate_share=2.5e-4, clip_each=False
    ),
    batch_size=1024,
    epochs=100,
    options={
        "student_temperature": 0.1,
        "teacher_temperature": 0.04,
        "teacher_temperature_end": 0.07,
        "teacher_warmup_epochs": 30,
        "momentum": 0.992,
        "freeze_last_layer_epochs": 1,
        "projection_dim": 65_536,
        "hidden_dim": 2048,
        "bottleneck_dim": 256,
        "sinkhorn_iterations": 3,
        "mask_probability": 0.5,
        "mask_ratio_min": 0.1,
        "mask_ratio_max": 0.5,
        "ibot_weight": 1.0,
        "koleo_weight": 0.1,
        "drop_path": 0.3,
    },
)

# He et al. 2022, arXiv:2111.06377, section 4 and appendix A.1
_MAE = Recipe(
    views=(View(1, scale=(0.2, 1.0), jitter_p=0, grey_p=0, bicubic=True),),
    # The learning rate is 1.5e-4 · batch / 256
    optimizer=Optimizer(
        "adamw", learning_rate=2.4e-3, weight_decay=0.05, adam_beta2=0.95, warmup_epochs=40
    ),
    batch_size=4096,
    epochs=800,
    options={
        "mask_ratio": 0.75,
        "normalise_pixels": True,
        "decoder_dim": 512,
        "decoder_depth": 8,
        "decoder_heads": 16,
    },
)

# SimCore, util/transform.py and util/sampling.py: the paper's but for batch, epochs and warm-up
_MAE_SIMCORE = replace(
    _MAE,
    optimizer=replace(_MAE.optimizer, learning_rate=3e-4, warmup_epochs=100),
    batch_size=512,
    epochs=5000,
)

# Fang et al. 2021, arXiv:2101.04731, section 4.1, and its code: MoCo v2's views, of which student
# and teacher see the same one, and its optimiser. The teacher's temperature is the paper's; the
# code's default is 1e-4, which leaves next to nothing but the image itself.
_DISTILL = Recipe(
    views=(replace(_V2_VIEW, count=1),),
    optimizer=_MOCO_V2.optimizer,
    batch_size=256,
    epochs=200,
    options={"queue": 65_536, "student_temperature": 0.2, "teacher_temperature": 0.01},
)

# Hadsell, Chopra, LeCun 2006, equation 4, with pairs from views as in section 3.1.2. The paper's
# small networks say nothing of today's optimisers; these are SimSiam's.
_DRLIM = Recipe(
    views=(_V2_VIEW,),
    optimizer=Optimizer("sgd", learning_rate=0.1, weight_decay=1e-4),
    batch_size=512,
    epochs=100,
    options={"margin": 1.0, "projection_dim": 128, "label_pairs": False},
)

# Dosovitskiy et al. 2014, arXiv:1406.6909, section 2: scaling, translation, colour and contrast of
# one patch; its rotations are left out. Learning rate 0.01, momentum 0.9.
_EXEMPLAR = Recipe(
    views=(View(2, scale=(0.2, 1.0)),),
    optimizer=Optimizer("sgd", learning_rate=0.01, weight_decay=1e-4),
    batch_size=128,
    epochs=200,
    options={},
)

RECIPES: dict[str, dict[str, Recipe]] = {
    "simclr": {
        "paper": _SIMCLR,
        "simcore": replace(
            _SIMCORE, options={"temperature": 0.07, "projection_dim": 128, "batch_norm": False}
        ),
    },
    "moco": {
        "v2": _MOCO_V2,
        "v1": _MOCO_V1,
        # v1's linear head, a short queue, and logits that no temperature divides
        "simcore": replace(
            _SIMCORE, options={**_MOCO_V1.options, "temperature": 1.0, "queue": 1024}
        ),
    },
    "byol": {"paper": _BYOL, "simcore": replace(_SIMCORE, options=_BYOL_SIMCORE)},
    "simsiam": {"paper": _SIMSIAM, "simcore": replace(_SIMCORE, options=_SIMSIAM_SIMCORE)},
    "swav": {
        "paper": _SWAV,
        "paper-4096": _SWAV_4096,
        "simcore": replace(_SIMCORE, options=_SWAV_SIMCORE),
    },
    "dino": {"paper": _DINO, "simcore": _DINO_SIMCORE},
    "dinov2": {"paper": _DINOV2},
    "mae": {"paper": _MAE, "simcore": _MAE_SIMCORE},
    "distill": {"seed": _DISTILL},
    "drlim": {"paper": _DRLIM},
    "exemplar": {"paper": _EXEMPLAR},
}
