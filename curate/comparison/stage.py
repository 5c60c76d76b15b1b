"""Several arms at equal training steps, on one target or more: does the coreset pay?

each target: run (embedded once) ─> a selection an arm ─> its images ─> trainings ─> evaluations
                                                                     └─> comparison.{json,md}
"""

from __future__ import annotations

import logging

from curate import storage
from curate.comparison.cells import Cell, cells_of, finished, run_cells
from curate.comparison.selections import select
from curate.comparison.table import Comparison, Selected, Trained
from curate.evaluate.stage import labelled_sets
from curate.pipeline import run
from curate.pretraining.launch import trainings_at_once
from curate.progress import Facts
from curate.runfiles.files import ComparisonFiles, RunFiles
from curate.runfiles.lock import held
from curate.runfiles.status import Reporter
from curate.settings import ComparisonSettings, PretrainSettings, RunSettings

log = logging.getLogger(__name__)

TRAININGS = "train and measure"


def compare(
    settings: ComparisonSettings, *, fresh: bool = False, accept_changes: bool = False
) -> Comparison:
    """`curate compare`: train and measure every arm, as many at once as there is room for.

    Goes on where an earlier call was stopped. Returns what comparison.json holds.
    Raises CurateError where an arm cannot be what the settings ask for.
    """
    with held(settings.output, "compare"), Reporter(settings.output) as status:
        return _compare(settings, fresh, accept_changes, status)


def _compare(
    settings: ComparisonSettings, fresh: bool, accept_changes: bool, status: Reporter
) -> Comparison:
    if fresh:
        for name in settings.targets:
            storage.remove_tree(storage.join(settings.output, name))
        if settings.store is None:
            storage.remove_tree(ComparisonFiles(settings.output).store)
    cells: list[Cell] = []
    selections: list[Selected] = []
    for name in settings.targets:
        run_settings = _run_settings(settings, name)
        log.info("%s: the run that all arms share, at %s", name, run_settings.output)
        with status.stage(f"{name}: run"):  # which has a status of its own
            run(run_settings, accept_changes=accept_changes)
        status.begin()
        with status.stage(f"{name}: select"):
            selections += select(settings, name, run_settings.output)
            sets = RunFiles(run_settings.output).evaluation
            labelled_sets(run_settings, settings.targets[name].evaluate, sets.folder)
        cells += cells_of(settings, name, run_settings)
    cells.sort(key=lambda cell: cell.seed)  # all arms once, before any arm twice
    done = finished(cells)
    if done:
        log.info("%d of %d trainings were done before", len(done), len(cells))
    table = _write(settings, done, selections)
    with status.stage(TRAININGS):
        status.tell(Facts(TRAININGS, "training", len(done), len(cells)))
        for trained in run_cells(cells, done, _at_once(settings)):
            done.append(trained)
            table = _write(settings, done, selections)
            status.tell(Facts(TRAININGS, "training", len(done), len(cells)))
    return table


def _run_settings(settings: ComparisonSettings, name: str) -> RunSettings:
    target = settings.targets[name]
    keys = ("open", "exclude", "encoder", "images", "embed")
    shared = {key: getattr(settings, key) for key in keys}
    # Targets whose encoder is the same find what the first of them embedded
    shared["store"] = settings.store or ComparisonFiles(settings.output).store
    return RunSettings(
        **shared,
        target=target.target,
        evaluate=target.evaluate,
        coreset=settings.coreset,
        output=ComparisonFiles(settings.output).target(name).folder,
    )


def _at_once(settings: ComparisonSettings) -> int:
    workers = (settings.pretrain or PretrainSettings()).resources.workers or 1
    return settings.parallel or trainings_at_once(workers)


def _write(
    settings: ComparisonSettings, done: list[Trained], selections: list[Selected]
) -> Comparison:
    arms = [arm.title for arm in settings.arms]
    table = Comparison.of(done, arms, list(settings.targets), settings.steps, selections)
    files = ComparisonFiles(settings.output)
    storage.write_json(files.table, table.to_json())
    storage.write_bytes(files.text, table.markdown().encode())
    return table
