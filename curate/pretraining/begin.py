"""The weights that a training begins from, as its settings name them."""

from __future__ import annotations

from typing import Any

from curate import storage
from curate.embedding import encoders
from curate.embedding.encoders import Card, Encoder, Keys
from curate.pretraining.adapt import Beginning
from curate.runfiles.files import EncoderFiles, RunFiles
from curate.settings import EncoderSettings, TrainingSettings

TIMM = "timm"  # in place of a checkpoint: the library's own weights for the backbone


def first_weights(
    chosen: TrainingSettings, encoder: EncoderSettings, section: str
) -> Encoder | None:
    """The backbone with the weights that `init` names, of timm, a checkpoint, an encoder made here,
    or the one that a run has pretrained; None without `init`.

    Raises CurateError, naming the key in `section`, for weights that cannot be had or do not fit.
    """
    if chosen.init is None:
        return None
    own: dict[str, Any] = {
        name: getattr(chosen, name)
        for name in ("backbone", "image_px", "small_stem")
        if getattr(chosen, name) is not None
    }
    own |= {"pretrain": None, "pretrained": False, "checkpoint": None}
    if chosen.init.weights == TIMM:
        own["pretrained"] = True
    else:
        place = _folder_of(chosen.init.weights)
        own["checkpoint"] = place
        card = Card.read(EncoderFiles(place))
        if card is not None:  # images as it has seen them, unless the config says how
            own |= {"mean": encoder.mean or card.mean, "std": encoder.std or card.std}
    keys = Keys(section, checkpoint="init.weights", pretrained=f"init.weights={TIMM}")
    return encoders.build(encoder.model_copy(update=own), keys)


def beginning_of(chosen: TrainingSettings, weights: Encoder | None) -> Beginning | None:
    if chosen.init is None or weights is None:
        return None
    how = chosen.init.model_dump(exclude={"weights"})
    return Beginning(weights=encoders.weights_hash(weights.module), **how)


def _folder_of(place: str) -> str:
    """Of a run: that of the encoder that it has pretrained."""
    pretrained = RunFiles(place).pretrain
    own = storage.exists(EncoderFiles(place).card)
    return pretrained.folder if not own and storage.exists(pretrained.card) else place
