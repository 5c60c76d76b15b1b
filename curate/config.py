"""What a run is: YAML in, typed settings out, errors that name the key.

target:  {source: {kind: image_folder, path: …}}
open:    [{name: imagenet, kind: webdataset, path: …}, …]
encoder: {backbone: resnet18, checkpoint: …, image_px: 224}
coreset: {clusters: 100, tau: 0.95}
output:  s3://bucket/run
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from curate import storage
from curate.errors import CurateError, one_line


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
    max_pixels: int = Field(100_000_000, ge=1)  # width × height
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
    output: Path

    @model_validator(mode="after")
    def _distinct_names(self) -> RunSettings:
        names = [source.name for source in self.open]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"open: two sources are named {name!r}; give each its own name")
        return self


def load(path: str, overrides: list[str] | None = None) -> RunSettings:
    """Read a run's YAML, apply `key=value` overrides, fill in ${VARIABLES}, and validate.

    Raises CurateError naming the key, or the file, that is at fault.
    """
    try:
        document = yaml.safe_load(storage.read_bytes(path).decode())
    except FileNotFoundError:
        raise CurateError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CurateError(f"{path}: not readable as YAML: {one_line(error)}") from error
    if not isinstance(document, dict):
        raise CurateError(f"{path}: a config is a mapping with target, open, encoder, … and output")
    for override in overrides or []:
        _apply(document, override)
    return parse(_interpolate(document, ""), path)


def parse(document: dict[str, Any], origin: str) -> RunSettings:
    """Validate a document already read; `origin` is named in errors."""
    # A section with all its lines commented out is a null in YAML
    document = {key: value for key, value in document.items() if value is not None}
    if isinstance(document.get("target"), dict):
        document = {**document, "target": {"name": "target", **document["target"]}}
    try:
        return RunSettings.model_validate(document)
    except ValidationError as error:
        raise CurateError(f"{origin}: {_explain(error)}") from None


def _apply(document: dict[str, Any], override: str) -> None:
    """`coreset.tau=0.9` into the document; list items go by number: `open.0.limit=100`."""
    key, separator, value = override.partition("=")
    if not separator or not all(key.split(".")):
        raise CurateError(f"{override}: an override is key=value, as in coreset.tau=0.9")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise CurateError(f"{override}: the value is no YAML: {one_line(error, 100)}") from None
    *parents, last = key.split(".")
    place: Any = document
    try:
        for parent in parents:
            if isinstance(place, list):
                place = place[int(parent)]
                continue
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
        place[int(last) if isinstance(place, list) else last] = parsed
    except (ValueError, IndexError, TypeError, AttributeError):
        raise CurateError(f"{override}: the config has no place for {key}") from None


def _interpolate(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {k: _interpolate(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_interpolate(v, f"{key}.{i}") for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise CurateError(f"{key}: the environment variable {name} is not set; export {name}=…")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", variable, value)


# pydantic puts the branch of a union into an error's place; users wrote no such key
_BRANCHES = {"int", "float", "constrained-int", "constrained-float", "function-wrap"} | set(KINDS)

# pydantic's type of fault → what we say of it, with what pydantic knows in brackets
_FAULTS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "model_type": "must be a section of keys",
    "model_attributes_type": "must be a section of keys",
    "dict_type": "must be a section of keys",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be over {gt}",
    "less_than_equal": "must be at most {le}",
    "string_pattern_mismatch": "must be letters, digits, '.', '_' and '-', a letter or digit first",
    "too_short": "needs at least {min_length}, has {actual_length}",
    "too_long": "takes at most {max_length}, has {actual_length}",
}


def _explain(error: ValidationError) -> str:
    """The first fault, as `coreset.tau=1.5: …`."""
    fault = error.errors()[0]
    place = [part for part in fault["loc"] if not (isinstance(part, str) and part in _BRANCHES)]
    key = ".".join(str(part) for part in place)
    value = fault["input"]
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key; {_suggest(place)}"
    if fault["type"] == "missing":
        return f"{key}: missing; set it in the config"
    if fault["type"] == "union_tag_not_found":
        return f"{key}.kind: missing; one of {', '.join(KINDS)}"
    if fault["type"] == "union_tag_invalid":
        return f"{key}.kind={value['kind']}: no such kind; {_likeliest(str(value['kind']), KINDS)}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] in _FAULTS:
        message = _FAULTS[fault["type"]].format(**fault.get("ctx", {}))
    if isinstance(value, str | int | float | bool | None):
        written = {None: "null", True: "true", False: "false"}
        shown = written[value] if value is None or isinstance(value, bool) else value
        return f"{key}={shown}: {message}"
    return f"{key}: {message}" if key else message


def _suggest(place: list[Any]) -> str:
    """The known keys beside the one that is unknown, the likeliest first."""
    known: list[str] = sorted(RunSettings.model_fields)
    sections: dict[str, type[Settings]] = {
        name: field.annotation
        for name, field in RunSettings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
    }
    if len(place) > 1:
        section = sections.get(str(place[0]))
        models: list[type[Settings]] = (
            [section]
            if section
            else [ImageFolderSettings, WebDatasetSettings, ParquetSettings, UrlListSettings]
        )
        known = sorted({name for model in models for name in model.model_fields})
    return _likeliest(str(place[-1]), known)


def _likeliest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
