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
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
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
    crops_on: str = "cpu"  # or device
    decoded_gb: float | None = None  # of decoded images, on each machine
    workers: int = 1  # at most, of a group that is elastic
    elastic: bool = False
    token: str = field(default_factory=lambda: uuid.uuid4().hex)  # of this start of it

    def shared_by(self, workers: int) -> tuple[int, int]:
        """How many of so many workers train, and in how many parts each works off its batch: as
        many workers as share the batch out evenly, and parts that take no more memory than those of
        the whole group."""
        batch_size, least_parts = self.plan.batch_size, self.plan.accumulate or 1
        if workers == self.workers:
            return workers, least_parts
        most = batch_size // self.workers // least_parts  # images that one has memory for
        for ranks in range(workers, 0, -1):
            own, left = divmod(batch_size, ranks)
            for parts in range(least_parts, own // 2 + 1) if not left else ():
                if own % parts == 0 and own // parts <= most:
                    return ranks, parts
        raise AssertionError("one worker can work off what each of all has, one behind the other")
