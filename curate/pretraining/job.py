"""All that each worker of a training is told."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from curate.pretraining.plan import TrainingPlan
from curate.pretraining.probe import Probe
from curate.runfiles.files import TrainingFiles
from curate.settings import CheckpointSettings, EncoderSettings, ImageSettings


@dataclass(frozen=True)
class Job:
    section: str  # of the config, named in errors
    plan: TrainingPlan
    files: TrainingFiles
    data: str  # folder of the training set
    cache_gb: float | None  # of it, on each machine
    limits: ImageSettings
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    crop_fraction: float  # of the probe's images
    probe: Probe | None
    threads: int
    loader_workers: int
    checkpoints: CheckpointSettings
    max_unreadable_fraction: float
    init: str | None = None  # the name of what it begins from
    teacher: EncoderSettings | None = None
    compiled: bool = False
    recomputed: bool = False  # activations
    trackers: tuple[str, ...] = ("tensorboard",)
    decoded_gb: float | None = None  # of decoded images, on each machine
    token: str = field(default_factory=lambda: uuid.uuid4().hex)  # of this start of it
