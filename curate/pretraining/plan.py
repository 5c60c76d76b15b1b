"""A training as it will be: settings, the method's recipe, and the size of the set, made one."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import Any

from curate.errors import CurateError
from curate.pretraining.adapt import Beginning
from curate.settings import EncoderSettings, OptimizerSettings, TrainingSettings
from curate.settings.recipe import Optimizer, Recipe, View
from curate.settings.recipes import RECIPES
from curate.storage import Document

log = logging.getLogger(__name__)

IMAGENET_IMAGES = 1_281_167
# A recipe's batch is no larger than leaves an epoch so many steps, unless it is small anyway
STEPS_OF_EPOCH = 8
SMALL_BATCH = 512


@dataclass(frozen=True)
class Taught:
    """By a frozen network."""

    weights: str  # their sha256
    image_px: int  # that it sees


@dataclass(frozen=True)
class TrainingPlan:
    """Every figure that decides the weights that come out."""

    method: str
    preset: str
    recipe: Recipe  # with what the config says instead, and made to fit the set
    backbone: str
    image_px: int
    small_stem: bool
    images: int
    steps: int  # of the whole training; they may cut the last epoch short
    precision: str
    seed: int
    # Of each set in it, in their order: images, and the share that they are of what is seen; none
    # where all images are seen alike
    sets: tuple[tuple[int, float], ...] = ()
    begins: Beginning | None = None  # from random weights where None
    taught: Taught | None = None
    channels: int | None = None  # of images; 3, of 8 bits, where not said
    bits: int | None = None
    accumulate: int | None = None  # parts that a worker's batch is worked off in, where not whole

    def seen(self) -> list[float]:
        """How often an image of each set is, of one set where all are seen alike."""
        shown = self.steps * self.batch_size
        return [share * shown / images for images, share in self.sets or ((self.images, 1.0),)]

    @property
    def epochs(self) -> int:
        return self.recipe.epochs

    @property
    def batch_size(self) -> int:
        """Over all workers."""
        return self.recipe.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches alone: the images left over take their turn in another epoch's order."""
        return self.images // self.batch_size

    def to_dict(self) -> Document:
        """Without what says nothing: to a version that knows more, a training is the same."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value not in (None, ())}


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
    recipe = settings.recipe
    batch_size = _batch_size(settings, recipe, images, workers, section)
    steps_per_epoch = images // batch_size
    epochs, own = recipe.epochs, recipe
    if settings.steps is not None:
        epochs = math.ceil(settings.steps / steps_per_epoch)
    elif settings.epochs == "auto":
        epochs = rescaled_epochs(recipe.epochs, open_images)
        own = _shortened(recipe, epochs)
    elif settings.epochs is not None:
        epochs = settings.epochs
    return TrainingPlan(
        method=settings.method,
        preset=settings.preset or next(iter(RECIPES[settings.method])),
        recipe=Recipe(
            views=_views(settings, recipe, section),
            optimizer=_optimizer(settings.optimizer, own, batch_size, steps_per_epoch),
            batch_size=batch_size,
            epochs=epochs,
            options=own.options | settings.options,
        ),
        backbone=settings.backbone or encoder.backbone,
        image_px=settings.image_px or encoder.image_px,
        small_stem=encoder.small_stem if settings.small_stem is None else settings.small_stem,
        images=images,
        steps=settings.steps or epochs * steps_per_epoch,
        precision=settings.precision,
        seed=settings.seed,
        channels=encoder.channels,
        bits=encoder.bits,
        accumulate=settings.accumulate if (settings.accumulate or 1) > 1 else None,
    )


def sets_of(
    data: list[str], shares: list[float] | None, images: int, open_images: int, section: str
) -> tuple[tuple[int, float], ...]:
    """A plan's `sets`. Raises CurateError for one without an image."""
    if shares is None:
        return ()
    counts = [images - open_images if name == "target" else open_images for name in data]
    for name, count in zip(data, counts, strict=True):
        if not count:
            raise CurateError(f"{section}.shares: {name} has no image to train on; leave it out")
    return tuple(zip(counts, shares, strict=True))


def rescaled_epochs(epochs: int, open_images: int) -> int:
    """min(E, ⌊100 / (|I| / 1,281,167)⌋): with a large coreset I, the authors train for as many
    steps as 100 epochs of ImageNet take."""
    if not open_images:
        return epochs
    return max(1, min(epochs, 100 * IMAGENET_IMAGES // open_images))


def _shortened(recipe: Recipe, epochs: int) -> Recipe:
    """Whatever lasts some epochs lasts the same share of them: as SimCore's authors have warm-ups,
    frozen layers and temperatures (util/sampling.py)."""
    share = epochs / recipe.epochs
    optimizer = dataclasses.replace(
        recipe.optimizer, warmup_epochs=recipe.optimizer.warmup_epochs * share
    )
    lasting = {
        name: max(1, int(value * share))
        for name, value in recipe.options.items()
        if name.endswith("_epochs") and value
    }
    options = {**recipe.options, **lasting}
    return dataclasses.replace(recipe, optimizer=optimizer, options=options)


def _batch_size(
    settings: TrainingSettings, recipe: Recipe, images: int, workers: int, section: str
) -> int:
    wanted = settings.batch_size or _for_a_set_of(images, recipe.batch_size, workers)
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
            f"{section}: {images} images are too few for {workers} workers; "
            f"set {section}.resources.workers=1"
            if images >= 2
            else f"{section}: a training set needs two images at least, and has {images}"
        )
    parts = settings.accumulate or 1
    own = wanted // workers
    if own % parts or own < 2 * parts:
        likely = max(p for p in range(1, own // 2 + 1) if own % p == 0 and p <= parts)
        raise CurateError(
            f"{section}.accumulate={parts}: a worker's {own} images make no so many equal parts of "
            f"two and more; set it to {likely}"
        )
    if images < wanted:
        fitting = images // (workers * parts) * workers * parts
        log.info("pretrain: %d images make batches of %d, not %d", images, fitting, wanted)
        return fitting
    return wanted


def _for_a_set_of(images: int, batch_size: int, workers: int) -> int:
    """A recipe's batch, made for a million images, bounded for a set that would be a step or two of
    them: in proportion with it goes the rate."""
    bound = max(SMALL_BATCH, images // STEPS_OF_EPOCH)
    return batch_size if batch_size <= bound else bound // workers * workers


def _optimizer(
    given: OptimizerSettings, recipe: Recipe, batch_size: int, steps_per_epoch: int
) -> Optimizer:
    """The recipe's, whose rate is in proportion to the batch, but for what is given."""
    own = recipe.optimizer
    changes: dict[str, Any] = {"learning_rate": own.learning_rate * batch_size / recipe.batch_size}
    if given.warmup_steps is not None:
        changes["warmup_epochs"] = given.warmup_steps / steps_per_epoch
    changes |= given.model_dump(exclude={"warmup_steps"}, exclude_none=True)
    return dataclasses.replace(own, **changes)


def _views(settings: TrainingSettings, recipe: Recipe, section: str) -> tuple[View, ...]:
    given = settings.views
    if given.local_views is not None and not any(view.side < 1 for view in recipe.views):
        raise CurateError(
            f"{section}.views.local_views={given.local_views}: this recipe of {settings.method} "
            "has no small views; leave it out"
        )
    views = []
    for view in recipe.views:
        changes: dict[str, Any] = {}
        if view.side == 1 and given.crop_scale:
            changes["scale"] = given.crop_scale
        if given.colour_strength is not None:
            changes["jitter"] = tuple(given.colour_strength * amount for amount in view.jitter)
        for switch, field in (("flip", "flip_p"), ("vertical_flip", "vertical_flip_p")):
            if getattr(given, switch) is not None:
                changes[field] = 0.5 * getattr(given, switch)
        for switch in ("quarter_turns", "rotation"):
            if getattr(given, switch) is not None:
                changes[switch] = getattr(given, switch)
        for switch in ("jitter", "grey", "blur", "solarize"):
            if getattr(given, switch) is False:
                changes[f"{switch}_p"] = 0.0
        if view.side < 1 and given.local_views is not None:
            changes["count"] = given.local_views
        changed = dataclasses.replace(view, **changes)
        if changed.count:
            views.append(changed)
    return tuple(views)
