"""The fingerprint: all that decides what becomes of an image, and nothing else.

Embeddings lie in a store under its digest, whichever images, targets and selections a run has.
"""

from __future__ import annotations

from typing import Literal

from curate.images import PIXELS, Preprocessing
from curate.runfiles.memo import Inputs
from curate.settings import ImageSettings, RunSettings
from curate.settings.sources import USUAL_PIXELS

Device = Literal["cpu", "gpu"]


def fingerprint(
    settings: RunSettings, preprocessing: Preprocessing, weights: str, device: Device
) -> Inputs:
    """weights: their digest, by `encoders.weights_hash`. device: GPUs compute in bf16."""
    return {
        "images": _limits(settings.images),
        "pixels": PIXELS,
        "encoder": {
            "backbone": settings.encoder.backbone,
            "weights": weights,
            "image_px": preprocessing.image_px,
            "crop_fraction": preprocessing.crop_fraction,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            # Said where it is another alone: what was embedded before there was a choice stays good
            **({"pool": settings.encoder.pool} if settings.encoder.pool else {}),
            **({"small_stem": True} if _stem_is_not_in_weights(settings) else {}),
        },
        "device": device,
    }


def _stem_is_not_in_weights(settings: RunSettings) -> bool:
    """A ResNet's small stem has weights of another shape, others' another stride alone."""
    encoder = settings.encoder
    resnet = encoder.backbone.startswith(("resnet", "resnext", "wide_resnet"))
    return encoder.small_stem and not resnet


def _limits(images: ImageSettings) -> Inputs:
    known: Inputs = images.model_dump(exclude={"max_rejected_fraction"})
    return {name: value for name, value in known.items() if USUAL_PIXELS.get(name) != value}
