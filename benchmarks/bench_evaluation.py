"""Features and neighbours of an evaluation: on all CPUs, in parts, against one task for all.

    python benchmarks/bench_evaluation.py --images FOLDER [--count 10000] [--rounds 3]

FOLDER is any tree of images with a folder a class; it is repeated to --count images, half of them
to train on and half to test. With resnet18 at 64 px, random weights: images/s of the features of
both sets, by one task as it once was, and by as many tasks as there are CPUs, as an evaluation asks
for them; then seconds of kNN for k = 20 and 200, by a task for each k with the whole test set, and
by parts of it that search once for both. Features and predictions must be equal, or the run fails.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ray

from curate import cluster
from curate.cluster import results
from curate.evaluate import knn
from curate.evaluate.features import features_of_part
from curate.evaluate.stage import labelled_sets
from curate.evaluate.subject import Subject, on_cpu
from curate.runfiles.files import EvaluationFiles
from curate.settings import RunSettings
from curate.settings import load as config

KS = [20, 200]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cluster.connect()
    with tempfile.TemporaryDirectory() as scratch:
        settings = settings_for(Path(options.images), Path(scratch), options.count)
        assert settings.evaluate is not None
        folder = EvaluationFiles(f"{scratch}/sets").folder
        labelled_sets(settings, settings.evaluate, folder)
        rates: dict[str, list[float]] = {"one task": [], "all CPUs": []}
        for number in range(options.rounds):
            subject = Subject(settings, settings.evaluate, "", folder)
            images = len(subject.labels.train) + len(subject.labels.test)
            alone, seconds = timed(lambda s=subject: by_one_task(s))  # type: ignore[misc]
            rates["one task"].append(images / seconds)
            found, seconds = timed(lambda s=subject: both_of(s))  # type: ignore[misc]
            rates["all CPUs"].append(images / seconds)
            for one, other in zip(alone, found, strict=True):
                assert np.array_equal(one, other), "features differ"
            print(f"round {number}: " + ", ".join(f"{n} {r[-1]:.0f}" for n, r in rates.items()))
        before, after = (statistics.median(rate) for rate in rates.values())
        print(f"features: {before:.0f} → {after:.0f} images/s, {after / before:.2f} times")
        neighbours(subject, options.rounds)
    return 0


def settings_for(found: Path, scratch: Path, count: int) -> RunSettings:
    paths = sorted(path for path in found.rglob("*.*") if path.is_file())
    for number in range(count):
        path = paths[number % len(paths)]
        link = (
            scratch
            / ("train", "test")[(number + number // len(paths)) % 2]
            / path.parent.name
            / f"{number}{path.suffix}"
        )
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_bytes(path.read_bytes())
    sources = {
        name: {"kind": "image_folder", "path": str(scratch / name)} for name in ("train", "test")
    }
    return config.parse(
        {
            "target": sources["train"],
            "open": [{"name": "none", **sources["train"]}],
            "encoder": {"backbone": "resnet18", "pretrained": False, "image_px": 64},
            "output": str(scratch / "run"),
            "evaluate": {**sources, "protocols": ["knn"], "k": KS},
        },
        "benchmark",
    )


Arrays = list[np.ndarray]  # type: ignore[type-arg]


def by_one_task(subject: Subject) -> Arrays:
    tasks = [
        on_cpu(features_of_part, subject.bench, folder, (0, len(labels)))
        for folder, labels in (
            (subject.bench.train, subject.labels.train),
            (subject.bench.test, subject.labels.test),
        )
    ]
    # One behind the other, as they came to be
    return [results([task])[0][0] for task in tasks]


def both_of(subject: Subject) -> Arrays:
    return list(ray.get([subject.features.train, subject.features.test]))


def neighbours(subject: Subject, rounds: int) -> None:
    features, labels = subject.features, ray.put(subject.labels)
    seconds: dict[str, list[float]] = {"a task for each k": [], "by parts": []}
    whole = (0, len(subject.labels.test))
    for _ in range(rounds):

        def each() -> list[float]:
            tasks = [
                on_cpu(knn.predicted_of, features.train, features.test, labels, [k], whole)
                for k in KS
            ]
            truth = subject.labels.test
            return [float((rows[0] == truth).mean()) for rows, _ in results(tasks)]

        before, taken = timed(each)
        seconds["a task for each k"].append(taken)
        after, taken = timed(lambda: [one.value for one in knn.run(subject)][::2])
        seconds["by parts"].append(taken)
        assert np.allclose(before, after), "kNN differs"
    first, second = (statistics.median(taken) for taken in seconds.values())
    print(f"kNN of {whole[1]} images: {first:.2f} → {second:.2f} s")


def timed(what: Callable[[], Arrays] | Callable[[], list[float]]):  # type: ignore[no-untyped-def]
    begun = time.monotonic()
    found = what()
    return found, time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main())
