"""Cells of a comparison: one training of one arm for one target, and its measurement, on Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray import ObjectRef

from curate import storage
from curate.cluster import own_errors
from curate.comparison.arms import data_of, selection_name, training_of
from curate.comparison.table import Trained
from curate.dataset import materialise
from curate.embedding import encoders
from curate.embedding.encoders import Card
from curate.evaluate.stage import measure
from curate.pretraining.stage import Place, pretrain
from curate.privacy import public_document
from curate.runfiles.files import EncoderFiles, RunFiles, TrainingFiles
from curate.runfiles.memo import Inputs, Memo
from curate.settings import (
    ArmSettings,
    ComparisonSettings,
    EncoderSettings,
    EvaluateSettings,
    RunSettings,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One training of one arm for one target, and its measurement."""

    target: str
    arm: ArmSettings
    seed: int
    settings: RunSettings  # with `pretrain` as this cell trains
    files: TrainingFiles
    images: str  # folder of what it trains on, shared by the arm's seeds

    @property
    def title(self) -> str:
        return f"{self.arm.title} on {self.target}, seed {self.seed}"


def cells_of(settings: ComparisonSettings, name: str, run_settings: RunSettings) -> list[Cell]:
    cells = []
    for arm in settings.arms:
        for seed in range(arm.seeds or settings.seeds):
            files = RunFiles(run_settings.output)
            training = training_of(settings, arm, data_of(arm, seed, files), seed)
            own = run_settings.model_copy(update={"pretrain": training})
            images = files.arm_images(selection_name(arm, seed))
            cells.append(Cell(name, arm, seed, own, files.arm(arm.title, seed), images))
    return cells


def _inputs(cell: Cell) -> Inputs:
    """All that decides a cell's figures: a result with the same is this cell's."""
    settings = cell.settings
    assert settings.pretrain is not None and settings.evaluate is not None
    # Which move no weight, or stand in `data`; what is unset says nothing, so that a key that is
    # new to this version undoes no result
    elsewhere = ("data", "open_sample", "dataset", "resources", "trackers")
    aside: dict[str, Any] = dict.fromkeys(elsewhere, True)
    aside["checkpoints"] = {"every", "keep"}
    if settings.pretrain.checkpoints.best != "knn":
        aside["probe"] = True
    return {
        "data": _request(settings) if cell.arm.kind != "untrained" else None,
        "training": settings.pretrain.model_dump(mode="json", exclude=aside, exclude_none=True),
        "encoder": settings.encoder.model_dump(
            mode="json", exclude={"pretrain"}, exclude_none=True
        ),
        "evaluate": _measured(settings.evaluate),
    }


def _measured(chosen: EvaluateSettings) -> Inputs:
    """Without what protocols that do not run are told."""
    idle = {"sgd", "finetune", "attributes", "detection", "segmentation"} - set(chosen.protocols)
    document: Inputs = public_document(chosen.model_dump(mode="json", exclude=idle))
    return document


def _request(settings: RunSettings) -> Inputs:
    chosen = settings.pretrain
    assert chosen is not None
    side_px = chosen.side_px(settings.encoder.image_px)
    return materialise.request(settings, chosen.data, chosen.open_sample, side_px)


def finished(cells: list[Cell]) -> list[Trained]:
    found = []
    for cell in cells:
        document = Memo(cell.files.result).found(_inputs(cell))
        if document is not None:
            found.append(Trained(**document["trained"]))
    return found


def run_cells(cells: list[Cell], done: list[Trained], at_once: int) -> Iterator[Trained]:
    """As many as fit side by side; each yields when it is done."""
    known = {(one.target, one.arm, one.seed) for one in done}
    waiting = [c for c in cells if (c.target, c.arm.title, c.seed) not in known]
    running: dict[ObjectRef, Cell] = {}
    started = time.monotonic()
    finished = 0
    with own_errors():
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    cell = waiting.pop(0)
                    _copy_images(cell)
                    log.info("%s: begins", cell.title)
                    running[_train_and_measure.remote(cell, at_once)] = cell
                [ready], _ = ray.wait(list(running))
                cell = running.pop(ready)
                trained: Trained = ray.get(ready)
                finished += 1
                left = (time.monotonic() - started) / finished * (len(waiting) + len(running))
                log.info(
                    "%s: %s; %d of %d done, about %.0f min left",
                    cell.title,
                    ", ".join(_headlines(trained)),
                    len(known) + finished,
                    len(cells),
                    left / 60,
                )
                yield trained
        finally:
            for task in running:
                ray.cancel(task, recursive=True)


def _headlines(trained: Trained) -> Iterator[str]:
    """The figures that a line has room for; all are in the tables."""
    for name, value in trained.values.items():
        if not name.endswith("mean per class"):
            yield f"{name} {value:.1%}"


def _copy_images(cell: Cell) -> None:
    """Once for all seeds of an arm, and before they start: they share the copy."""
    if cell.arm.kind != "untrained":
        chosen = cell.settings.pretrain
        assert chosen is not None
        side_px = chosen.side_px(cell.settings.encoder.image_px)
        materialise.training_images(
            cell.settings, chosen.data, cell.images, chosen.open_sample, side_px
        )


@ray.remote(num_cpus=0, max_retries=0)
def _train_and_measure(cell: Cell, at_once: int) -> Trained:
    settings, started = cell.settings, time.monotonic()
    assert settings.evaluate is not None
    if cell.arm.kind == "untrained":
        images = 0
        _export_untrained(settings.encoder, cell.seed, cell.files)
    else:
        remedy = "remove that folder, or start all over with `curate compare … --fresh`"
        place = Place("pretrain", cell.files, cell.images, remedy, at_once)
        images = pretrain(settings, place=place).images
    sets = RunFiles(settings.output).evaluation
    found = measure(settings, settings.evaluate, cell.files.folder, sets.folder)
    trained = Trained(
        target=cell.target,
        arm=cell.arm.title,
        seed=cell.seed,
        images=images,
        seconds=round(time.monotonic() - started, 1),
        values={result.metric: result.value for result in found},
    )
    Memo(cell.files.result).write(
        _inputs(cell), trained=asdict(trained), results=[asdict(result) for result in found]
    )
    storage.remove_tree(cell.files.checkpoints)  # the encoder stays
    return trained


def _export_untrained(settings: EncoderSettings, seed: int, files: EncoderFiles) -> None:
    """Random weights: what a backbone knows by its architecture alone."""
    own = {"pretrain": None, "checkpoint": None, "pretrained": False, "seed": seed}
    untrained = settings.model_copy(update=own)
    encoders.build(untrained).save(files.weights)
    card = Card(untrained.backbone, untrained.small_stem, untrained.image_px)
    card.write(files)
