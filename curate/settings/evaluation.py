"""What an encoder, or a selection, is measured by."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from curate.settings.base import AbsolutePath, Label, Path, Positive, Settings, Share
from curate.settings.sources import LabelledSource

OnLabelledSets = Literal["linear", "knn", "sgd", "finetune", "attributes"]  # train and test
OnOwnData = Literal["detection", "segmentation", "selection"]
Protocol = Literal[OnLabelledSets, OnOwnData]


class AsTheAuthors(Settings):
    """A protocol that SimCore's authors have too, and which differs from ours."""

    authors: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    preset: Literal["authors"] | None = None  # what is unset is as SimCore's authors had it

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("preset") == "authors":
            return {**cls.authors, **given}
        return given

    @property
    def whose(self) -> str:
        """What a figure's name ends in."""
        return ", as SimCore's authors'" if self.preset else ""


class SgdSettings(AsTheAuthors):
    """The linear probe of SimCore's authors: on random crops, through the frozen encoder."""

    # train_sup.py: batches of 256, BatchNorm in training mode, the best epoch on the test set
    authors = MappingProxyType({"batch_size": 256, "batch_norm": "moving", "epoch": "best"})
    learning_rate: float = Field(10, gt=0)
    weight_decay: float = Field(0, ge=0)
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(512, ge=1)
    batch_norm: Literal["frozen", "moving"] = "frozen"  # by its averages, or by the batch's own
    epoch: Literal["last", "best"] = "last"  # best: on the test set, which is no honest figure


class FinetuneSettings(Settings):
    """The whole encoder, on a part of the labels."""

    fractions: list[Share] = Field([0.1, 0.2, 0.5, 1.0], min_length=1)
    learning_rate: float = Field(0.01, gt=0)  # of the encoder
    head_learning_rate: float = Field(0.1, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    epochs: int = Field(50, ge=1)  # of the whole set: fewer labels take as many steps
    batch_size: int = Field(64, ge=4)  # an epoch's are of nearly equal size: none of one image


class AttributesSettings(Settings):
    """A table with a row an image and a column an attribute."""

    table: AbsolutePath  # .csv or .parquet
    key_column: str = "key"  # the image's key in its source: a file's path below the folder
    columns: list[str] | None = Field(None, min_length=1)  # all but the key's where unset


class AnnotatedSettings(Settings):
    """Images in a folder, and what is to be found in them."""

    images: AbsolutePath
    annotations: AbsolutePath  # COCO's .json, a folder of VOC's .xml, or a folder of masks


# Of a detector's or segmenter's encoder. "moving": its weights are frozen, and its BatchNorms go by
# each batch's own statistics while training, and average them
Trained = Literal["trained", "frozen", "moving"]


class DetectionSettings(AsTheAuthors):
    """A detector on the encoder, which must be a ResNet."""

    # downstream/detection: RetinaNet on a frozen backbone, images of 200 to 333 px
    authors = MappingProxyType(
        {
            "detector": "retinanet",
            "encoder": "frozen",
            "image_px": 200,
            "crop": True,
            "epochs": 100,
            "optimizer": "adam",
            "schedule": "cosine",
            "learning_rate": 1e-4,
            "weight_decay": 5e-4,
        }
    )

    train: AnnotatedSettings
    test: AnnotatedSettings
    detector: Literal["faster_rcnn", "retinanet"] = "faster_rcnn"  # each with a feature pyramid
    encoder: Trained = "trained"
    image_px: int = Field(800, ge=32)  # shorter side
    crop: bool = False  # while training, to a random part that holds all boxes
    epochs: int = Field(12, ge=1)
    batch_size: int = Field(16, ge=1)
    optimizer: Literal["sgd", "adam"] = "sgd"
    schedule: Literal["steps", "cosine"] = "steps"
    learning_rate: float = Field(0.02, gt=0)
    weight_decay: float = Field(1e-4, ge=0)


class SegmentationSettings(AsTheAuthors):
    """DeepLab on the encoder, which must be a ResNet."""

    # downstream/segmentation: DeepLabV3+ on a backbone of frozen weights, at ten times its rate of
    # 0.1; crops of 224 of shorter sides of 128 to 512; batches as for pets
    authors = MappingProxyType(
        {
            "head": "deeplabv3+",
            "encoder": "moving",
            "image_px": 224,
            "scales": (128 / 224, 512 / 224),
            "epochs": 30,
            "batch_size": 256,
            "nesterov": True,
            "learning_rate": 1.0,
        }
    )

    train: AnnotatedSettings
    test: AnnotatedSettings
    classes: list[str] | None = None  # names of the masks' values 0, 1, 2 …
    ignore: int = Field(255, ge=0, le=255)  # the value of pixels that do not count
    head: Literal["deeplabv3", "deeplabv3+"] = "deeplabv3"
    encoder: Trained = "trained"
    image_px: int = Field(512, ge=32)
    scales: tuple[Positive, Positive] = (0.5, 2.0)  # of image_px, while training
    epochs: int = Field(50, ge=1)
    batch_size: int = Field(16, ge=2)
    nesterov: bool = False
    learning_rate: float = Field(0.01, gt=0)
    weight_decay: float = Field(1e-4, ge=0)

    @model_validator(mode="after")
    def _ascending(self) -> SegmentationSettings:
        if self.scales[0] > self.scales[1]:
            raise ValueError("scales: the smaller one comes first")
        return self


class EvaluateSettings(Settings):
    """Which encoder is measured, on which labelled images, and how."""

    train: LabelledSource | None = None  # of all protocols but those that name their own
    test: LabelledSource | None = None
    encoder: Path | None = None  # a folder or checkpoint; this run's pretrain where unset
    protocols: list[Protocol] = Field(["linear", "knn"], min_length=1)
    k: list[Annotated[int, Field(ge=1)]] = Field([20, 200], min_length=1)  # neighbours
    seeds: int = Field(3, ge=1)
    sgd: SgdSettings = SgdSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    attributes: AttributesSettings | None = None
    detection: DetectionSettings | None = None
    segmentation: SegmentationSettings | None = None
    oracle: list[Label] | None = None  # labels that a perfect selection would take

    @property
    def needs_labelled_sets(self) -> bool:
        """Whether any of the protocols measures on `train` and `test`."""
        return not set(self.protocols) <= set(get_args(OnOwnData))

    @model_validator(mode="after")
    def _complete(self) -> EvaluateSettings:
        for name in ("attributes", "detection", "segmentation"):
            if name in self.protocols and getattr(self, name) is None:
                raise ValueError(f"{name}: missing; protocol {name} needs it")
        if "selection" in self.protocols and not self.oracle:
            raise ValueError("oracle: missing; protocol selection needs a list of labels")
        if self.needs_labelled_sets and (self.train is None or self.test is None):
            missing = "train" if self.train is None else "test"
            raise ValueError(f"{missing}: missing; name a labelled source")
        return self
