"""The fingerprint: all that decides a run's embeddings, and nothing else.

Selection settings may change between runs under one output; the embeddings are then used again.
"""

from __future__ import annotations

from curate.images import Preprocessing
from curate.runfiles.memo import Inputs
from curate.settings import RunSettings


def fingerprint(settings: RunSettings, preprocessing: Preprocessing, weights: str) -> Inputs:
    """weights: their digest, by `encoders.weights_hash`."""
    return {
        "target": settings.target.model_dump(),
        "open": {source.name: source.model_dump() for source in settings.open},
        "order": [source.name for source in settings.open],
        "unit_images": settings.embed.unit_images,
        "images": settings.images.model_dump(exclude={"max_rejected_fraction"}),
        "encoder": {
            "backbone": settings.encoder.backbone,
            "weights": weights,
            "image_px": preprocessing.image_px,
            "crop_fraction": preprocessing.crop_fraction,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        },
    }
