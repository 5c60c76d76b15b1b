"""A run's settings as its report shows them: without what may be secret."""

from __future__ import annotations

import re
from typing import Any

import yaml

from curate.settings import EncoderSettings, OnSetsSettings, RunSettings


def public(uri: str) -> str:
    """A URI without what may be secret in it: a password, a signature in the query."""
    if "://" not in uri:
        return uri
    return re.sub(r"\?\S*", "?…", re.sub(r"://[^/@\s]*@", "://", uri))


def as_yaml(settings: RunSettings) -> str:
    """All that are set, their URIs made public."""

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shown(one) for key, one in value.items() if one is not None}
        if isinstance(value, list | tuple):
            return [shown(one) for one in value]
        return public(value) if isinstance(value, str) else value

    document = shown(settings.model_dump(mode="json"))
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def encoder(settings: EncoderSettings) -> str:
    """In words: the backbone, and where its weights are from."""
    if settings.pretrain is not None:
        origin = f"pretrained on {_sets(settings.pretrain)} by {settings.pretrain.method}"
    elif settings.checkpoint is not None:
        origin = f"weights of {public(settings.checkpoint)}"
    elif settings.pretrained:
        origin = "timm's pretrained weights"
    else:
        origin = "random weights"
    return f"{settings.backbone} at {settings.image_px} px ({origin})"


def _sets(chosen: OnSetsSettings) -> str:
    """`the target set and 50,000 images of the open set`."""
    some = f"{chosen.open_sample:,} images of " if chosen.open_sample else ""
    named = {"target": "the target set", "open": f"{some}the open set"}
    return " and ".join(named[name] for name in chosen.data)
