"""Whether an earlier run under the same output may be gone on with: its plan, and its fingerprint.

The fingerprint is all that decides the embeddings, and nothing else. Selection settings may change
between runs; the embeddings are then used again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml

from curate import __version__, storage
from curate.errors import CurateError
from curate.images import Preprocessing
from curate.runfiles import plan
from curate.runfiles.plan import PlannedUnit
from curate.settings import RunSettings
from curate.settings import load as config

log = logging.getLogger(__name__)

PACKAGES = ("ray", "torch", "timm", "faiss-cpu", "numpy", "pyarrow", "pillow")
OWN_FILES = (
    "config.yaml",
    "plan.parquet",
    "encoder.safetensors",
    "centroids.npy",
    "coreset.parquet",
    "target_encoder",
    "pretrain",
    "evaluate",
    "recut",
    "report",
    "rounds.parquet",
    "summary.json",
    "embeddings",
    "whitened",
    "rejected",
)

Fingerprint = dict[str, Any]


def fingerprint(settings: RunSettings, preprocessing: Preprocessing, weights: str) -> Fingerprint:
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


def digest(value: Fingerprint) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def plan_of(settings: RunSettings, mark: Fingerprint) -> list[PlannedUnit]:
    """The plan of an earlier run with the same fingerprint, or a new one, frozen on disk.

    Raises CurateError, saying what differs, where another run's files are in the way.
    """
    config_uri = storage.join(settings.output, "config.yaml")
    plan_uri = storage.join(settings.output, "plan.parquet")
    # The config is written after the plan: where there is a config, there is a whole plan
    if storage.exists(config_uri):
        refuse_other(settings.output, storage.read_bytes(config_uri), mark)
        units = plan.read(plan_uri)
        log.info("plan: %d units, of the run at %s", len(units), settings.output)
    else:
        units = plan.make(settings)
        plan.write(plan_uri, units)
        log.info("plan: %d units", len(units))
    versions = {"curate": __version__, "python": platform.python_version()}
    document = {
        "settings": settings.model_dump(mode="json"),
        "versions": versions | {package: version(package) for package in PACKAGES},
        "fingerprint": mark,
    }
    storage.write_bytes(config_uri, to_yaml(document))
    return units


@dataclass(frozen=True)
class Written:
    """What load.yaml says of the run beside it."""

    settings: RunSettings
    fingerprint: Fingerprint
    versions: dict[str, str]


def written(output: str) -> Written:
    """Of the run under `output`, which may have been moved, or be seen from another machine, since.

    Raises CurateError where there is none.
    """
    uri = storage.join(output, "config.yaml")
    try:
        document = yaml.safe_load(storage.read_bytes(uri))
        settings, mark = dict(document["settings"]), dict(document["fingerprint"])
        versions = {str(name): str(one) for name, one in (document.get("versions") or {}).items()}
    except FileNotFoundError:
        raise CurateError(f"{output}: no run here (no load.yaml); `curate run` makes one") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        raise CurateError(f"{uri}: not a run's config; name the output of a run") from None
    return Written(config.parse({**settings, "output": output}, uri), mark, versions)


def remove_earlier(output: str, *, but: str | None = None) -> None:
    """Only what a run writes: the folder may hold other things. The config goes last, so that a
    removal that is cut short leaves a run that still says what it was."""
    for name in reversed(OWN_FILES):
        if name != but:
            storage.remove_tree(storage.join(output, name))


def refuse_other(
    output: str, config: bytes, mark: Fingerprint, remedy: str = "start over with --fresh"
) -> None:
    """Raises CurateError, saying what differs, where `config` is another run's under `output`."""
    try:
        earlier = yaml.safe_load(config)["fingerprint"]
    except (yaml.YAMLError, KeyError, TypeError):
        raise CurateError(
            f"{storage.join(output, 'config.yaml')}: not a run's config; set another output"
        ) from None
    # Through YAML, so that both sides have its types
    differing = list(_differences(earlier, yaml.safe_load(to_yaml(mark))))
    if differing:
        raise CurateError(
            f"{output}: holds a run with other settings: {'; '.join(differing)}. "
            f"Set another output, or {remedy}"
        )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield f"{key} was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "set"
    text = "absent" if value is None else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def to_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()
