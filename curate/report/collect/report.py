"""A finished run → what its report shows. Every part is capped, so that a run of any size gives a
page in about a minute; the page says how much of how many is shown.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from curate import storage
from curate.coreset import recut, stage
from curate.errors import CurateError, one_line
from curate.report.collect import files, projection, sampling, thumbnails
from curate.report.collect.files import Manifest
from curate.report.content import (
    Centroid,
    Classes,
    Cloud,
    Map,
    Reject,
    Rejects,
    Report,
    Source,
    Tile,
)
from curate.report.pages.markup import public
from curate.runfiles.files import RunFiles
from curate.runfiles.run import Embedded, Run, summary_of
from curate.runfiles.summary import Summary
from curate.settings import ImageFolderSettings, SourceSettings, UrlListSettings

log = logging.getLogger(__name__)
T = TypeVar("T")

GALLERY = 1000  # selected images
CENTROIDS = 200
BESIDE = 4  # target images, first and last picks of a centroid
REJECTED = 100
ROUNDS = 400  # points of the curve
MAPPED = 1500  # images of each set on the map
SELECTIONS = 8  # whose classes are compared
TOP = 20  # classes
LABELLED_IMAGES = 2_000_000  # of an open set whose labels are counted in full
SWEPT_IMAGES = 10_000_000  # of an open set on which other thresholds are tried
SEED = 0


@dataclass
class _Work:
    """What gathering has found so far: thumbnails wanted, and what could not be had."""

    run: Run
    manifest: Manifest
    embedded: Embedded  # what was selected from
    wanted: dict[str, list[thumbnails.Row]] = field(
        default_factory=lambda: {"target": [], "open": []}
    )
    troubles: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def part_of(self, section: str, make: Callable[[], T], otherwise: T) -> T:
        """A section that cannot be made leaves a reason on the page, and the rest stands."""
        try:
            return make()
        except CurateError as error:
            log.warning("report: no %s: %s", section, error)
            self.missing[section] = public(one_line(error))
            return otherwise

    def want(self, set_name: str, rows: list[thumbnails.Row]) -> list[thumbnails.Row]:
        self.wanted[set_name] += rows
        return rows

    def tile(self, row: thumbnails.Row) -> Tile:
        name = thumbnails.name_of(row)
        trouble = self.troubles.get(name)
        return Tile(
            None if trouble else name,
            public(trouble) if trouble else None,
            row["key"],
            row["source"],
            row["label"],
            *(row.get(column) for column in ("round", "centroid", "similarity")),
        )


def gather(output: str, folder: str) -> Report:
    """The report on the run under `output`, its thumbnails in `folder`/thumbs.

    Raises CurateError where there is no finished run, or its own files are damaged.
    """
    summary = summary_of(RunFiles(output))
    run = Run.open(output)
    coreset = run.settings.coreset
    manifest = files.read_manifest(run.files.manifest)
    work = _Work(run, manifest, stage.embedded(run))
    curve = files.read_rounds(run.files)

    # First all that wants thumbnails, then those at once, then the tiles
    log.info("report: images to show")
    gallery = work.want("open", manifest.whole(_spread(len(manifest), GALLERY)))
    centres = stage.read_centroids(run) if coreset.method == "simcore" else None
    shown = _spread(len(centres), CENTROIDS) if centres is not None else []
    picks = {number: work.want("open", rows) for number, rows in _picks(manifest, shown).items()}
    nearest: list[list[thumbnails.Row]] = []
    if centres is not None:
        nearest = work.part_of("centroids", lambda: _nearest(work, centres[shown]), [])
    refused: list[dict[str, Any]] = work.part_of(
        "rejects", lambda: files.read_rejected(run.files), []
    )
    rejects = [_as_row(row) for row in refused[:REJECTED]]
    work.want("open", [row for row in rejects if _worth_showing(run, row)])
    log.info("report: thumbnails")
    _make_thumbnails(work, storage.join(folder, "thumbs"))

    log.info("report: map, classes, thresholds")
    totals = Counter(manifest.numbers("centroid").tolist())
    return Report(
        name=output.rstrip("/").rpartition("/")[2] or output,
        place=public(output),
        method=coreset.method,
        clusters=None if centres is None else len(centres),
        tau=coreset.tau if coreset.method == "simcore" else None,
        reference_round=coreset.reference_round,
        selected=summary.outcome.selected,
        rounds=summary.outcome.rounds,
        stopped_because=summary.outcome.stopped_because,
        stopping_objective=summary.outcome.stopping_objective,
        sources=_sources(summary),
        seconds=summary.seconds,
        versions=run.versions,
        settings=_settings(run),
        encoder=_encoder(run),
        curve=_thinned(curve, coreset.reference_round),
        gallery=[work.tile(row) for row in gallery],
        centroids=[
            Centroid(
                number,
                totals[number],
                [work.tile(row) for row in near],
                [work.tile(row) for row in picks[number][:BESIDE]],
                [work.tile(row) for row in picks[number][BESIDE:]],
            )
            for number, near in zip(shown, nearest or [[]] * len(shown), strict=True)
        ],
        rejects=_rejects(work, refused, rejects),
        cuts=work.part_of("cuts", lambda: _cuts(work), []),
        maps=work.part_of("map", lambda: _maps(work), []),
        classes=work.part_of("classes", lambda: _classes(work), []),
        evaluation=files.read_evaluation(run.files),
        comparison=files.read_comparison(run.files),
        missing=work.missing,
    )


def _spread(total: int, wanted: int) -> list[int]:
    """At most `wanted` of `total` places, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, total - 1, min(total, wanted)).astype(int)).tolist()


def _picks(manifest: Manifest, shown: list[int]) -> dict[int, list[thumbnails.Row]]:
    """The first and last images that each centroid took: 2 × BESIDE at most, none twice."""
    of_centroid = manifest.numbers("centroid")
    order = np.argsort(of_centroid, kind="stable")  # a manifest is in the order of the rounds
    first, last = (np.searchsorted(of_centroid[order], np.add(shown, i)).tolist() for i in (0, 1))
    places: dict[int, list[int]] = {}
    for number, low, high in zip(shown, first, last, strict=True):
        own = order[low:high].tolist()
        places[number] = own[:BESIDE] + own[max(BESIDE, len(own) - BESIDE) :]
    rows = iter(manifest.whole([place for own in places.values() for place in own]))
    return {number: [next(rows) for _ in own] for number, own in places.items()}


def _nearest(work: _Work, centres: NDArray[np.float32]) -> list[list[thumbnails.Row]]:
    """Of each centroid the most similar target images."""
    name = work.run.settings.target.name
    found = sampling.nearest(work.embedded.target, centres, BESIDE)
    rows = [[{**row, "source": name} for row in one] for one in found]
    for one in rows:
        work.want("target", one)
    return rows


def _as_row(reject: dict[str, Any]) -> thumbnails.Row:
    nowhere = dict.fromkeys(("offset", "size", "row", "label", "sha256"))
    return {**nowhere, **reject, "refused": True}


def _worth_showing(run: Run, row: thumbnails.Row) -> bool:
    """Of a file of its own that could be read; where in an archive a reject lies is not written."""
    kinds = {source.name: source for source in [run.settings.target, *run.settings.open]}
    single = isinstance(kinds.get(row["source"]), ImageFolderSettings | UrlListSettings)
    return single and row["stage"] == "decode"


def _make_thumbnails(work: _Work, folder: str) -> None:
    settings = work.run.settings
    sources: dict[str, dict[str, SourceSettings]] = {
        "target": {settings.target.name: settings.target},
        "open": {source.name: source for source in [settings.target, *settings.open]},
    }
    for name, rows in work.wanted.items():
        work.troubles.update(
            thumbnails.make(rows, sources[name], folder, settings.images.max_pixels)
        )
    names = {thumbnails.name_of(row) for rows in work.wanted.values() for row in rows}
    thumbnails.remove_others(folder, names)


def _rejects(
    work: _Work, refused: list[dict[str, Any]], rows: list[thumbnails.Row]
) -> Rejects | None:
    if not refused:
        return None
    shown = [
        Reject(
            row["source"],
            row["key"],
            public(row["uri"]),
            row["stage"],
            public(row["reason"]),
            work.tile(row) if _worth_showing(work.run, row) else None,
        )
        for row in rows
    ]
    reasons = Counter(public(row["reason"]) for row in refused)
    return Rejects(shown, reasons.most_common(TOP), len(refused))


def _sources(summary: Summary) -> list[Source]:
    counts = summary.sources
    return [
        Source(name, of_target, **vars(row))
        for of_target, rows in ((True, counts.target), (False, counts.open))
        for name, row in rows.items()
    ]


def _thinned(
    curve: list[tuple[int, float, int]], reference_round: int
) -> list[tuple[int, float, int]]:
    """At most ROUNDS points, the reference round's among them."""
    places = {*_spread(len(curve), ROUNDS), reference_round - 1}
    return [curve[i] for i in sorted(places) if i < len(curve)]


def _cuts(work: _Work) -> list[recut.Cut]:
    if work.run.settings.coreset.method != "simcore":
        return []
    if work.embedded.open_images > SWEPT_IMAGES:
        raise CurateError(
            f"not tried on an open set of more than {SWEPT_IMAGES:,} images; "
            "`curate recut RUN --tau …` tries one"
        )
    return recut.sweep(work.run)


def _maps(work: _Work) -> list[Map]:
    """Target, open set and coreset, a sample of each, in two dimensions."""
    position = work.manifest.numbers("position")[_spread(len(work.manifest), MAPPED)]
    sets = {
        "open": sampling.of_set(work.embedded.open, MAPPED, SEED),
        "target": sampling.of_set(work.embedded.target, MAPPED, SEED),
        "coreset": sampling.at_positions(work.embedded.open, position, SEED),
    }
    sets = {name: matrix for name, matrix in sets.items() if len(matrix)}
    if "target" not in sets or "open" not in sets:
        raise CurateError("there are no embeddings to draw")
    compared = min(len(matrix) for matrix in sets.values())
    rng = np.random.default_rng(SEED)
    equal = {name: rng.permutation(matrix)[:compared] for name, matrix in sets.items()}
    near = {
        name: value
        for name in sets
        if name != "target"
        and (value := projection.nearness(sets["target"], equal[name])) is not None
    }
    flat, shown = projection.pca(list(sets.values()))
    about = f"The two directions hold {shown:.0%} of the variance.".replace("%", " %")
    maps = [_map("PCA", about, dict(zip(sets, flat, strict=True)), near, compared)]
    try:
        flat = projection.umap(list(sets.values()), SEED)
    except ImportError:
        return maps
    about = "UMAP keeps neighbours together; distances between groups say little."
    return [*maps, _map("UMAP", about, dict(zip(sets, flat, strict=True)), near, compared)]


def _map(
    method: str,
    about: str,
    flat: dict[str, NDArray[np.float64]],
    near: dict[str, float],
    compared: int,
) -> Map:
    box = projection.frame(list(flat.values()))
    places = projection.grid(box)
    dense = {name: projection.density(points, places) for name, points in flat.items()}
    clouds = []
    for name, points in flat.items():
        values = dense[name]
        rings = []
        if values is not None and values.sum() > 0:
            levels = [projection.level_of(values, mass) for mass in (0.9, 0.5)]
            rings = [projection.outlines(values, level) for level in levels]
        inside = (points - box[:2]) / box[2:]
        seen = ((inside >= 0) & (inside <= 1)).all(axis=1)
        clouds.append(Cloud(name, inside[seen], rings))
    target = dense["target"]
    overlaps = {
        name: projection.overlap(target, values)
        for name, values in dense.items()
        if name != "target" and target is not None and values is not None
    }
    return Map(method, about, clouds, overlaps, near, compared)


def _classes(work: _Work) -> list[Classes]:
    """Of this selection, and of others over the same embeddings."""
    coreset = work.run.settings.coreset
    named = f"this run: {coreset.method}"
    if coreset.method == "simcore":
        named += f", k = {coreset.clusters}"
    found = {named: work.manifest.labels()}
    others = files.other_manifests(work.run.files)
    for name, uri in list(others.items())[: SELECTIONS - 1]:
        found[name] = files.read_manifest(uri).labels()
    if not any(set(labels) - {None} for labels in found.values()):
        return []
    opened: dict[str | None, int] = {}
    if work.embedded.open_images <= LABELLED_IMAGES:
        opened = sampling.label_counts(work.embedded.open)
    return [_top(title, labels, opened) for title, labels in found.items()]


def _top(title: str, labels: Counter[str | None], opened: dict[str | None, int]) -> Classes:
    of_open = sum(opened.values())
    known = Counter({label: n for label, n in labels.items() if label is not None})
    top = [
        (label, n, opened.get(label, 0) / of_open if of_open else None)
        for label, n in sorted(known.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP]
    ]
    return Classes(title, sum(labels.values()), sum(known.values()), len(known), top)


def _settings(run: Run) -> str:
    """The settings as YAML, without passwords and signatures in URIs."""

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shown(one) for key, one in value.items() if one is not None}
        if isinstance(value, list | tuple):
            return [shown(one) for one in value]
        return public(value) if isinstance(value, str) else value

    document = shown(run.settings.model_dump(mode="json"))
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _encoder(run: Run) -> str:
    encoder = run.settings.encoder
    if encoder.pretrain_on_target is not None:
        origin = f"pretrained on the target set by {encoder.pretrain_on_target.method}"
    elif encoder.checkpoint is not None:
        origin = f"weights of {public(encoder.checkpoint)}"
    elif encoder.pretrained:
        origin = "timm's pretrained weights"
    else:
        origin = "random weights"
    return f"{encoder.backbone} at {encoder.image_px} px ({origin})"
