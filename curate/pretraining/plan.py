"""A training as it will be: settings, the method's recipe, and the size of the set, made one."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import Any

from curate.errors import CurateError
from curate.settings import EncoderSettings, TrainingSettings
from curate.settings.recipes import RECIPES, Optimizer, Option, Recipe, Schedule, View

log = logging.getLogger(__name__)

IMAGENET_IMAGES = 1_281_167


@dataclass(frozen=True)
class TrainingPlan:
    """Every figure that decides the weights that come out."""

    method: str
    preset: str
    options: dict[str, Option]
    views: tuple[View, ...]
    backbone: str
    image_px: int
    small_stem: bool
    images: int
    steps: int  # of the whole training
    epochs: int  # of which the last one may be cut short by `steps`
    batch_size: int  # over all workers
    optimizer: Optimizer
    learning_rate: float  # the peak, at this batch size
    final_learning_rate: float  # as a share of the peak
    weight_decay: float
    weight_decay_end: float | None
    momentum: float
    adam_beta2: float
    nesterov: bool
    warmup_epochs: float
    schedule: Schedule
    clip_gradient: float | None
    precision: str
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches alone: the images left over take their turn in another epoch's order."""
        return self.images // self.batch_size

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def make_plan(
    settings: TrainingSettings,
    encoder: EncoderSettings,
    *,
    images: int,
    open_images: int,
    workers: int,
    section: str,
) -> TrainingPlan:
    """images: in the training set; open_images: of them, from the open set.

    Raises CurateError, naming the key in `section`, for what cannot be.
    """
    preset = settings.preset or next(iter(RECIPES[settings.method]))
    recipe = RECIPES[settings.method][preset]
    batch_size = _batch_size(settings, recipe, images, workers, section)
    learning_rate = settings.learning_rate
    if learning_rate is None:
        learning_rate = recipe.learning_rate * batch_size / recipe.batch_size
    steps_per_epoch = images // batch_size
    epochs = recipe.epochs
    if settings.epochs == "auto":
        epochs = rescaled_epochs(recipe.epochs, open_images)
    elif settings.epochs is not None:
        epochs = settings.epochs
    if settings.steps is not None:
        epochs = math.ceil(settings.steps / steps_per_epoch)
    warmup_epochs = _first(settings.warmup_epochs, recipe.warmup_epochs)
    if settings.warmup_steps is not None:
        warmup_epochs = settings.warmup_steps / steps_per_epoch
    return TrainingPlan(
        method=settings.method,
        preset=preset,
        options=recipe.options | settings.options,
        views=_views(settings, recipe, section),
        backbone=settings.backbone or encoder.backbone,
        image_px=settings.image_px or encoder.image_px,
        small_stem=encoder.small_stem if settings.small_stem is None else settings.small_stem,
        images=images,
        steps=settings.steps or epochs * steps_per_epoch,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=settings.optimizer or recipe.optimizer,
        learning_rate=learning_rate,
        final_learning_rate=recipe.final_learning_rate,
        weight_decay=_first(settings.weight_decay, recipe.weight_decay),
        weight_decay_end=_first(settings.weight_decay_end, recipe.weight_decay_end),
        momentum=_first(settings.momentum, recipe.momentum),
        adam_beta2=recipe.adam_beta2,
        nesterov=recipe.nesterov,
        warmup_epochs=warmup_epochs,
        schedule=settings.schedule or recipe.schedule,
        clip_gradient=_first(settings.clip_gradient, recipe.clip_gradient),
        precision=settings.precision,
        seed=settings.seed,
    )


def rescaled_epochs(epochs: int, open_images: int) -> int:
    """min(E, 100 / (|I| / 1,281,167)): with a large coreset I, the authors train for as many steps
    as 100 epochs of ImageNet take."""
    if not open_images:
        return epochs
    return max(1, min(epochs, round(100 * IMAGENET_IMAGES / open_images)))


def _batch_size(
    settings: TrainingSettings, recipe: Recipe, images: int, workers: int, section: str
) -> int:
    wanted = settings.batch_size or recipe.batch_size
    if wanted % workers:
        raise CurateError(
            f"{section}.batch_size={wanted}: not divisible by {workers} workers; "
            f"set it to {max(1, round(wanted / workers)) * workers}"
        )
    if wanted < 2 * workers:
        raise CurateError(
            f"{section}.batch_size={wanted}: {workers} workers need two images each at least"
        )
    if images < 2 * workers:
        raise CurateError(
            f"{section}: {images} images are too few for {workers} workers; set {section}.workers=1"
            if images >= 2
            else f"{section}: a training set needs two images at least, and has {images}"
        )
    if images < wanted:
        fitting = images // workers * workers
        log.info("pretrain: %d images make batches of %d, not %d", images, fitting, wanted)
        return fitting
    return wanted


def _views(settings: TrainingSettings, recipe: Recipe, section: str) -> tuple[View, ...]:
    views = []
    small = [view for view in recipe.views if view.side < 1]
    if settings.local_views is not None and not small:
        raise CurateError(
            f"{section}.local_views={settings.local_views}: this recipe of {settings.method} has "
            "no small views; leave it out"
        )
    for view in recipe.views:
        changes: dict[str, Any] = {}
        if view.side == 1 and settings.crop_scale:
            changes["scale"] = settings.crop_scale
        if settings.colour_strength is not None:
            changes["jitter"] = tuple(settings.colour_strength * amount for amount in view.jitter)
        if view.side < 1 and settings.local_views is not None:
            changes["count"] = settings.local_views
        changed = dataclasses.replace(view, **changes)
        if changed.count:
            views.append(changed)
    return tuple(views)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
