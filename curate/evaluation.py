"""What an encoder is worth on a labelled set: features once, then each protocol on them.

encoder, labelled train and test ──> features ──> linear probe, kNN ──> evaluate/results.json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from curate import encoders, materialise, storage
from curate.errors import CurateError
from curate.evaluate.features import features_of
from curate.evaluate.knn import knn_predict
from curate.evaluate.linear import Accuracy, accuracy, linear_probe
from curate.session import results
from curate.settings import EncoderSettings, EvaluateSettings, ImageSettings, RunSettings
from curate.training_set import TrainingSet, on_this_machine


@dataclass(frozen=True)
class Result:
    """One figure of one protocol."""

    metric: str
    value: float
    std: float  # over seeds
    seeds: int
    n: int  # test images
    seconds: float
    config: dict[str, Any]  # what the protocol was told


@dataclass(frozen=True)
class Labelled:
    """Features of two sets, (N, D) unit rows, and class numbers that mean the same in both."""

    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    classes: list[str]


def evaluate(settings: RunSettings) -> list[Result]:
    """`curate evaluate`: what each of evaluate.protocols says of the encoder; also results.json.

    Raises CurateError for an encoder that is not there, or labels that do not fit.
    """
    chosen = settings.evaluate
    if chosen is None:
        raise CurateError("evaluate: missing; name labelled train and test sources in the config")
    folder = storage.join(settings.output, "evaluate")
    place = chosen.encoder or storage.join(settings.output, "pretrain")
    encoder = encoders.described(place, settings.encoder)
    sets = {name: storage.join(folder, name) for name in ("train", "test")}
    for name, where in sets.items():
        materialise.labelled_images(settings, getattr(chosen, name), where)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task = _features.options(num_gpus=gpus).remote(
        encoder, settings.images, sets["train"], sets["test"]
    )
    [labelled] = results([task])
    found = [result for name in chosen.protocols for result in PROTOCOLS[name](labelled, chosen)]
    document = {"encoder": place, "results": [asdict(result) for result in found]}
    storage.write_json(storage.join(folder, "results.json"), document)
    return found


@ray.remote
def _features(settings: EncoderSettings, limits: ImageSettings, train: str, test: str) -> Labelled:
    encoder = encoders.build(settings)
    sets = [TrainingSet(on_this_machine(folder)) for folder in (train, test)]
    for name, images in zip(("train", "test"), sets, strict=True):
        if not images.classes:
            raise CurateError(f"evaluate.{name}: no image has a label, which evaluation needs")
    missing = sorted(set(sets[1].classes) - set(sets[0].classes))
    if missing:
        raise CurateError(f"evaluate.test: class {missing[0]} is not in evaluate.train")
    if len(sets[0].classes) < 2:
        raise CurateError(f"evaluate.train: one class only, {sets[0].classes[0]}; two at least")
    rows = [np.flatnonzero(images.labels >= 0) for images in sets]
    features = [
        features_of(encoder.module, encoder.preprocessing, limits, images, places)
        for images, places in zip(sets, rows, strict=True)
    ]
    numbers = np.array([sets[0].classes.index(name) for name in sets[1].classes])
    return Labelled(
        features[0],
        sets[0].labels[rows[0]],
        features[1],
        numbers[sets[1].labels[rows[1]]],
        sets[0].classes,
    )


def _knn(labelled: Labelled, chosen: EvaluateSettings) -> Iterator[Result]:
    for k in chosen.k:
        started = time.monotonic()
        try:
            predicted = knn_predict(
                labelled.train, labelled.train_labels, labelled.test, len(labelled.classes), k
            )
        except ValueError as error:
            raise CurateError(f"evaluate.k: {error}") from error
        found = accuracy(predicted, labelled.test_labels)
        yield from _results(f"kNN, k = {k}", [found], labelled, started, {"k": k})


def _linear(labelled: Labelled, chosen: EvaluateSettings) -> Iterator[Result]:
    started = time.monotonic()
    shared = ray.put(labelled)
    tasks = [_probe.remote(shared, seed) for seed in range(chosen.seeds)]
    found: list[tuple[Accuracy, float]] = results(tasks)
    told = {"C": [c for _, c in found]}
    yield from _results("linear probe", [one for one, _ in found], labelled, started, told)


@ray.remote
def _probe(labelled: Labelled, seed: int) -> tuple[Accuracy, float]:
    try:
        return linear_probe(
            labelled.train, labelled.train_labels, labelled.test, labelled.test_labels, seed
        )
    except ValueError as error:
        raise CurateError(f"evaluate.train: {error}") from error


def _results(
    what: str,
    found: list[Accuracy],
    labelled: Labelled,
    started: float,
    told: dict[str, Any],
) -> Iterator[Result]:
    for name in ("top1", "mean_per_class"):
        values = [getattr(one, name) for one in found]
        yield Result(
            metric=f"{what}, {name.replace('_', ' ')}",
            value=float(np.mean(values)),
            std=float(np.std(values)),
            seeds=len(found),
            n=len(labelled.test),
            seconds=round(time.monotonic() - started, 2),
            config=told,
        )


PROTOCOLS: dict[str, Callable[[Labelled, EvaluateSettings], Iterator[Result]]] = {
    "linear": _linear,
    "knn": _knn,
}
