"""Self-supervised training: of the retrieval encoder, and on the merged set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from curate.settings.base import Path, Settings, Share, as_list, as_section
from curate.settings.groups import (
    CheckpointSettings,
    DatasetSettings,
    InitSettings,
    OptimizerSettings,
    ProbeSettings,
    ResourceSettings,
    TeacherSettings,
    ViewSettings,
)
from curate.settings.recipe import Option, Recipe
from curate.settings.recipes import RECIPES


def _init(value: Any) -> Any:
    return {"weights": value} if isinstance(value, str) else value


Init = Annotated[InitSettings | None, BeforeValidator(_init)]


def _epochs(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("must be a whole number from 1, or auto")
    return value


def _option(value: Any) -> Any:
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise ValueError("must be a finite number, or true or false")
    return value


METHODS = tuple(RECIPES)
_Group = BeforeValidator(as_section)

# Once flat, now in groups: the key of before → the key of now
MOVED = {
    "optimizer": "optimizer.name",
    "learning_rate": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "weight_decay_end": "optimizer.weight_decay_end",
    "momentum": "optimizer.momentum",
    "warmup_epochs": "optimizer.warmup_epochs",
    "warmup_steps": "optimizer.warmup_steps",
    "schedule": "optimizer.schedule",
    "clip_gradient": "optimizer.clip_gradient",
    "crop_scale": "views.crop_scale",
    "colour_strength": "views.colour_strength",
    "local_views": "views.local_views",
    "workers": "resources.workers",
    "use_gpu": "resources.use_gpu",
    "loader_workers": "resources.loader_workers",
    "restarts": "resources.restarts",
    "checkpoint_every": "checkpoints.every",
    "keep_checkpoints": "checkpoints.keep",
}


class TrainingSettings(Settings):
    """Self-supervised pretraining. What is unset is the method's own, by recipes.py."""

    moved: ClassVar[Mapping[str, str]] = MOVED

    method: Literal[METHODS] = "simclr"  # type: ignore[valid-type]
    preset: str | None = None  # the method's first where unset
    # The method's own: temperature, queue, …
    options: dict[str, Annotated[Option, BeforeValidator(_option)]] = Field(default_factory=dict)
    backbone: str | None = None  # encoder.backbone where unset, and so with the next two
    image_px: int | None = Field(None, ge=8, le=4096)
    small_stem: bool | None = None
    init: Init = None  # random weights where unset
    teacher: TeacherSettings | None = None  # of distill
    epochs: Annotated[int | Literal["auto"], BeforeValidator(_epochs)] | None = None
    steps: int | None = Field(None, ge=1)  # in place of epochs: the same for sets of any size
    batch_size: int | None = Field(None, ge=2)  # over all workers
    accumulate: int | None = Field(None, ge=1)  # parts of a worker's batch, for its memory
    optimizer: Annotated[OptimizerSettings, _Group] = OptimizerSettings()
    views: Annotated[ViewSettings, _Group] = ViewSettings()
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    seed: int = Field(0, ge=0)
    resources: Annotated[ResourceSettings, _Group] = ResourceSettings()
    dataset: Annotated[DatasetSettings, _Group] = DatasetSettings()
    checkpoints: Annotated[CheckpointSettings, _Group] = CheckpointSettings()
    max_unreadable_fraction: float = Field(0.01, ge=0, le=1)
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(["tensorboard"])
    probe: ProbeSettings | None = None

    @property
    def recipe(self) -> Recipe:
        """As its authors have it, before anything is set here."""
        presets = RECIPES[self.method]
        return presets[self.preset or next(iter(presets))]

    def side_px(self, image_px: int) -> int | None:
        """Of the copies of larger images; None where all are copied as they are.

        image_px: the encoder's, where the training has none of its own.
        """
        asked = self.dataset.max_side
        if asked == "none":
            return None
        return asked or 2 * (self.image_px or image_px)

    @model_validator(mode="after")
    def _known(self) -> TrainingSettings:
        presets = RECIPES[self.method]
        if self.preset is not None and self.preset not in presets:
            raise ValueError(f"preset {self.preset}: {self.method} has {', '.join(presets)}")
        known = self.recipe.options
        for name, value in self.options.items():
            if name not in known:
                has = ", ".join(known) or "no options"
                raise ValueError(f"options.{name}: unknown to {self.method}, which has {has}")
            usual = known[name]
            whole = isinstance(usual, int) and not isinstance(value, int)
            if isinstance(usual, bool) != isinstance(value, bool) or whole:
                kind = {bool: "true or false", int: "a whole number"}.get(type(usual), "a number")
                raise ValueError(f"options.{name}={value}: must be {kind}")
        if (self.teacher is None) == (self.method == "distill"):
            told = "distill needs one" if self.teacher is None else "of distill alone"
            raise ValueError(f"teacher: {told}")
        if self.checkpoints.best == "knn" and self.probe is None:
            raise ValueError("checkpoints.best=knn: needs probe, the labelled sets")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("set epochs or steps, not both")
        return self

    @model_validator(mode="after")
    def _of_use(self) -> TrainingSettings:
        """A figure that would change nothing is a mistake."""
        own, given = self.recipe.optimizer, self.optimizer
        kind, schedule = given.name or own.name, given.schedule or own.schedule
        for key, of, there in (
            ("adam_beta2", "adamw", kind),
            ("nesterov", "sgd", kind),
            ("adapt_all", "lars", kind),
            ("final_learning_rate_share", "cosine", schedule),
        ):
            if getattr(given, key) and there != of:
                raise ValueError(f"optimizer.{key}: of {of} alone, and not of {there}")
        if given.clip_each and not (given.clip_gradient or own.clip_gradient):
            raise ValueError("optimizer.clip_each: set clip_gradient, the norm, as well")
        return self


class OnSetsSettings(TrainingSettings):
    """Training on a union of sets."""

    data: Annotated[list[Path], BeforeValidator(as_list), Field(min_length=1)] = Field(["target"])
    # Of what is seen, which share is of each; as many as it has images, where unset.
    # `data: {target: 0.5, coreset: 0.5}` sets both
    shares: list[Share] | None = None
    open_sample: int | None = Field(None, ge=1)  # images of `open`; all where unset

    @model_validator(mode="before")
    @classmethod
    def _with_shares(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("data"), dict):
            if given.get("shares") is not None:
                raise ValueError("set shares in data, or by themselves, not both")
            return {**given, "data": [*given["data"]], "shares": [*given["data"].values()]}
        return given

    @model_validator(mode="after")
    def _shared_out(self) -> OnSetsSettings:
        if self.shares is None:
            return self
        if len(self.data) != 2 or "target" not in self.data:
            raise ValueError("shares: are of target and one other set in data")
        if len(self.shares) != 2 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares={self.shares}: must be two that make 1 together")
        return self

    @model_validator(mode="after")
    def _each_once(self) -> OnSetsSettings:
        if len(set(self.data)) < len(self.data):
            raise ValueError("data: the same set is named twice")
        if self.open_sample is not None and "open" not in self.data:
            raise ValueError(f"open_sample={self.open_sample}: of open, which data does not name")
        return self


class EncoderTrainingSettings(OnSetsSettings):
    """Step 1 of the algorithm: of the retrieval encoder, before there is a coreset."""

    @model_validator(mode="after")
    def _before_selection(self) -> EncoderTrainingSettings:
        for name in self.data:
            if name not in ("target", "open"):
                raise ValueError(f"data: {name} is neither target nor open")
        return self


class PretrainSettings(OnSetsSettings):
    """Step 3: on the merged set, or any other."""

    # target, coreset (of this run), open, and other coresets' manifests by their path
    data: Annotated[list[Path], BeforeValidator(as_list), Field(min_length=1)] = Field(
        ["target", "coreset"]
    )

    @model_validator(mode="after")
    def _apart(self) -> PretrainSettings:
        if "open" in self.data and len(set(self.data) - {"open", "target"}):
            raise ValueError("data: a coreset is part of the open set; leave out one of them")
        for name in self.data:
            if name not in ("target", "coreset", "open") and not name.endswith(".parquet"):
                raise ValueError(
                    f"data: {name} is none of target, coreset, open, or a manifest (.parquet)"
                )
        return self
