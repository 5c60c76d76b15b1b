"""Networks that a training does not make: the weights that it begins from, and its teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from curate.embedding import encoders
from curate.embedding.encoders import Card, Encoder, Keys
from curate.errors import CurateError
from curate.pretraining.adapt import Beginning
from curate.pretraining.plan import Taught, TrainingPlan
from curate.runfiles.files import EncoderFiles, TrainingFiles
from curate.settings import EncoderSettings, TrainingSettings

TIMM = "timm"  # in place of a checkpoint: the library's own weights for the backbone


@dataclass(frozen=True)
class Given:
    first: Encoder | None = None  # the backbone, with the weights that `init` names
    teacher: Encoder | None = None
    teacher_settings: EncoderSettings | None = None  # that build it again, elsewhere
    # Of the plan: both, known by their weights
    begins: Beginning | None = None
    taught: Taught | None = None

    def in_plan(self, plan: TrainingPlan) -> TrainingPlan:
        return replace(plan, begins=self.begins, taught=self.taught)

    def save(self, files: TrainingFiles) -> None:
        """For all workers, who reach neither a hub nor, it may be, what the config names."""
        if self.first is not None:
            self.first.save(files.init)
        if self.teacher is not None:
            self.teacher.save(files.teacher)


def given(chosen: TrainingSettings, encoder: EncoderSettings, section: str) -> Given:
    """What `init` and `teacher` name: of timm, a checkpoint, an encoder made here, or the one that
    a run has pretrained.

    Raises CurateError, naming the key in `section`, for weights that cannot be had or do not fit.
    """
    first = teacher = settings = begins = taught = None
    if chosen.init is not None:
        first = encoders.build(_first(chosen, encoder), _keys(section, "init.weights"))
        how = chosen.init.model_dump(exclude={"weights"})
        begins = Beginning(weights=encoders.weights_hash(first.module), **how)
    if chosen.teacher is not None:
        settings = _teacher(chosen, encoder, section)
        teacher = encoders.build(settings, _keys(f"{section}.teacher", "weights"))
        if len(teacher.preprocessing.mean) == 1 and encoder.channels != 1:
            raise CurateError(
                f"{section}.teacher.weights={chosen.teacher.weights}: sees grey images, and "
                "images.channels=3; train by a teacher of colours"
            )
        digest = encoders.weights_hash(teacher.module)
        taught = Taught(digest, teacher.preprocessing.image_px)
    return Given(first, teacher, settings, begins, taught)


def _keys(section: str, weights: str) -> Keys:
    return Keys(section, checkpoint=weights, pretrained=f"{weights}={TIMM}")


def _first(chosen: TrainingSettings, encoder: EncoderSettings) -> EncoderSettings:
    assert chosen.init is not None
    own: dict[str, Any] = {
        name: getattr(chosen, name)
        for name in ("backbone", "image_px", "small_stem")
        if getattr(chosen, name) is not None
    }
    place = _place(chosen.init.weights)
    card = Card.read(EncoderFiles(place)) if place else None
    if card is not None:  # images as it has seen them, unless the config says how
        own |= {"mean": encoder.mean or card.mean, "std": encoder.std or card.std}
    return encoder.model_copy(update=own | _weights(place))


def _teacher(chosen: TrainingSettings, encoder: EncoderSettings, section: str) -> EncoderSettings:
    told = chosen.teacher
    assert told is not None
    place = _place(told.weights)
    card = Card.read(EncoderFiles(place)) if place else None
    backbone = told.backbone or (card.backbone if card else None)
    if backbone is None:
        raise CurateError(
            f"{section}.teacher.weights={told.weights}: has no encoder.json that says what it is; "
            f"set {section}.teacher.backbone"
        )
    views_px = chosen.image_px or encoder.image_px
    return EncoderSettings(
        backbone=backbone,
        image_px=told.image_px or (card.image_px if card else None) or views_px,
        small_stem=bool(card and card.small_stem),
        mean=card.mean if card else None,
        std=card.std if card else None,
        channels=card.channels if card else None,
        **_weights(place),
    )


def _weights(place: str | None) -> dict[str, Any]:
    return {"pretrain": None, "pretrained": place is None, "checkpoint": place, "pool": None}


def _place(weights: str) -> str | None:
    """None for timm's."""
    return None if weights == TIMM else encoders.folder_of(weights)
