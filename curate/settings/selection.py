"""From images to a coreset: the encoder, the embedding, the selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from curate.settings import where
from curate.settings.base import AbsolutePath, AutoBudget, Budget, Label, Positive, Settings
from curate.settings.training import EncoderTrainingSettings

Ratio = Literal["linear", "logistic", "kernel"]  # how a density ratio is estimated


class EncoderSettings(Settings):
    """E: image → embedding. A timm backbone with its pretrained, given or seeded random weights."""

    moved: ClassVar[Mapping[str, str]] = {"pretrain_on_target": "pretrain"}

    backbone: str = "resnet50"
    pretrained: bool = False  # download timm's weights
    checkpoint: str | None = None  # a state dict, or a folder of an encoder made here
    # Step 1 of the algorithm: train it on X, or on X and a sample of U
    pretrain: EncoderTrainingSettings | None = None
    seed: int = Field(0, ge=0)  # of the random weights, where neither of these is given
    image_px: int = Field(224, ge=8, le=4096)
    small_stem: bool = False  # a ResNet's first layer made for images of 64 px and less
    # Of a vision transformer: its class token, or the mean of its patches
    pool: Literal["token", "patches"] | None = None
    crop_fraction: float = Field(0.875, gt=0, le=1)  # centre crop's share of the resized side
    # RGB, or grey, of 0…1; the backbone's own where unset
    mean: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    std: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    # As `images` has them, which says so here; None: 3 and 8
    channels: Literal[1, 3] | None = None
    bits: Literal[8, 16] | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> EncoderSettings:
        given = {
            "pretrained": self.pretrained,
            "checkpoint": self.checkpoint,
            "pretrain": self.pretrain,
        }
        own = self.pretrain
        for name in ("backbone", "image_px", "small_stem"):
            if own is not None and getattr(own, name) is not None:
                raise ValueError(f"pretrain.{name}: set encoder.{name} instead")
        several = [name for name, value in given.items() if value]
        if len(several) > 1:
            raise ValueError(f"set {' or '.join(several)}, not both")
        return self


class EmbedSettings(Settings):
    """How embedding is spread over the cluster; none of it changes the result."""

    batch_size: int = Field(256, ge=1)
    device: Literal["auto", "cpu", "gpu"] = "auto"
    workers: int | None = Field(None, ge=1)  # actors at most; as many as there is room, where unset
    actors_per_gpu: int = Field(1, ge=1)
    unit_images: int = Field(1000, ge=1)  # files of a folder, or rows of a list, in a unit, about
    attempts: int = Field(
        5, ge=1
    )  # at a unit that cannot be read, before it is left to another run


class QuotaSettings(Settings):
    """At most so many images of a source, of a label, or of a value of another column."""

    by: str = Field(min_length=1)
    most: Budget  # images of each; a fraction: of the budget
    of: list[Label] | None = None  # these alone are bound; each where unset


# Their code: --patience 20, --stop_thresh 0.95, and 50 images for each of the target's
AUTHORS = {"clusters": 100, "tau": 0.95, "reference_round": 20, "budget_times_target": 50.0}


class CoresetSettings(Settings):
    """Which images are selected."""

    preset: Literal["authors"] | None = None  # what is unset is as SimCore's authors had it
    method: Literal["simcore", "ratio", "gate", "resample", "random", "oracle", "all"] = "simcore"
    ratio: Ratio = "linear"  # of ratio, gate and resample
    gate: float = Field(2, ge=1)  # times the budget: what its rounds are among
    clusters: int = Field(100, ge=1)  # k; at least |X| makes every target image a centroid
    tau: float | None = Field(0.95, ge=0, le=1)  # null: no threshold
    reference_round: int = Field(1, ge=1)  # the authors' experiments used 20
    budget: AutoBudget | None = None  # auto: as far as half of what comes is alike
    budget_times_target: float | None = Field(None, gt=0)  # the authors cap I at 50 · |X|
    labels: list[Label] | None = None  # of method oracle
    whiten: int | None = Field(None, ge=2)  # dimensions of whitened embeddings; null: as they are
    seed: int = Field(0, ge=0)  # of k-means, and of methods random and resample
    dedup: Literal["none", "exact", "near"] = "none"  # exact: of files alike byte for byte, one
    near: float = Field(0.98, gt=0, le=1)  # cosine from which on an image is a near copy
    drop: list[str] | AbsolutePath | None = None  # SOURCE/KEY, or a file of such lines: never taken
    add: list[str] | AbsolutePath | None = None  # the same: taken before all others
    quotas: list[QuotaSettings] | None = None
    where: str | None = None  # which images may be selected, by what is known of them
    keep: list[str] | None = None  # columns of the sources that the manifest has too

    @model_validator(mode="before")
    @classmethod
    def _as_authors(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("preset") == "authors":
            limited = {"budget", "budget_times_target"} & given.keys()
            usual = {k: v for k, v in AUTHORS.items() if k != "budget_times_target" or not limited}
            return {**usual, **given}
        return given

    @field_validator("where")
    @classmethod
    def _parses(cls, text: str | None) -> str | None:
        if text is not None:
            where.parse(text)
        return text

    @model_validator(mode="after")
    def _complete(self) -> CoresetSettings:
        if self.method == "oracle" and not self.labels:
            raise ValueError("method oracle needs a list of labels")
        if self.method != "oracle" and self.labels:
            raise ValueError(f"labels are for method oracle, not {self.method}")
        unlimited = self.budget is None and self.budget_times_target is None
        if unlimited and (self.method == "random" or self.uses_ratio):
            raise ValueError(f"method {self.method} needs a budget")
        if self.budget == "auto" and not self.uses_ratio:
            raise ValueError("budget auto is for methods ratio, gate and resample")
        if self.method == "all" and (self.budget, self.budget_times_target) != (None, None):
            raise ValueError("method all takes everything; leave out the budget")
        if self.quotas and not (self.uses_centroids or self.uses_ratio):
            raise ValueError(f"quotas are for rounds and ratios, not method {self.method}")
        if unlimited and any(isinstance(quota.most, float) for quota in self.quotas or []):
            raise ValueError("quotas that are a fraction of the budget need one")
        return self

    @property
    def is_constrained(self) -> bool:
        by_hand = self.drop or self.add
        return bool(self.dedup != "none" or by_hand or self.quotas or self.where)

    @property
    def columns(self) -> set[str]:
        """Names of all that it needs to know of images."""
        asked = {quota.by for quota in self.quotas or []} | set(self.keep or [])
        return asked if self.where is None else asked | set(where.columns(self.where))

    @property
    def uses_centroids(self) -> bool:
        return self.method in ("simcore", "gate")

    @property
    def uses_ratio(self) -> bool:
        return self.method in ("ratio", "gate", "resample")
