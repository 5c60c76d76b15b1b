"""Self-supervised training: of the retrieval encoder, and on the merged set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from pydantic import BeforeValidator, Field, create_model, model_validator

from curate.settings.base import Path, Positive, Settings, Share, as_list, as_section
from curate.settings.recipe import Optimizer, Option, Recipe
from curate.settings.recipes import RECIPES
from curate.settings.sources import LabelledSource


def _all_optional(group: type) -> Any:
    """A dataclass as a section: its names, types and limits, none of which need be set."""
    kinds = get_type_hints(group, include_extras=True)
    fields: dict[str, Any] = {name: (kind | None, None) for name, kind in kinds.items()}
    return create_model(group.__name__, __base__=Settings, **fields)


class OptimizerSettings(_all_optional(Optimizer)):  # type: ignore[misc]
    """What is to be other than in the recipe's `Optimizer`, under the same names."""

    warmup_steps: int | None = Field(None, ge=0)  # in place of warmup_epochs

    @model_validator(mode="after")
    def _one_warmup(self) -> OptimizerSettings:
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            raise ValueError("set warmup_epochs or warmup_steps, not both")
        return self


class ViewSettings(Settings):
    """What is to be other than in the recipe's views."""

    crop_scale: tuple[Share, Share] | None = None  # of the views of full size
    colour_strength: float | None = Field(None, ge=0, le=1.25)  # of the jitter; SimCLR's s
    local_views: int | None = Field(None, ge=0)  # small ones, of SwAV and DINO

    @model_validator(mode="after")
    def _ascending(self) -> ViewSettings:
        if self.crop_scale and self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError("crop_scale: the smaller share comes first")
        return self


class ResourceSettings(Settings):
    """What a training takes of the cluster."""

    workers: int | None = Field(None, ge=1)  # one a GPU, or one every 4 CPUs, where unset
    use_gpu: bool | None = None  # where there is one, where unset
    loader_workers: int | None = Field(None, ge=0)  # processes that decode, for each worker
    restarts: int = Field(3, ge=0)  # of all workers, after one was lost
    cache_gb: float | None = Field(None, ge=0)  # on each machine's disk, of a remote training set


class CheckpointSettings(Settings):
    """What a training goes on from after a loss."""

    every: int = Field(500, ge=1)  # steps
    keep: int = Field(2, ge=1)  # the newest so many


class InitSettings(Settings):
    """What weights a backbone begins from, and which of them are trained. Heads are new."""

    weights: str = Field(min_length=1)  # timm, a checkpoint, or a folder of an encoder or run
    layer_decay: float = Field(1.0, gt=0, le=1)  # each block's learning rate, of the next one's
    trained_blocks: int | None = Field(None, ge=1)  # the last ones; what is before them is frozen
    # The trained blocks' linear layers move by matrices of this rank alone (Hu et al. 2021)
    lora_rank: int | None = Field(None, ge=1)
    lora_alpha: Positive | None = None  # their product is multiplied by alpha / rank; 1 where unset

    @model_validator(mode="after")
    def _of_use(self) -> InitSettings:
        if self.lora_alpha is not None and self.lora_rank is None:
            raise ValueError("lora_alpha: set lora_rank as well")
        return self


class TeacherSettings(Settings):
    """The frozen network that `distill` learns from."""

    backbone: str | None = None  # what an encoder made here says of itself, where unset
    weights: str = Field("timm", min_length=1)  # as in init
    image_px: int | None = Field(None, ge=8, le=4096)  # views are resized to it; theirs where unset

    @model_validator(mode="after")
    def _known(self) -> TeacherSettings:
        if self.weights == "timm" and self.backbone is None:
            raise ValueError("backbone: set it, or weights to an encoder that was made here")
        return self


def _init(value: Any) -> Any:
    return {"weights": value} if isinstance(value, str) else value


class ProbeSettings(Settings):
    """A labelled set on which kNN accuracy is measured while training; it is not trained on."""

    train: LabelledSource
    test: LabelledSource
    every: int = Field(10, ge=1)  # epochs
    k: int = Field(20, ge=1)


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
    init: Annotated[InitSettings | None, BeforeValidator(_init)] = None  # random where unset
    teacher: TeacherSettings | None = None  # of distill
    epochs: Annotated[int | Literal["auto"], BeforeValidator(_epochs)] | None = None
    steps: int | None = Field(None, ge=1)  # in place of epochs: the same for sets of any size
    batch_size: int | None = Field(None, ge=2)  # over all workers
    optimizer: Annotated[OptimizerSettings, _Group] = OptimizerSettings()
    views: Annotated[ViewSettings, _Group] = ViewSettings()
    precision: Literal["auto", "float32", "bf16"] = "auto"
    seed: int = Field(0, ge=0)
    resources: Annotated[ResourceSettings, _Group] = ResourceSettings()
    checkpoints: Annotated[CheckpointSettings, _Group] = CheckpointSettings()
    max_unreadable_fraction: float = Field(0.01, ge=0, le=1)
    probe: ProbeSettings | None = None

    @property
    def recipe(self) -> Recipe:
        """As its authors have it, before anything is set here."""
        presets = RECIPES[self.method]
        return presets[self.preset or next(iter(presets))]

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
