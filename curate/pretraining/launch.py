"""A training on the workers of Ray Train: where they go, how they are started, watched and, after a
loss, started again.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow.fs
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from curate import storage
from curate.cluster import alive_nodes, cause_of, on_this_node
from curate.errors import CurateError, one_line
from curate.pretraining.board import Board
from curate.pretraining.job import Job
from curate.pretraining.journal import TrainingProgress
from curate.pretraining.trackers import VARIABLES
from curate.pretraining.worker import work
from curate.settings import ResourceSettings

CPU_THREADS = 4  # of a worker without a GPU; beyond that, more workers scale better
LOADERS = 15  # processes a GPU worker decodes with, where it has the CPUs
GROWS_EVERY_S = 300.0  # an elastic group, which goes back to its newest checkpoint for that

# Ray Train runs a worker's function in a thread, whose memory glibc hands back to the kernel after
# every step and asks for again, page by page: 13 % of the time of a step on a CPU. This keeps it.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
}


@dataclass(frozen=True)
class Placement:
    workers: int
    cpus: int  # of each
    gpu: bool
    least: int | None = None  # workers of an elastic group; all where None

    @property
    def group(self) -> int | tuple[int, int]:
        """As Ray Train is told it."""
        return self.workers if self.least is None else (self.least, self.workers)


def trainings_at_once(workers: int) -> int:
    """How many trainings of so many workers the cluster has room for."""
    resources = ray.cluster_resources()
    places = int(resources.get("GPU", 0)) or int(resources.get("CPU", 0)) // CPU_THREADS
    return max(1, places // workers)


def placement_of(chosen: ResourceSettings, section: str, at_once: int = 1) -> Placement:
    """Workers: one a GPU where there are any, else one every CPU_THREADS CPUs. A CPU worker takes
    all the CPUs that `at_once` such trainings leave it."""
    nodes = alive_nodes()
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpu = gpus > 0 if chosen.use_gpu is None else chosen.use_gpu
    if gpu and not gpus and chosen.workers is None:
        raise CurateError(
            f"{section}.resources.use_gpu=true: the cluster has no GPU yet; set "
            f"{section}.resources.workers to how many it should scale up to"
        )
    least = chosen.min_workers
    workers = chosen.workers or (gpus if gpu else max(1, sum(cpus) // CPU_THREADS))
    if least is not None and least > workers:
        raise CurateError(
            f"{section}.resources.min_workers={least}: the cluster has room for {workers} now; set "
            f"{section}.resources.workers to how many it should scale up to"
        )
    if gpu:
        per_gpu = min((int(n.get("CPU", 1) / n["GPU"]) for n in nodes if n.get("GPU")), default=1)
        return Placement(workers, max(1, min(per_gpu, LOADERS + 1)), True, least)
    wanted = (least or workers) * at_once
    if wanted > sum(cpus):
        together = f" of {at_once} trainings at once" if at_once > 1 else ""
        raise CurateError(
            f"{section}.resources.workers={workers}{together}: the cluster has {sum(cpus)} CPUs; "
            "set it to that or less"
        )
    wanted = min(workers * at_once, sum(cpus))
    share = next(c for c in range(sum(cpus), 0, -1) if sum(n // c for n in cpus) >= wanted)
    return Placement(workers, share, False, least)


def launch(job: Job, placement: Placement, restarts: int) -> None:
    """Train; a worker that is lost takes all back to the newest checkpoint."""
    board = Board.options(scheduling_strategy=on_this_node()).remote()  # type: ignore[attr-defined]
    scratch = job.files.scratch
    trainer = TorchTrainer(
        partial(work, job, board),  # as a config, Ray's own controller would import it all too
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # to mypy it is that of Ray Air
            num_workers=placement.group,  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=GROWS_EVERY_S,
            use_gpu=placement.gpu,
            resources_per_worker={
                "CPU": placement.cpus,
                **({"GPU": 1} if placement.gpu else {}),
            },
        ),
        run_config=RunConfig(
            # What lies there is Ray's own; the state of the training is in our checkpoints
            name=uuid.uuid4().hex,
            failure_config=FailureConfig(max_failures=restarts),
            worker_runtime_env={"env_vars": _environment(placement)},  # type: ignore[call-arg]
            **_ray_storage(scratch),
        ),
    )
    with TrainingProgress(job.section, lambda: ray.get(board.shown.remote())):
        error: Exception | None = None
        try:
            trainer.fit()
        except Exception as failure:
            error = failure
    reason = ray.get(board.failure.remote())
    ray.kill(board)
    storage.remove_tree(scratch)
    if reason is not None:
        raise CurateError(reason) from error
    if error is not None:
        cause = cause_of(error)
        if cause is not None:
            raise cause from None
        raise CurateError(
            f"{job.section}: training failed: {one_line(error, 300)}; run again to go on from the "
            "newest checkpoint"
        ) from error


def _environment(placement: Placement) -> dict[str, str]:
    """Of the workers: trackers are told by variables where to write, and by whose account."""
    handed_on = {k: v for k, v in os.environ.items() if k.startswith(VARIABLES)}
    return handed_on | ({} if placement.gpu else KEEP_MEMORY)


def _ray_storage(uri: str) -> dict[str, Any]:
    if storage.is_local(uri):
        return {"storage_path": storage.filesystem(uri)[1]}
    filesystem, path = storage.filesystem(uri)
    wrapped = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))
    return {"storage_path": path, "storage_filesystem": wrapped}
