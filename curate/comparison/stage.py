"""Several arms at equal training steps, on one target or more: does the coreset pay?

each target: run (embedded once) ─> a selection an arm ─> its images ─> trainings ─> evaluations
                                                                     └─> comparison.{json,md}
"""

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
from curate.comparison.table import Trained, as_json, as_markdown
from curate.coreset import stage as coresets
from curate.coreset.quality import Quality
from curate.coreset.quality_on_ray import selection_quality
from curate.dataset import materialise
from curate.embedding import encoders
from curate.evaluate.stage import labelled_sets, measure
from curate.pipeline import run
from curate.pretraining.launch import trainings_at_once
from curate.pretraining.stage import Place, pretrain
from curate.runfiles.files import ComparisonFiles, EncoderFiles, RunFiles, TrainingFiles
from curate.runfiles.memo import Inputs, Memo
from curate.runfiles.run import Embedded, Run
from curate.settings import (
    ArmSettings,
    ComparisonSettings,
    CoresetSettings,
    EncoderSettings,
    PretrainSettings,
    RunSettings,
)

log = logging.getLogger(__name__)

OPEN_DATA = {"x": ["target"], "os": ["open"], "x+os": ["target", "open"]}


@dataclass(frozen=True)
class _Cell:
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


def compare(settings: ComparisonSettings, *, fresh: bool = False) -> dict[str, Any]:
    """`curate compare`: train and measure every arm, as many at once as there is room for.

    Goes on where an earlier call was stopped. Returns what comparison.json holds.
    Raises CurateError where an arm cannot be what the settings ask for.
    """
    if fresh:
        for name in settings.targets:
            storage.remove_tree(storage.join(settings.output, name))
    cells: list[_Cell] = []
    selections: list[dict[str, Any]] = []
    for name in settings.targets:
        run_settings = _run_settings(settings, name)
        log.info("%s: the run that all arms share, at %s", name, run_settings.output)
        run(run_settings)
        selections += _select(settings, name, run_settings)
        sets = RunFiles(run_settings.output).evaluation
        labelled_sets(run_settings, settings.targets[name].evaluate, sets.folder)
        cells += _cells(settings, name, run_settings)
    cells.sort(key=lambda cell: cell.seed)  # all arms once, before any arm twice
    done = _finished(cells)
    if done:
        log.info("%d of %d trainings were done before", len(done), len(cells))
    document = _write(settings, done, selections)
    for trained in _run_cells(cells, done, _at_once(settings)):
        done.append(trained)
        document = _write(settings, done, selections)
    return document


def _run_settings(settings: ComparisonSettings, name: str) -> RunSettings:
    target = settings.targets[name]
    shared = {key: getattr(settings, key) for key in ("open", "encoder", "images", "embed")}
    return RunSettings(
        **shared,
        target=target.target,
        evaluate=target.evaluate,
        coreset=settings.coreset,
        output=ComparisonFiles(settings.output).target(name).output,
    )


# What each arm trains on


def _data_of(arm: ArmSettings, seed: int, files: RunFiles) -> list[str]:
    """As `coresets.data` names it."""
    if arm.kind in OPEN_DATA:
        return OPEN_DATA[arm.kind]
    return ["target", files.selection(_selection_name(arm, seed))]


def _selection_name(arm: ArmSettings, seed: int) -> str:
    """A random sample is drawn anew for each seed: its luck is part of what is compared."""
    return f"{arm.title}-{seed}" if arm.kind == "random" else arm.title


def coreset_of(
    settings: ComparisonSettings, arm: ArmSettings, seed: int, labels: list[str]
) -> CoresetSettings | None:
    """The selection's settings; None for arms that select nothing."""
    common = settings.coreset
    p = settings.p if arm.p is None else arm.p
    clusters = arm.clusters or (1 if arm.kind == "simcore-k1" else common.clusters)
    if arm.kind == "random":
        return CoresetSettings(method="random", budget=p, seed=seed)
    if arm.kind == "oracle":
        return CoresetSettings(method="oracle", labels=labels, budget=arm.p, seed=seed)
    if arm.kind in ("simcore", "simcore-k1"):
        changes = {"method": "simcore", "clusters": clusters, "tau": arm.tau, "budget": p}
        return common.model_copy(update={**changes, "budget_times_target": None})
    if arm.kind == "simcore-stop":
        tau = common.tau if arm.tau is None else arm.tau
        limit = common.budget_times_target
        if arm.p is None and common.budget is None and limit is None:
            limit = 50.0  # the authors' cap
        budget = common.budget if arm.p is None else arm.p
        changes = {"method": "simcore", "clusters": clusters, "tau": tau, "budget": budget}
        return common.model_copy(update={**changes, "budget_times_target": limit})
    return None


def _select(
    settings: ComparisonSettings, name: str, run_settings: RunSettings
) -> list[dict[str, Any]]:
    """Every arm's manifest, on the embeddings that the run made; and how good each one is."""
    run = Run.open(run_settings.output)
    embedded = coresets.embedded(run)
    labels = settings.targets[name].evaluate.oracle or []
    rows = []
    for arm in settings.arms:
        seeds = range(arm.seeds or settings.seeds) if arm.kind == "random" else range(1)
        for seed in seeds:
            coreset = coreset_of(settings, arm, seed, labels)
            if coreset is not None:
                selection = _selection_name(arm, seed)
                found = _selected(run.files, selection, coreset, embedded, labels)
                rows.append({"arm": arm.title, "target": name, "seed": seed, **found})
    return rows


def _selected(
    files: RunFiles, name: str, coreset: CoresetSettings, embedded: Embedded, labels: list[str]
) -> dict[str, Any]:
    """Select and measure, or what an earlier call found of the same settings and embeddings."""
    uri, memo = files.selection(name), Memo(files.selection_memo(name))
    inputs = {
        "fingerprint": embedded.fingerprint,
        "coreset": coreset.model_dump(mode="json"),
        "oracle": labels,
    }
    earlier = memo.found(inputs)
    if earlier is not None and storage.exists(uri):
        return dict(earlier["found"])
    memo.forget()
    centres = coresets.centroids_of(embedded, coreset)
    chosen = coresets.choose(coreset, embedded, centres)
    coresets.write_manifest(uri, coreset, embedded, chosen)
    found: dict[str, Any] = {"selected": len(chosen.position)}
    if labels:
        found |= _measures(selection_quality(embedded, uri, set(labels)))
    memo.write(inputs, found=found)
    return found


def _measures(found: Quality) -> dict[str, Any]:
    return {key: getattr(found, key) for key in ("oracle_share", "base_share", "lift", "recall")}


# Training and measuring


def _cells(settings: ComparisonSettings, name: str, run_settings: RunSettings) -> list[_Cell]:
    cells = []
    for arm in settings.arms:
        for seed in range(arm.seeds or settings.seeds):
            files = RunFiles(run_settings.output)
            training = training_of(settings, _data_of(arm, seed, files), seed)
            own = run_settings.model_copy(update={"pretrain": training})
            images = files.arm_images(_selection_name(arm, seed))
            cells.append(_Cell(name, arm, seed, own, files.arm(arm.title, seed), images))
    return cells


def training_of(settings: ComparisonSettings, data: list[str], seed: int) -> PretrainSettings:
    """Equal steps, and as much of them to warm up as the recipe takes of its own."""
    common = settings.pretrain or PretrainSettings()
    optimizer, resources = common.optimizer, common.resources
    if optimizer.warmup_steps is None:
        recipe = common.recipe
        warmup = round(settings.steps * recipe.optimizer.warmup_epochs / recipe.epochs)
        optimizer = optimizer.model_copy(update={"warmup_steps": warmup})
    return common.model_copy(
        update={
            "data": data,
            "steps": settings.steps,
            "optimizer": optimizer,
            "seed": common.seed + seed,
            "resources": resources.model_copy(update={"workers": resources.workers or 1}),
        }
    )


def _inputs(cell: _Cell) -> Inputs:
    """All that decides a cell's figures: a result with the same is this cell's."""
    settings = cell.settings
    assert settings.pretrain is not None and settings.evaluate is not None
    aside = {
        "data",
        "resources",
        "checkpoints",
        "probe",
    }  # data is in full; the rest moves no weight
    return {
        "data": materialise.request(settings, settings.pretrain.data)
        if cell.arm.kind != "untrained"
        else None,
        "training": settings.pretrain.model_dump(mode="json", exclude=aside),
        "encoder": settings.encoder.model_dump(mode="json", exclude={"pretrain_on_target"}),
        "evaluate": settings.evaluate.model_dump(mode="json"),
    }


def _finished(cells: list[_Cell]) -> list[Trained]:
    found = []
    for cell in cells:
        document = Memo(cell.files.result).found(_inputs(cell))
        if document is not None:
            found.append(Trained(**document["trained"]))
    return found


def _run_cells(cells: list[_Cell], done: list[Trained], at_once: int) -> Iterator[Trained]:
    """As many as fit side by side; each yields when it is done."""
    known = {(one.target, one.arm, one.seed) for one in done}
    waiting = [c for c in cells if (c.target, c.arm.title, c.seed) not in known]
    running: dict[ObjectRef, _Cell] = {}
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


def _copy_images(cell: _Cell) -> None:
    """Once for all seeds of an arm, and before they start: they share the copy."""
    if cell.arm.kind != "untrained":
        assert cell.settings.pretrain is not None
        materialise.training_images(cell.settings, cell.settings.pretrain.data, cell.images)


def _at_once(settings: ComparisonSettings) -> int:
    workers = (settings.pretrain or PretrainSettings()).resources.workers or 1
    return settings.parallel or trainings_at_once(workers)


@ray.remote(num_cpus=0, max_retries=0)
def _train_and_measure(cell: _Cell, at_once: int) -> Trained:
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
    own = {"pretrain_on_target": None, "checkpoint": None, "pretrained": False, "seed": seed}
    untrained = settings.model_copy(update=own)
    encoders.build(untrained).save(files.weights)
    card = {key: getattr(untrained, key) for key in ("backbone", "small_stem", "image_px")}
    storage.write_json(files.card, card)


def _write(
    settings: ComparisonSettings, done: list[Trained], selections: list[dict[str, Any]]
) -> dict[str, Any]:
    arms = [arm.title for arm in settings.arms]
    document = as_json(done, arms, list(settings.targets), settings.steps, selections)
    files = ComparisonFiles(settings.output)
    storage.write_json(files.table, document)
    storage.write_bytes(files.text, as_markdown(document).encode())
    return document
