"""The fingerprint: all that decides what becomes of an image, and nothing else.

Embeddings lie in a store under its digest, whichever images, targets and selections a run has.
"""

from __future__ import annotations

from typing import Literal

from curate.images import PIXELS, Preprocessing
from curate.runfiles.memo import Inputs
from curate.settings import RunSettings

Device = Literal["cpu", "gpu"]


def fingerprint(
    settings: RunSettings, preprocessing: Preprocessing, weights: str, device: Device
) -> Inputs:
    """weights: their digest, by `encoders.weights_hash`. device: GPUs compute in bf16."""
    return {
        "images": settings.images.model_dump(exclude={"max_rejected_fraction"}),
        "pixels": PIXELS,
        "encoder": {
            "backbone": settings.encoder.backbone,
            "weights": weights,
            "image_px": preprocessing.image_px,
            "crop_fraction": preprocessing.crop_fraction,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            # Said where it is set alone: what was embedded before there was a choice stays good
            **({"pool": settings.encoder.pool} if settings.encoder.pool else {}),
        },
        "device": device,
    }
