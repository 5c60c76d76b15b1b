"""Self-supervised training: of the retrieval encoder, and on the merged set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from curate.settings.base import Epochs, OptionValue, Path, Settings, Share, as_list
from curate.settings.recipes import RECIPES, Optimizer, Schedule
from curate.settings.sources import LabelledSource


class ProbeSettings(Settings):
    """A labelled set on which kNN accuracy is measured while training; it is not trained on."""

    train: LabelledSource
    test: LabelledSource
    every: int = Field(10, ge=1)  # epochs
    k: int = Field(20, ge=1)


METHODS = tuple(RECIPES)


class TrainingSettings(Settings):
    """Self-supervised pretraining. What is unset is the method's own, by recipes.py."""

    method: Literal[METHODS] = "simclr"  # type: ignore[valid-type]
    preset: str | None = None  # the method's first where unset
    options: dict[str, OptionValue] = Field(
        default_factory=dict
    )  # the method's own: temperature, queue, …
    backbone: str | None = None  # encoder.backbone where unset, and so with the next two
    image_px: int | None = Field(None, ge=8, le=4096)
    small_stem: bool | None = None
    epochs: Epochs | None = None
    steps: int | None = Field(None, ge=1)  # in place of epochs: the same for sets of any size
    batch_size: int | None = Field(None, ge=2)  # over all workers
    optimizer: Optimizer | None = None
    learning_rate: float | None = Field(None, gt=0)  # at this batch size
    weight_decay: float | None = Field(None, ge=0)
    weight_decay_end: float | None = Field(None, ge=0)
    momentum: float | None = Field(None, ge=0, lt=1)
    warmup_epochs: float | None = Field(None, ge=0)
    warmup_steps: int | None = Field(None, ge=0)  # in place of warmup_epochs
    schedule: Schedule | None = None
    clip_gradient: float | None = Field(None, gt=0)
    crop_scale: tuple[Share, Share] | None = None  # of the views of full size
    colour_strength: float | None = Field(None, ge=0, le=1.25)  # of the jitter; SimCLR's s
    local_views: int | None = Field(None, ge=0)  # small ones, of SwAV and DINO
    precision: Literal["auto", "float32", "bf16"] = "auto"
    workers: int | None = Field(None, ge=1)  # one a GPU, or one every 4 CPUs, where unset
    use_gpu: bool | None = None  # where there is one, where unset
    loader_workers: int | None = Field(None, ge=0)  # processes that decode, for each worker
    seed: int = Field(0, ge=0)
    checkpoint_every: int = Field(500, ge=1)  # steps
    keep_checkpoints: int = Field(2, ge=1)
    restarts: int = Field(3, ge=0)  # of all workers, after one was lost
    max_unreadable_fraction: float = Field(0.01, ge=0, le=1)
    probe: ProbeSettings | None = None

    @model_validator(mode="after")
    def _known(self) -> TrainingSettings:
        presets = RECIPES[self.method]
        if self.preset is not None and self.preset not in presets:
            raise ValueError(f"preset {self.preset}: {self.method} has {', '.join(presets)}")
        known = presets[self.preset or next(iter(presets))].options
        for name, value in self.options.items():
            if name not in known:
                has = ", ".join(known) or "no options"
                raise ValueError(f"options.{name}: unknown to {self.method}, which has {has}")
            usual = known[name]
            whole = isinstance(usual, int) and not isinstance(value, int)
            if isinstance(usual, bool) != isinstance(value, bool) or whole:
                kind = {bool: "true or false", int: "a whole number"}.get(type(usual), "a number")
                raise ValueError(f"options.{name}={value}: must be {kind}")
        for name in ("epochs", "warmup_epochs"):
            instead = name.replace("epochs", "steps")
            if getattr(self, name) is not None and getattr(self, instead) is not None:
                raise ValueError(f"set {name} or {instead}, not both")
        if self.crop_scale and self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError("crop_scale: the smaller share comes first")
        return self


class PretrainSettings(TrainingSettings):
    """Pretraining on any union of sets."""

    # target, coreset (of this run), open, and other coresets' manifests by their path
    data: Annotated[list[Path], BeforeValidator(as_list), Field(min_length=1)] = Field(
        ["target", "coreset"]
    )

    @model_validator(mode="after")
    def _each_once(self) -> PretrainSettings:
        if len(set(self.data)) < len(self.data):
            raise ValueError("data: the same set is named twice")
        if "open" in self.data and len(set(self.data) - {"open", "target"}):
            raise ValueError("data: a coreset is part of the open set; leave out one of them")
        for name in self.data:
            if name not in ("target", "coreset", "open") and not name.endswith(".parquet"):
                raise ValueError(
                    f"data: {name} is none of target, coreset, open, or a manifest (.parquet)"
                )
        return self
