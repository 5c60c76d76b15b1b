"""Self-supervised pretraining on a set of images, on the workers of Ray Train.

data ──copy──> training set ──> workers (DDP) ──> checkpoints, metrics ──> encoder.safetensors
"""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import asdict, dataclass, replace

import torch

from curate import storage
from curate.dataset import materialise
from curate.dataset.training_set import Index
from curate.pretraining.begin import Given, given
from curate.pretraining.job import Job
from curate.pretraining.launch import LOADERS, Placement, launch, placement_of
from curate.pretraining.plan import TrainingPlan, make_plan, sets_of
from curate.pretraining.probe import Probe
from curate.pretraining.recorder import last_of
from curate.pretraining.trainer import Trainer
from curate.runfiles.files import RunFiles, TrainingFiles
from curate.runfiles.lock import held
from curate.runfiles.memo import Memo
from curate.runfiles.status import Reporter
from curate.runfiles.summary import TrainingSummary
from curate.settings import (
    OnSetsSettings,
    PretrainSettings,
    ProbeSettings,
    RunSettings,
    TrainingSettings,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a training has its files, and how its errors speak of it."""

    section: str  # of the config
    files: TrainingFiles
    images: str  # folder of the training set's copy
    remedy: str  # where another training is in the way
    at_once: int = 1  # trainings of this kind that share the cluster's CPUs


def pretrain(
    settings: RunSettings, *, fresh: bool = False, place: Place | None = None
) -> TrainingSummary:
    """`curate pretrain`: train on what `pretrain.data` names. Returns what summary.json holds.

    place: `output`/pretrain where None.
    Raises CurateError where the training cannot be what the settings ask for.
    """
    chosen = settings.pretrain or PretrainSettings()
    if place is not None:  # whoever says where holds the lock
        return _train(settings, chosen, place, fresh)
    with held(settings.output, "pretrain"), Reporter(settings.output) as status:
        place = _inside("pretrain", RunFiles(settings.output).pretrain)
        with status.stage("pretrain"):
            return _train(settings, chosen, place, fresh, status)


def pretrain_encoder(settings: RunSettings, *, fresh: bool = False) -> str:
    """Step 1 of the algorithm. Returns the folder of the encoder."""
    chosen = settings.encoder.pretrain
    assert chosen is not None
    files = RunFiles(settings.output).target_encoder
    _train(settings, chosen, _inside("encoder.pretrain", files), fresh)
    return files.folder


def _inside(section: str, files: TrainingFiles) -> Place:
    """Everything in one folder."""
    remedy = "start this training over with `curate pretrain … --fresh`"
    return Place(section, files, files.images, remedy)


def _train(
    settings: RunSettings,
    chosen: OnSetsSettings,
    place: Place,
    fresh: bool,
    status: Reporter | None = None,
) -> TrainingSummary:
    """status: is begun once nothing is refused any more."""
    section, files, data = place.section, place.files, chosen.data
    memo = Memo(files.memo)
    placement = placement_of(chosen.resources, section, place.at_once)
    networks = given(chosen, settings.encoder, section)
    _check(settings, chosen, data, section, placement.workers, networks)
    if fresh:
        storage.remove_tree(files.folder)
    side_px = chosen.side_px(settings.encoder.image_px)
    request = materialise.request(settings, data, chosen.open_sample, side_px)
    memo.refuse_other({"data": request}, place.remedy)
    if status is not None:
        status.begin()
    index = materialise.training_images(settings, data, place.images, chosen.open_sample, side_px)
    plan = make_plan(
        chosen,
        settings.encoder,
        images=index.images,
        open_images=index.open_images,
        workers=placement.workers,
        section=section,
    )
    sets = sets_of(data, chosen.shares, index.images, index.open_images, section)
    plan = networks.in_plan(replace(plan, sets=sets))
    inputs = {
        "data": index.made_from,
        "dataset": index.fingerprint,
        "training": plan.to_dict(),
        "normalisation": {"mean": settings.encoder.mean, "std": settings.encoder.std},
    }
    memo.refuse_other(inputs, place.remedy)
    memo.write(inputs)
    if storage.exists(files.card):
        log.info("%s: done before, at %s", section, files.folder)
    else:
        networks.save(files)
        job = _job(settings, chosen, plan, place, placement, networks)
        log.info(
            "%s: %s on %s, %d images, %d epochs of %d steps of %d, on %d %s",
            *(section, plan.method, plan.backbone, plan.images, plan.epochs, plan.steps_per_epoch),
            *(plan.batch_size, placement.workers, "GPUs" if placement.gpu else "CPU workers"),
        )
        if plan.sets:
            seen = " and ".join(
                f"each of {name} {times:,.1f} times"
                for name, times in zip(data, plan.seen(), strict=True)
            )
            log.info("%s: sees %s", section, seen)
        launch(job, placement, chosen.resources.restarts)
    return _summary(files, plan, index, placement, chosen)


def check(settings: RunSettings) -> None:
    """What can be told of the run's trainings before an image is read.

    Raises CurateError for a model that cannot be, a batch that workers cannot share, a cluster
    without room for them, and manifests that are not there.
    """
    first, final = settings.encoder.pretrain, settings.pretrain
    if first is not None:
        section = "encoder.pretrain"
        workers = placement_of(first.resources, section).workers
        _check(settings, first, first.data, section, workers)
    if final is not None:
        # One that this run does not start may be meant for another cluster
        here = "coreset" in final.data
        workers = (
            placement_of(final.resources, "pretrain").workers
            if here
            else final.resources.workers or 1
        )
        others = [name for name in final.data if name != "coreset"]
        _check(settings, final, others, "pretrain", workers)


def _check(
    settings: RunSettings,
    chosen: TrainingSettings,
    data: list[str],
    section: str,
    workers: int,
    networks: Given | None = None,
) -> None:
    """Builds the model once, here and without its weights: what is wrong with it is told at once,
    not by a worker in a minute."""
    materialise.check(settings, data)
    plan = make_plan(
        chosen, settings.encoder, images=1 << 20, open_images=0, workers=workers, section=section
    )
    networks = networks or given(chosen, settings.encoder, section)
    plan = networks.in_plan(plan)
    teacher = networks.teacher
    if teacher is not None:
        teacher = replace(teacher, module=copy.deepcopy(teacher.module))
    with torch.device("meta"):
        Trainer(
            *(plan, torch.device("meta")),
            section=section,
            teacher=teacher,
            recomputed=chosen.resources.checkpoint_activations,
        )


def _job(
    settings: RunSettings,
    chosen: TrainingSettings,
    plan: TrainingPlan,
    place: Place,
    placement: Placement,
    networks: Given,
) -> Job:
    first = networks.first
    loaders = chosen.resources.loader_workers
    if loaders is None:
        loaders = min(LOADERS, placement.cpus - 1) if placement.gpu else 0
    return Job(
        section=place.section,
        plan=plan,
        files=place.files,
        data=place.images,
        cache_gb=chosen.resources.cache_gb,
        limits=settings.images,
        mean=first.preprocessing.mean if first else settings.encoder.mean,
        std=first.preprocessing.std if first else settings.encoder.std,
        crop_fraction=settings.encoder.crop_fraction,
        probe=_probe(settings, chosen.probe, place.files) if chosen.probe else None,
        threads=1 if placement.gpu else max(1, placement.cpus - loaders),
        loader_workers=loaders,
        checkpoints=chosen.checkpoints,
        max_unreadable_fraction=chosen.max_unreadable_fraction,
        init=chosen.init.weights if chosen.init else None,
        teacher=networks.teacher_settings,
        trackers=tuple(chosen.trackers),
        crops_on=chosen.resources.crops_on,
        decoded_gb=chosen.resources.decoded_gb,
        compiled=chosen.resources.compile,
        recomputed=chosen.resources.checkpoint_activations,
        workers=placement.workers,
        elastic=placement.least is not None,
    )


def _probe(settings: RunSettings, probe: ProbeSettings, files: TrainingFiles) -> Probe:
    folders = {name: files.probe(name) for name in ("train", "test")}
    for name, place in folders.items():
        materialise.labelled_images(settings, getattr(probe, name), place)
    return Probe(folders["train"], folders["test"], probe.every, probe.k)


def _summary(
    files: TrainingFiles,
    plan: TrainingPlan,
    index: Index,
    placement: Placement,
    chosen: OnSetsSettings,
) -> TrainingSummary:
    lines = storage.read_bytes(files.metrics).decode().splitlines()
    records = [json.loads(line) for line in lines]
    last = records[-1]
    summary = TrainingSummary(
        method=plan.method,
        backbone=plan.backbone,
        image_px=plan.image_px,
        images=index.images,
        open_images=index.open_images,
        rejected=index.rejected,
        unreadable=last["unreadable"],
        epochs=plan.epochs,
        steps=plan.steps,
        batch_size=plan.batch_size,
        workers=placement.workers,
        loss=last["loss"],
        embedding_std=last["embedding_std"],
        knn=last_of(records, "knn"),
        images_per_s=round(last["images_per_s"], 1),
        seconds=round(last["seconds"], 1),
        encoder=files.folder,
        seen=dict(zip(chosen.data if plan.sets else ["all"], plan.seen(), strict=True)),
        init=chosen.init.weights if chosen.init else None,
        reduced=index.reduced,
    )
    storage.write_json(files.summary, asdict(summary))
    return summary
