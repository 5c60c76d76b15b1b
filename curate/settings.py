"""What a run is, as typed settings: each key with its type, its default and its limits."""

from __future__ import annotations

import math
import os
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from curate.recipes import RECIPES, Optimizer, Option, Schedule


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Paths = Annotated[
    list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list), Field(min_length=1)
]
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def _count_or_fraction(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """One error for the whole union: pydantic has one for each of its branches."""
    try:
        if not isinstance(value, bool):
            return validate(value)
    except ValidationError:
        pass
    raise ValueError("must be a count (0, 1, 2 …) or a fraction of the open set (0.0 to 1.0)")


def _absolute(path: str) -> str:
    """Workers may have another working directory than the driver, and its user another yet."""
    return path if "://" in path else os.path.abspath(path)


Path = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Label = Annotated[str, Field(coerce_numbers_to_str=True)]  # YAML reads class 7 as a number
Budget = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)],
    WrapValidator(_count_or_fraction),
]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourceSettings(Settings):
    """What every kind of source has."""

    name: SourceName
    limit: int | None = Field(None, ge=1)  # the first so many images, in plan order


class ImageFolderSettings(SourceSettings):
    """A tree of image files; the first folder below `path` is the label."""

    kind: Literal["image_folder"]
    path: Path


class WebDatasetSettings(SourceSettings):
    """Tars of `key.jpg` with `key.cls` and other sidecars beside it."""

    kind: Literal["webdataset"]
    path: Paths


class ParquetSettings(SourceSettings):
    """Parquet files with encoded images, or with paths to them."""

    kind: Literal["parquet"]
    path: Paths
    image_column: str = "image"  # encoded bytes, or Hugging Face's struct of bytes and path
    path_column: str | None = None  # where set, images are read from these paths instead
    key_column: str | None = None  # the row number where there is none
    label_column: str | None = None


class UrlListSettings(SourceSettings):
    """A text file with one URL or path a line, or a CSV with a header."""

    kind: Literal["url_list"]
    path: Paths
    url_column: str = "url"
    key_column: str | None = None
    label_column: str | None = None


KINDS = ["image_folder", "webdataset", "parquet", "url_list"]
Source = Annotated[
    ImageFolderSettings | WebDatasetSettings | ParquetSettings | UrlListSettings,
    Field(discriminator="kind"),
]


class ImageSettings(Settings):
    """Which images are refused."""

    min_px: int = Field(8, ge=1)  # shorter side
    # width × height; Pillow itself refuses from 178,956,970 on
    max_pixels: int = Field(100_000_000, ge=1, le=178_956_970)
    max_rejected_fraction: float = Field(0.1, ge=0, le=1)


def _named(value: Any) -> Any:
    return {"name": "probe", **value} if isinstance(value, dict) else value


def _epochs(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("must be a whole number from 1, or auto")
    return value


def _option(value: Any) -> Any:
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise ValueError("must be a finite number, or true or false")
    return value


OptionValue = Annotated[Option, BeforeValidator(_option)]
Epochs = Annotated[int | Literal["auto"], BeforeValidator(_epochs)]


class ProbeSettings(Settings):
    """A labelled set on which kNN accuracy is measured while training; it is not trained on."""

    train: Annotated[Source, BeforeValidator(_named)]
    test: Annotated[Source, BeforeValidator(_named)]
    every: int = Field(10, ge=1)  # epochs
    k: int = Field(20, ge=1)


METHODS = tuple(RECIPES)


class TrainingSettings(Settings):
    """Self-supervised pretraining. What is unset is the method's own, from curate/recipes.py."""

    method: Literal[METHODS] = "simclr"  # type: ignore[valid-type]
    preset: str | None = None  # the method's first where unset
    options: dict[str, OptionValue] = {}  # the method's own: temperature, queue, …
    backbone: str | None = None  # encoder.backbone where unset, and so with the next two
    image_px: int | None = Field(None, ge=8, le=4096)
    small_stem: bool | None = None
    epochs: Epochs | None = None
    batch_size: int | None = Field(None, ge=2)  # over all workers
    optimizer: Optimizer | None = None
    learning_rate: float | None = Field(None, gt=0)  # at this batch size
    weight_decay: float | None = Field(None, ge=0)
    weight_decay_end: float | None = Field(None, ge=0)
    momentum: float | None = Field(None, ge=0, lt=1)
    warmup_epochs: float | None = Field(None, ge=0)
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
        if self.crop_scale and self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError("crop_scale: the smaller share comes first")
        return self


class EncoderSettings(Settings):
    """E: image → embedding. A timm backbone with its pretrained, given or seeded random weights."""

    backbone: str = "resnet50"
    pretrained: bool = False  # download timm's weights
    checkpoint: str | None = None  # a state dict, or a folder with encoder.safetensors
    pretrain_on_target: TrainingSettings | None = None  # step 1 of the algorithm: train it on X
    seed: int = Field(0, ge=0)  # of the random weights, where neither of these is given
    image_px: int = Field(224, ge=8, le=4096)
    small_stem: bool = False  # a ResNet's first layer made for images of 64 px and less
    crop_fraction: float = Field(0.875, gt=0, le=1)  # centre crop's share of the resized side
    mean: tuple[float, float, float] | None = None  # RGB, of 0…1; the backbone's own where unset
    std: tuple[Positive, Positive, Positive] | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> EncoderSettings:
        given = {
            "pretrained": self.pretrained,
            "checkpoint": self.checkpoint,
            "pretrain_on_target": self.pretrain_on_target,
        }
        own = self.pretrain_on_target
        for name in ("backbone", "image_px", "small_stem"):
            if own is not None and getattr(own, name) is not None:
                raise ValueError(f"pretrain_on_target.{name}: set encoder.{name} instead")
        several = [name for name, value in given.items() if value]
        if len(several) > 1:
            raise ValueError(f"set {' or '.join(several)}, not both")
        return self


class EmbedSettings(Settings):
    """How embedding is spread over the cluster; none of it changes the result."""

    batch_size: int = Field(256, ge=1)
    device: Literal["auto", "cpu", "gpu"] = "auto"
    workers: int | None = Field(None, ge=1)  # actors; one a GPU, or one every 4 CPUs, where unset
    unit_images: int = Field(1000, ge=1)  # files of a folder, or rows of a list, in one unit


class CoresetSettings(Settings):
    """Which images are selected."""

    method: Literal["simcore", "random", "oracle", "all"] = "simcore"
    clusters: int = Field(100, ge=1)  # k; at least |X| makes every target image a centroid
    tau: float | None = Field(0.95, ge=0, le=1)  # null: no threshold
    reference_round: int = Field(1, ge=1)  # the authors' experiments used 20
    budget: Budget | None = None
    budget_times_target: float | None = Field(None, gt=0)  # the authors cap I at 50 · |X|
    labels: list[Label] | None = None  # of method oracle
    seed: int = Field(0, ge=0)  # of k-means, and of method random

    @model_validator(mode="after")
    def _complete(self) -> CoresetSettings:
        if self.method == "oracle" and not self.labels:
            raise ValueError("method oracle needs a list of labels")
        if self.method != "oracle" and self.labels:
            raise ValueError(f"labels are for method oracle, not {self.method}")
        if self.method == "random" and self.budget is None and self.budget_times_target is None:
            raise ValueError("method random needs a budget")
        if self.method == "all" and (self.budget, self.budget_times_target) != (None, None):
            raise ValueError("method all takes everything; leave out the budget")
        return self


class PretrainSettings(TrainingSettings):
    """Pretraining on any union of sets."""

    # target, coreset (of this run), open, and other coresets' manifests by their path
    data: Annotated[list[Path], BeforeValidator(_as_list), Field(min_length=1)] = [
        "target",
        "coreset",
    ]

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


class EvaluateSettings(Settings):
    """Which encoder is measured, on which labelled images, and how."""

    train: Annotated[Source, BeforeValidator(_named)]
    test: Annotated[Source, BeforeValidator(_named)]
    encoder: Path | None = None  # a folder or checkpoint; this run's pretrain where unset
    protocols: list[Literal["linear", "knn"]] = Field(["linear", "knn"], min_length=1)
    k: list[Annotated[int, Field(ge=1)]] = Field([20, 200], min_length=1)  # neighbours
    seeds: int = Field(3, ge=1)


class RunSettings(Settings):
    """One curation run."""

    target: Source
    open: list[Source] = Field(min_length=1)
    encoder: EncoderSettings = EncoderSettings()
    images: ImageSettings = ImageSettings()
    embed: EmbedSettings = EmbedSettings()
    coreset: CoresetSettings = CoresetSettings()
    pretrain: PretrainSettings | None = None
    evaluate: EvaluateSettings | None = None
    output: Annotated[Path, AfterValidator(_absolute)]

    @model_validator(mode="after")
    def _distinct_names(self) -> RunSettings:
        names = [source.name for source in self.open]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"open: two sources are named {name!r}; give each its own name")
        return self
