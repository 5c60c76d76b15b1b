"""How long must the retrieval encoder train? What each of its checkpoints would have selected.

    python benchmarks/oracle_share.py RUN [--every 100] [--clusters 1 100] [--whiten none 64]
        [--also ENCODER …]

RUN is the output of `curate run`, or of one target of `curate compare`, with
`encoder.pretrain.checkpoints: {every: 100, keep: 20}` and, in `evaluate`, an `oracle`.
Encoder 0 is the one before its training, `--also` names others, as an arm's: RUN/arms/x+os/seed-0.
Each embeds both sets anew, under RUN-by-step/, and selects `--p` of the open
set by every `--clusters` and `--whiten`. Where `evaluate` has labelled images, kNN says what the
encoder knows of them: users without labels of the open set can watch that much.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from typing import Any

from curate import cluster, storage
from curate.coreset.quality import Quality
from curate.coreset.quality_on_ray import coreset_quality
from curate.embedding import encoders
from curate.evaluate import stage
from curate.pipeline import run
from curate.runfiles.files import RunFiles
from curate.runfiles.run import Run
from curate.settings import EncoderSettings, EvaluateSettings, RunSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--every", type=int, default=100, help="steps from point to point")
    parser.add_argument("--clusters", type=int, nargs="+", default=[1, 100], help="K")
    parser.add_argument("--whiten", nargs="+", default=["none", "64"], help="dimensions, or none")
    parser.add_argument("--p", type=float, default=0.05, help="share of the open set")
    parser.add_argument("--also", nargs="+", default=[], metavar="ENCODER", help="other encoders")
    options = parser.parse_args()

    output = options.run.rstrip("/")
    settings = Run.open(output).settings
    evaluate = settings.evaluate
    if evaluate is None or not evaluate.oracle:
        parser.error(f"{output}/config.yaml has no evaluate.oracle; name the labels there")
    cluster.connect(None, verbose=False)
    points = []
    for name, encoder in encoders_of(settings, options.every, options.also):
        folder = storage.join(f"{output}-by-step", name.replace("/", "-"))
        update = {"encoder": encoder, "pretrain": None, "output": folder}
        own = settings.model_copy(update=update)
        point: dict[str, Any] = {"encoder": name}
        for whiten in options.whiten:
            for clusters in options.clusters:
                found = quality_of(own, evaluate, whiten, clusters, options.p)
                title = "plain" if whiten == "none" else f"whitened to {whiten}"
                point[f"k = {clusters}, {title}"] = found.oracle_share or 0.0
                point["open set"] = found.base_share
        if evaluate.train is not None:
            point["kNN"] = knn(own, evaluate, f"{output}-by-step/evaluate")
        points.append(point)
        print(json.dumps(point), flush=True)
    storage.write_json(f"{output}-by-step/points.json", points)
    print(as_markdown(points))


def encoders_of(
    settings: RunSettings, every: int, others: list[str]
) -> Iterator[tuple[str, EncoderSettings]]:
    """The encoder before its training, each checkpoint of it that is kept, and the others."""
    fixed = {"pretrain": None, "checkpoint": None, "pretrained": False}
    yield "0", settings.encoder.model_copy(update=fixed)
    folder = RunFiles(settings.output).target_encoder.checkpoints
    for name in sorted(storage.names_in(folder)):
        step = re.fullmatch(r"step-(\d+)\.pt", name)
        if step and int(step[1]) % every == 0:
            place = storage.join(folder, name)
            yield str(int(step[1])), encoders.described(place, settings.encoder)
    for other in others:
        yield other.removeprefix(settings.output), encoders.described(other, settings.encoder)


def quality_of(
    settings: RunSettings, evaluate: EvaluateSettings, whiten: str, clusters: int, p: float
) -> Quality:
    """The first call for an encoder embeds; the next ones select from the same embeddings."""
    changes = {"whiten": None if whiten == "none" else int(whiten), "clusters": clusters}
    limits = {"method": "simcore", "tau": None, "budget": p, "budget_times_target": None}
    coreset = settings.coreset.model_copy(update={**changes, **limits})
    run(settings.model_copy(update={"coreset": coreset}))
    return coreset_quality(settings.output, set(evaluate.oracle or []))


def knn(settings: RunSettings, evaluate: EvaluateSettings, folder: str) -> float:
    """Top-1, by as many neighbours as the last of `evaluate.k` says."""
    chosen = evaluate.model_copy(update={"protocols": ["knn"], "k": evaluate.k[-1:]})
    place = settings.encoder.checkpoint or settings.output
    return stage.measure(settings, chosen, place, folder)[0].value


def as_markdown(points: list[dict[str, Any]]) -> str:
    names = [name for name in points[0] if name != "encoder"]
    lines = [f"| encoder | {' | '.join(names)} |", "|---:" * (len(names) + 1) + "|"]
    for point in points:
        shares = [f"{point[name]:.1%}" for name in names]
        lines.append(f"| {point['encoder']} | {' | '.join(shares)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
