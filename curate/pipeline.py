"""A whole run, stage by stage. Stages meet in files under `output`, so each can be resumed.

(pretrain on X →) plan → embed → count → centroids → select → manifest → figures
(→ pretrain on X ∪ I)
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace

from curate import storage
from curate.coreset import manifest
from curate.coreset import stage as coreset
from curate.coreset.figures_on_ray import figures_of
from curate.coreset.rounds import Selection
from curate.coreset.rules import Guide
from curate.embedding import encoders, metadata
from curate.embedding.encoders import Encoder
from curate.embedding.stage import device_of, embed
from curate.errors import CurateError
from curate.evaluate.stage import check_encoder
from curate.pretraining.stage import check as check_trainings
from curate.pretraining.stage import pretrain, pretrain_encoder
from curate.runfiles import accounts, rejected
from curate.runfiles.accounts import Counts
from curate.runfiles.files import RunFiles
from curate.runfiles.fingerprint import fingerprint
from curate.runfiles.lock import held
from curate.runfiles.run import Embedded, Run, remove
from curate.runfiles.status import Reporter
from curate.runfiles.summary import Summary
from curate.settings import RunSettings


def run(settings: RunSettings, *, fresh: bool = False, accept_changes: bool = False) -> Summary:
    """`run_all` of one."""
    return run_all([settings], fresh=fresh, accept_changes=accept_changes)[0]


def run_all(
    many: list[RunSettings], *, fresh: bool = False, accept_changes: bool = False
) -> list[Summary]:
    """Curate: from sources to a coreset manifest, for each of several targets of one open set.
    Returns what each summary.json holds.

    What the runs share is embedded once, if they share a store, and scanned once.
    fresh: remove what an earlier run left under each `output`, and start over.
    accept_changes: go on though inputs changed, or are gone, since a run was planned.
    Raises CurateError where a run cannot be what the settings ask for.
    """
    for settings in many:
        _check(settings)
    with ExitStack() as ends:
        for settings in many:
            ends.enter_context(held(settings.output))
        status = [ends.enter_context(Reporter(settings.output)) for settings in many]
        # All are planned before one is embedded: what is wrong with the last is told at once
        begun = [
            _planned(settings, own, fresh, accept_changes)
            for settings, own in zip(many, status, strict=True)
        ]
        for one in begun:
            _embed(one)
        _select(begun)
        return [_finished(one) for one in begun]


@dataclass
class _Begun:
    """A run on its way."""

    run: Run
    encoder: Encoder
    status: Reporter
    counts: Counts | None = None
    embedded_now: int = 0
    feed: dict[str, float] | None = None
    found: Embedded | None = None
    guide: Guide = field(default_factory=Guide)
    selection: Selection | None = None


def _planned(settings: RunSettings, status: Reporter, fresh: bool, accept_changes: bool) -> _Begun:
    trained_here = settings.encoder.pretrain is not None
    if trained_here:
        with status.stage("pretrain_encoder"):
            settings = _with_own_encoder(settings, fresh)
    with status.stage("plan"):
        encoder = encoders.build(settings.encoder)
        weights = encoders.weights_hash(encoder.module)
        if fresh:
            trained = RunFiles(settings.output).target_encoder.folder
            remove(settings.output, but=trained if trained_here else None)
        made_by = fingerprint(settings, encoder.preprocessing, weights, device_of(settings))
        this = Run.begin(settings, made_by, accept_changes=accept_changes)
        metadata.check(this)
    status.begin()
    return _Begun(this, encoder, status)


def _embed(one: _Begun) -> None:
    this, files = one.run, one.run.files
    with one.status.stage("embed"):
        work = embed(this, one.encoder)
        one.embedded_now, one.feed = work.images, work.facts().feed
    with one.status.stage("count"):
        one.counts = this.counts()
        storage.write_json(files.summary, {"sources": one.counts.to_json()})
        rejected.write(this)
        most = this.settings.images.max_rejected_fraction
        accounts.check_rejected(one.counts, most, files.rejected)


def _select(begun: list[_Begun]) -> None:
    for one in begun:
        with one.status.stage("centroids"):
            one.found = coreset.embedded(one.run)
            one.guide = coreset.guide_of(one.found, one.run.settings.coreset)
            coreset.save_guide(one.run.files, one.guide)
    with ExitStack() as stages:
        for one in begun:
            stages.enter_context(one.status.stage("select"))
        for together in _by_open_set(begun):
            ready = [(one, one.found, one.guide) for one in together if one.found is not None]
            selections = coreset.choose_all(
                [one.run.settings.coreset for one, _, _ in ready],
                [found for _, found, _ in ready],
                [guide for _, _, guide in ready],
                [coreset.kept_of(one.run, found, guide) for one, found, guide in ready],
            )
            for one, selection in zip(together, selections, strict=True):
                one.selection = selection


def _by_open_set(begun: list[_Begun]) -> list[list[_Begun]]:
    """Runs that select from the same shards, together. Whitened ones are each run's own."""
    groups: list[list[_Begun]] = []
    for one in begun:
        assert one.found is not None
        for group in groups:
            other = group[0].found
            if other is not None and other.open == one.found.open:
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _finished(one: _Begun) -> Summary:
    this, status = one.run, one.status
    settings, files = this.settings, this.files
    assert one.counts is not None and one.found is not None and one.selection is not None
    with status.stage("manifest"):
        chosen = coreset.write_manifest(files.manifest, settings.coreset, one.found, one.selection)
        manifest.write_rounds(files.rounds, one.selection.rounds)
    with status.stage("figures"):
        figures = figures_of(one.found, one.selection.position)

    counts = one.counts.selecting(chosen)
    accounts.check(counts, len(one.selection.position))
    images = one.embedded_now
    summary = Summary(
        sources=counts,
        outcome=coreset.outcome(settings.coreset, one.selection),
        seconds=status.seconds,
        embedded_now=images,
        images_per_s=round(images / status.seconds["embed"], 1) if images else None,
        feed=one.feed or None,
        figures=asdict(figures),
    )
    if settings.pretrain and "coreset" in settings.pretrain.data:
        with status.stage("pretrain"):
            summary = replace(summary, pretrain=pretrain(settings))
    storage.write_json(files.summary, summary.to_json())
    return summary


def _check(settings: RunSettings) -> None:
    """Whatever can be refused is refused before the first image is read, or hours of work done."""
    check_trainings(settings)
    check_encoder(settings)
    manifest.refuse_own(settings.coreset.keep or [])
    dims = settings.coreset.whiten
    if dims is not None:
        width = encoders.width(settings.encoder)
        if dims > width:
            raise CurateError(
                f"coreset.whiten={dims}: embeddings have fewer: {dims} of {width} dimensions; "
                "lower it"
            )


def _with_own_encoder(settings: RunSettings, fresh: bool) -> RunSettings:
    """Step 1 of the algorithm; the settings then name its encoder as a checkpoint."""
    folder = pretrain_encoder(settings, fresh=fresh)
    own = settings.encoder.pretrain
    # MAE's class token learns nothing of its own: as SimCore's authors retrieve by it
    usual = "patches" if own is not None and own.method == "mae" else None
    changes = {"checkpoint": folder, "pretrain": None, "pool": settings.encoder.pool or usual}
    encoder = settings.encoder.model_copy(update=changes)
    return settings.model_copy(update={"encoder": encoder})
