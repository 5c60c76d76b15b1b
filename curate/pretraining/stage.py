"""Self-supervised pretraining on a set of images, on the workers of Ray Train.

data ──copy──> training set ──> workers (DDP) ──> checkpoints, metrics ──> encoder.safetensors
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from curate import storage
from curate.dataset import materialise
from curate.dataset.training_set import Index
from curate.errors import CurateError
from curate.pretraining.launch import LOADERS, Placement, launch, placement_of
from curate.pretraining.plan import TrainingPlan, make_plan
from curate.pretraining.probe import Probe
from curate.pretraining.trainer import Trainer
from curate.pretraining.worker import Job
from curate.runfiles import fingerprint
from curate.settings import PretrainSettings, ProbeSettings, RunSettings, TrainingSettings

log = logging.getLogger(__name__)

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a training has its files, and how its errors speak of it."""

    section: str  # of the config
    folder: str  # of checkpoints, metrics and the encoder
    images: str  # folder of the training set's copy
    remedy: str  # where another training is in the way
    at_once: int = 1  # trainings of this kind that share the cluster's CPUs


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
    placement = placement_of(chosen.resources, section, place.at_once)
    _check_early(settings, chosen, section)
    if fresh:
        storage.remove_tree(folder)
    _refuse_other(place, {"made_from": materialise.request(settings, data)})
    index = materialise.training_images(settings, data, place.images)
    plan = make_plan(
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
    storage.write_bytes(config, fingerprint.to_yaml({"fingerprint": _plain(mark)}))
    if storage.exists(storage.join(folder, "encoder.json")):
        log.info("%s: done before, at %s", section, folder)
    else:
        job = _job(settings, chosen, plan, place, placement)
        log.info(
            "%s: %s on %s, %d images, %d epochs of %d steps of %d, on %d %s",
            *(section, plan.method, plan.backbone, plan.images, plan.epochs, plan.steps_per_epoch),
            *(plan.batch_size, placement.workers, "GPUs" if placement.gpu else "CPU workers"),
        )
        launch(job, placement, chosen.resources.restarts)
    return _summary(folder, plan, index, placement)


def _check_early(settings: RunSettings, chosen: TrainingSettings, section: str) -> None:
    """Build the model once, here and without its weights: what is wrong with it is told at once,
    not by a worker in a minute."""
    plan = make_plan(
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
    config = fingerprint.to_yaml({"fingerprint": there})
    fingerprint.refuse_other(place.folder, config, _plain(mark), place.remedy)


def _plain(value: Any) -> Any:
    """As JSON and YAML have it: lists for tuples."""
    return json.loads(json.dumps(value))


def _job(
    settings: RunSettings,
    chosen: TrainingSettings,
    plan: TrainingPlan,
    place: Place,
    placement: Placement,
) -> Job:
    loaders = chosen.resources.loader_workers
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
        checkpoints=chosen.checkpoints,
        max_unreadable_fraction=chosen.max_unreadable_fraction,
    )


def _probe(settings: RunSettings, probe: ProbeSettings, folder: str) -> Probe:
    folders = {name: storage.join(folder, "probe", name) for name in ("train", "test")}
    for name, place in folders.items():
        materialise.labelled_images(settings, getattr(probe, name), place)
    return Probe(folders["train"], folders["test"], probe.every, probe.k)


def _summary(folder: str, plan: TrainingPlan, index: Index, placement: Placement) -> Outcome:
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
