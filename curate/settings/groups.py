"""Groups of keys that a training has: how its weights follow, what views, what of the cluster."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, create_model, model_validator

from curate.settings.base import Positive, Settings, Share
from curate.settings.recipe import Optimizer
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
    # What is so in a domain, and not in photographs; or no change to it, and there one
    flip: bool | None = None  # left to right, half of the views
    vertical_flip: bool | None = None  # half of them too
    quarter_turns: bool | None = None  # each of the four as often
    rotation: float | None = Field(None, ge=0, le=180)  # degrees at most, either way
    # false leaves out what the recipe has
    jitter: Literal[False] | None = None
    grey: Literal[False] | None = None
    blur: Literal[False] | None = None
    solarize: Literal[False] | None = None

    @model_validator(mode="after")
    def _ascending(self) -> ViewSettings:
        if self.crop_scale and self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError("crop_scale: the smaller share comes first")
        return self


class ResourceSettings(Settings):
    """What a training takes of the cluster."""

    workers: int | None = Field(None, ge=1)  # one a GPU, or one every 4 CPUs, where unset
    min_workers: int | None = Field(None, ge=1)  # an elastic group's; always all where unset
    use_gpu: bool | None = None  # where there is one, where unset
    loader_workers: int | None = Field(None, ge=0)  # processes that decode, for each worker
    crops_on: Literal["cpu", "device"] = "cpu"  # where views are cut from images and resized
    compile: bool = False  # the backbone, by torch.compile
    checkpoint_activations: bool = False  # compute them twice in place of keeping them
    restarts: int = Field(3, ge=0)  # of all workers, after one was lost
    decoded_gb: float | None = Field(None, ge=0)  # of decoded images, in each machine's memory
    cache_gb: float | None = Field(None, ge=0)  # on each machine's disk, of a remote training set

    @model_validator(mode="after")
    def _elastic(self) -> ResourceSettings:
        if self.min_workers is not None and self.min_workers > (self.workers or self.min_workers):
            raise ValueError(f"min_workers={self.min_workers}: over workers={self.workers}")
        return self


class CheckpointSettings(Settings):
    """What a training goes on from after a loss."""

    every: int = Field(500, ge=1)  # steps
    keep: int = Field(2, ge=1)  # the newest so many
    # The encoder that comes out is the best by it, not the last
    best: Literal["knn", "rankme", "alignment", "uniformity", "loss"] | None = None


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


class DatasetSettings(Settings):
    """The copy that is trained on."""

    # Shorter side, px, of the copies of larger images; twice the largest view's where unset
    max_side: Annotated[int, Field(ge=8)] | Literal["none"] | None = None


class ProbeSettings(Settings):
    """A labelled set on which kNN accuracy is measured while training; it is not trained on."""

    train: LabelledSource
    test: LabelledSource
    every: int = Field(10, ge=1)  # epochs
    k: int = Field(20, ge=1)
