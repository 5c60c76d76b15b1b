"""Self-supervised pretraining on a set of images, on the workers of Ray Train.

data ──copy──> training set ──> workers (DDP) ──> checkpoints, metrics ──> encoder.safetensors
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pyarrow.fs
import ray
import torch
import yaml
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from curate import materialise, resume, storage, training_plan
from curate.errors import CurateError, one_line
from curate.probe import Probe
from curate.session import cause_of
from curate.settings import PretrainSettings, ProbeSettings, RunSettings, TrainingSettings
from curate.train_worker import Board, Job, work
from curate.trainer import Trainer
from curate.training_plan import TrainingPlan
from curate.training_set import Index
from curate.watch import Record, TrainingProgress

log = logging.getLogger(__name__)

CPU_THREADS = 4  # of a worker without a GPU; beyond that, more workers scale better
LOADERS = 15  # processes a GPU worker decodes with, where it has the CPUs
POLL_S = 0.5

# Ray Train runs a worker's function in a thread, whose memory glibc hands back to the kernel after
# every step and asks for again, page by page: 13 % of the time of a step on a CPU. This keeps it.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
}

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a training has its files, and how its errors speak of it."""

    section: str  # of the config
    folder: str  # of checkpoints, metrics and the encoder
    images: str  # folder of the training set's copy
    remedy: str  # where another training is in the way
    at_once: int = 1  # trainings of this kind that share the cluster's CPUs


@dataclass(frozen=True)
class _Placement:
    workers: int
    cpus: int  # of each
    gpu: bool


def pretrain(settings: RunSettings, *, fresh: bool = False, place: Place | None = None) -> Outcome:
    """`curate pretrain`: train on what `pretrain.data` names. Returns what summary.json holds.

    place: `output`/pretrain where None.
    Raises CurateError where the training cannot be what the settings ask for.
    """
    chosen = settings.pretrain or PretrainSettings()
    place = place or _inside("pretrain", storage.join(settings.output, "pretrain"))
    return _train(settings, chosen, chosen.data, place, fresh)


def pretrain_on_target(settings: RunSettings, *, fresh: bool = False) -> str:
    """Step 1 of the algorithm. Returns the folder of the encoder."""
    chosen = settings.encoder.pretrain_on_target
    assert chosen is not None
    folder = storage.join(settings.output, "target_encoder")
    place = _inside("encoder.pretrain_on_target", folder)
    _train(settings, chosen, ["target"], place, fresh)
    return folder


def _inside(section: str, folder: str) -> Place:
    """Everything in one folder."""
    remedy = "start this training over with `curate pretrain … --fresh`"
    return Place(section, folder, storage.join(folder, "data"), remedy)


def _train(
    settings: RunSettings,
    chosen: TrainingSettings,
    data: list[str],
    place: Place,
    fresh: bool,
) -> Outcome:
    section, folder = place.section, place.folder
    placement = _placement(chosen, section, place.at_once)
    _check_early(settings, chosen, section)
    if fresh:
        storage.remove_tree(folder)
    _refuse_other(place, {"made_from": materialise.request(settings, data)})
    index = materialise.training_images(settings, data, place.images)
    plan = training_plan.make(
        chosen,
        settings.encoder,
        images=index.images,
        open_images=index.open_images,
        workers=placement.workers,
        section=section,
    )
    mark = {
        "made_from": index.made_from,
        "dataset": index.fingerprint,
        "training": plan.to_dict(),
        "normalisation": {"mean": settings.encoder.mean, "std": settings.encoder.std},
    }
    _refuse_other(place, mark)
    config = storage.join(folder, "config.yaml")
    storage.write_bytes(config, resume.to_yaml({"fingerprint": _plain(mark)}))
    if storage.exists(storage.join(folder, "encoder.json")):
        log.info("%s: done before, at %s", section, folder)
    else:
        job = _job(settings, chosen, plan, place, placement)
        log.info(
            "%s: %s on %s, %d images, %d epochs of %d steps of %d, on %d %s",
            *(section, plan.method, plan.backbone, plan.images, plan.epochs, plan.steps_per_epoch),
            *(plan.batch_size, placement.workers, "GPUs" if placement.gpu else "CPU workers"),
        )
        _fit(job, placement, chosen.restarts)
    return _summary(folder, plan, index, placement)


def _check_early(settings: RunSettings, chosen: TrainingSettings, section: str) -> None:
    """Build the model once, here and without its weights: what is wrong with it is told at once,
    not by a worker in a minute."""
    plan = training_plan.make(
        chosen, settings.encoder, images=1 << 20, open_images=0, workers=1, section=section
    )
    with torch.device("meta"):
        Trainer(plan, torch.device("meta"), section=section)


def _refuse_other(place: Place, mark: dict[str, Any]) -> None:
    """Raises CurateError where config.yaml says that something else is trained here; a `mark` of
    some keys is compared in these alone, before work is spent on the others."""
    uri = storage.join(place.folder, "config.yaml")
    if not storage.exists(uri):
        return
    try:
        earlier = yaml.safe_load(storage.read_bytes(uri))["fingerprint"]
        there = {name: earlier[name] for name in mark}
    except (yaml.YAMLError, KeyError, TypeError):
        raise CurateError(f"{uri}: not a training's config; set another output") from None
    config = resume.to_yaml({"fingerprint": there})
    resume.refuse_other(place.folder, config, _plain(mark), place.remedy)


def _plain(value: Any) -> Any:
    """As JSON and YAML have it: lists for tuples."""
    return json.loads(json.dumps(value))


def _job(
    settings: RunSettings,
    chosen: TrainingSettings,
    plan: TrainingPlan,
    place: Place,
    placement: _Placement,
) -> Job:
    loaders = chosen.loader_workers
    if loaders is None:
        loaders = min(LOADERS, placement.cpus - 1) if placement.gpu else 0
    return Job(
        section=place.section,
        plan=plan,
        folder=place.folder,
        data=place.images,
        limits=settings.images,
        mean=settings.encoder.mean,
        std=settings.encoder.std,
        crop_fraction=settings.encoder.crop_fraction,
        probe=_probe(settings, chosen.probe, place.folder) if chosen.probe else None,
        threads=1 if placement.gpu else max(1, placement.cpus - loaders),
        loader_workers=loaders,
        checkpoint_every=chosen.checkpoint_every,
        keep_checkpoints=chosen.keep_checkpoints,
        max_unreadable_fraction=chosen.max_unreadable_fraction,
    )


def _probe(settings: RunSettings, probe: ProbeSettings, folder: str) -> Probe:
    folders = {name: storage.join(folder, "probe", name) for name in ("train", "test")}
    for name, place in folders.items():
        materialise.labelled_images(settings, getattr(probe, name), place)
    return Probe(folders["train"], folders["test"], probe.every, probe.k)


def trainings_at_once(workers: int) -> int:
    """How many trainings of so many workers the cluster has room for."""
    resources = ray.cluster_resources()
    places = int(resources.get("GPU", 0)) or int(resources.get("CPU", 0)) // CPU_THREADS
    return max(1, places // workers)


def _placement(chosen: TrainingSettings, section: str, at_once: int) -> _Placement:
    """Workers: one a GPU where there are any, else one every CPU_THREADS CPUs. A CPU worker takes
    all the CPUs that `at_once` such trainings leave it."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpu = gpus > 0 if chosen.use_gpu is None else chosen.use_gpu
    if gpu and not gpus and chosen.workers is None:
        raise CurateError(
            f"{section}.use_gpu=true: the cluster has no GPU yet; set {section}.workers to how "
            "many it should scale up to"
        )
    if gpu:
        workers = chosen.workers or gpus
        per_gpu = min((int(n.get("CPU", 1) / n["GPU"]) for n in nodes if n.get("GPU")), default=1)
        return _Placement(workers, max(1, min(per_gpu, LOADERS + 1)), True)
    workers = chosen.workers or max(1, sum(cpus) // CPU_THREADS)
    wanted = workers * at_once
    if wanted > sum(cpus):
        together = f" of {at_once} trainings at once" if at_once > 1 else ""
        raise CurateError(
            f"{section}.workers={workers}{together}: the cluster has {sum(cpus)} CPUs; "
            "set it to that or less"
        )
    share = next(c for c in range(sum(cpus), 0, -1) if sum(n // c for n in cpus) >= wanted)
    return _Placement(workers, share, False)


def _fit(job: Job, placement: _Placement, restarts: int) -> None:
    """Train; a worker that is lost takes all back to the newest checkpoint."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    scratch = storage.join(job.folder, ".ray")
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job, "board": board},
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
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
            worker_runtime_env={"env_vars": {} if placement.gpu else KEEP_MEMORY},  # type: ignore[call-arg]
            **_ray_storage(scratch),
        ),
    )
    with _shown(board, job.section):
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


def _ray_storage(uri: str) -> dict[str, Any]:
    if storage.is_local(uri):
        return {"storage_path": storage.filesystem(uri)[1]}
    filesystem, path = storage.filesystem(uri)
    wrapped = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))
    return {"storage_path": path, "storage_filesystem": wrapped}


@contextmanager
def _shown(board: ray.actor.ActorHandle, what: str) -> Iterator[None]:
    """Show what rank 0 leaves on the board, until the training ends."""
    progress = TrainingProgress(what)
    ended = threading.Event()

    def shown() -> Record | None:
        record: Any = ray.get(board.shown.remote())
        return cast("Record | None", record)

    def poll() -> None:
        while not ended.wait(POLL_S):
            progress.show(shown())

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        progress.show(shown(), ended=True)


def _summary(folder: str, plan: TrainingPlan, index: Index, placement: _Placement) -> Outcome:
    lines = storage.read_bytes(storage.join(folder, "metrics.jsonl")).decode().splitlines()
    records = [json.loads(line) for line in lines]
    last = records[-1]
    probed = [record["knn"] for record in records if "knn" in record]
    summary = {
        "method": plan.method,
        "backbone": plan.backbone,
        "image_px": plan.image_px,
        "images": index.images,
        "open_images": index.open_images,
        "rejected": index.rejected,
        "unreadable": last["unreadable"],
        "epochs": plan.epochs,
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "workers": placement.workers,
        "loss": last["loss"],
        "embedding_std": last["embedding_std"],
        "knn": probed[-1] if probed else None,
        "images_per_s": round(last["images_per_s"], 1),
        "seconds": round(last["seconds"], 1),
        "encoder": folder,
    }
    storage.write_json(storage.join(folder, "summary.json"), summary)
    return summary
