"""Every arm's manifest, on the embeddings that all share; and how good each one is."""

from __future__ import annotations

from dataclasses import asdict, replace

from curate import storage
from curate.comparison.arms import coreset_of, selection_name
from curate.comparison.table import Selected
from curate.coreset import stage as coresets
from curate.coreset.figures_on_ray import figures_of
from curate.coreset.quality_on_ray import selection_quality
from curate.runfiles.memo import Memo
from curate.runfiles.run import Embedded, Run
from curate.settings import ComparisonSettings, CoresetSettings


def select(settings: ComparisonSettings, target: str, output: str) -> list[Selected]:
    """output: of the run that has embedded the target's images and the open set's."""
    run = Run.open(output)
    embedded = coresets.embedded(run)
    labels = settings.targets[target].evaluate.oracle or []
    found = []
    for arm in settings.arms:
        drawn = arm.seeds or settings.seeds or 1
        seeds = range(drawn) if arm.kind == "random" else range(1)
        for seed in seeds:
            coreset = coreset_of(settings, arm, seed, labels)
            if coreset is not None:
                uri = run.files.selection(selection_name(arm, seed))
                memo = Memo(run.files.selection_memo(selection_name(arm, seed)))
                nothing = Selected(arm.title, target, seed, 0)
                found.append(_selected(nothing, uri, memo, coreset, embedded, labels))
    return found


def _selected(
    selected: Selected,
    uri: str,
    memo: Memo,
    coreset: CoresetSettings,
    embedded: Embedded,
    labels: list[str],
) -> Selected:
    """Select and measure, or what an earlier call found of the same settings and embeddings."""
    inputs = {
        "fingerprint": embedded.fingerprint,
        "coreset": coreset.model_dump(mode="json"),
        "oracle": labels,
    }
    earlier = memo.found(inputs)
    if earlier is not None and storage.exists(uri):
        return Selected(**earlier["found"])
    memo.forget()
    chosen = coresets.choose(coreset, embedded, coresets.guide_of(embedded, coreset))
    coresets.write_manifest(uri, coreset, embedded, chosen)
    figures = figures_of(embedded, chosen.position)
    found = replace(
        selected,
        selected=len(chosen.position),
        relevance=figures.relevance,
        clusters=figures.clusters,
        nearest=figures.nearest,
    )
    if labels:
        one = selection_quality(embedded, uri, set(labels))
        found = replace(
            found,
            oracle_share=one.oracle_share,
            base_share=one.base_share,
            lift=one.lift,
            recall=one.recall,
        )
    memo.write(inputs, found=asdict(found))
    return found
