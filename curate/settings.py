"""What a run is, as typed settings: each key with its type, its default and its limits."""

from __future__ import annotations

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


class EncoderSettings(Settings):
    """E: image → embedding. A timm backbone with its pretrained, given or seeded random weights."""

    backbone: str = "resnet50"
    pretrained: bool = False  # download timm's weights
    checkpoint: str | None = None  # a state dict, or a folder with encoder.safetensors
    seed: int = Field(0, ge=0)  # of the random weights, where neither of these is given
    image_px: int = Field(224, ge=8, le=4096)
    crop_fraction: float = Field(0.875, gt=0, le=1)  # centre crop's share of the resized side
    mean: tuple[float, float, float] | None = None  # RGB, of 0…1; the backbone's own where unset
    std: tuple[Positive, Positive, Positive] | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> EncoderSettings:
        if self.pretrained and self.checkpoint:
            raise ValueError("set pretrained or checkpoint, not both")
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


class RunSettings(Settings):
    """One curation run."""

    target: Source
    open: list[Source] = Field(min_length=1)
    encoder: EncoderSettings = EncoderSettings()
    images: ImageSettings = ImageSettings()
    embed: EmbedSettings = EmbedSettings()
    coreset: CoresetSettings = CoresetSettings()
    output: Annotated[Path, AfterValidator(_absolute)]

    @model_validator(mode="after")
    def _distinct_names(self) -> RunSettings:
        names = [source.name for source in self.open]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"open: two sources are named {name!r}; give each its own name")
        return self
