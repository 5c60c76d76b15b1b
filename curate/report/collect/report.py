"""A finished run → what its report shows. Every part is capped, so that a run of any size gives a
page in about a minute; the page says how much of how many is shown.
"""

from __future__ import annotations

import logging

from curate import storage
from curate.coreset import stage
from curate.report.collect import files, settings
from curate.report.collect.centroids import centroids
from curate.report.collect.classes import classes
from curate.report.collect.maps import maps
from curate.report.collect.rejects import rejects
from curate.report.collect.sampling import spread
from curate.report.collect.settings import public
from curate.report.collect.stopping import curve, cuts
from curate.report.collect.subject import Subject
from curate.report.collect.thumbnails import Tiles
from curate.report.content import Report, Source
from curate.runfiles.files import RunFiles
from curate.runfiles.run import Run, summary_of
from curate.runfiles.summary import Summary

log = logging.getLogger(__name__)

GALLERY = 1000  # selected images


def collect(output: str, folder: str) -> Report:
    """The report on the run under `output`, its thumbnails in `folder`/thumbs.

    Raises CurateError where there is no finished run, or its own files are damaged.
    """
    summary = summary_of(RunFiles(output))
    run = Run.open(output)
    manifest = files.read_manifest(run.files.manifest)
    tiles = Tiles(run.settings, storage.join(folder, "thumbs"))
    subject = Subject(run, manifest, stage.embedded(run), tiles)
    objectives = curve(run)
    coreset, outcome = run.settings.coreset, summary.outcome
    centres = stage.read_centroids(run) if coreset.uses_centroids else None

    log.info("report: images")
    gallery = tiles.of_open(manifest.images(spread(len(manifest), GALLERY)))
    of_centroids = [] if centres is None else centroids(subject, centres)
    rejected = subject.section("rejected", rejects, None)
    tiles.remove_others()

    log.info("report: map, classes, thresholds")
    return Report(
        name=output.rstrip("/").rpartition("/")[2] or output,
        place=public(output),
        method=coreset.method,
        clusters=None if centres is None else len(centres),
        tau=None if centres is None else coreset.tau,
        reference_round=coreset.reference_round,
        selected=outcome.selected,
        rounds=outcome.rounds,
        stopped_because=outcome.stopped_because,
        stopping_objective=outcome.stopping_objective,
        sources=_sources(summary),
        seconds=summary.seconds,
        versions=run.versions,
        settings=settings.as_yaml(run.settings),
        encoder=settings.encoder(run.settings.encoder),
        curve=objectives,
        gallery=gallery,
        centroids=of_centroids,
        rejects=rejected,
        cuts=subject.section("cuts", cuts, []),
        maps=subject.section("map", maps, []),
        classes=subject.section("classes", classes, []),
        evaluation=files.read_evaluation(run.files),
        comparison=files.read_comparison(run.files),
        missing=subject.missing,
        figures=summary.figures or {},
        left_out=outcome.left_out,
    )


def _sources(summary: Summary) -> list[Source]:
    counts = summary.sources
    return [
        Source(name, of_target, **vars(row))
        for of_target, rows in ((True, counts.target), (False, counts.open))
        for name, row in rows.items()
    ]
