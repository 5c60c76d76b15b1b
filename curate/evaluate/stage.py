"""What an encoder is worth on labelled sets, and a coreset by the labels of the open set: each
protocol on its own, the heavy ones as Ray tasks, a seed each.

encoder, labelled train and test ──> protocols ──> evaluate/results.json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import ray
from numpy.typing import NDArray
from ray import ObjectRef

from curate import storage
from curate.cluster import results
from curate.coreset.quality import Quality
from curate.coreset.quality_on_ray import coreset_quality
from curate.dataset import materialise
from curate.embedding import encoders
from curate.errors import CurateError
from curate.evaluate.attributes import Attribute, attribute_probe, attributes_of, read_table
from curate.evaluate.bench import Bench, Labels, labels_of, with_encoder
from curate.evaluate.detection import detection
from curate.evaluate.features import Features, features_of_sets
from curate.evaluate.finetune import finetune
from curate.evaluate.knn import knn_predict
from curate.evaluate.linear import Accuracy, accuracy, linear_probe
from curate.evaluate.segmentation import segmentation
from curate.evaluate.sgd import sgd_probe
from curate.runfiles.files import EvaluationFiles, RunFiles
from curate.settings import (
    DetectionSettings,
    EvaluateSettings,
    RunSettings,
    SegmentationSettings,
)
from curate.settings.base import absolute

LabelledFeatures = tuple[
    NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]
]
Unit = Literal["share", "ratio", "bits", "cosine"]

DECODERS = 15  # processes beside a GPU at most, where it has the CPUs


@dataclass(frozen=True)
class Result:
    """One figure of one protocol."""

    metric: str
    value: float
    std: float  # over seeds
    seeds: int
    n: int  # test images; of a selection, the selected ones
    seconds: float  # of work, all seeds together
    config: dict[str, Any]  # what the protocol was told, and what it chose
    unit: Unit = "share"


def evaluate(settings: RunSettings) -> list[Result]:
    """`curate evaluate`: what each of evaluate.protocols says of the encoder; also results.json.

    Raises CurateError for an encoder that is not there, or labels that do not fit.
    """
    chosen = settings.evaluate
    if chosen is None:
        raise CurateError("evaluate: missing; name labelled train and test sources in the config")
    files = RunFiles(settings.output)
    place = chosen.encoder or files.pretrain.folder
    found = measure(settings, chosen, place, files.evaluation.folder)
    of_encoder = set(chosen.protocols) != {"selection"}
    document = {
        "encoder": place if of_encoder else None,
        "results": [asdict(result) for result in found],
    }
    storage.write_json(files.evaluation.results, document)
    return found


def check_encoder(settings: RunSettings) -> None:
    """Raises CurateError for an `evaluate.encoder` that is not there, and that no training of this
    config makes."""
    place = settings.evaluate.encoder if settings.evaluate else None
    files = RunFiles(settings.output)
    made = [files.pretrain.folder if settings.pretrain else None]
    made.append(files.target_encoder.folder if settings.encoder.pretrain_on_target else None)
    if place is not None and absolute(place) not in made and not encoders.is_there(place):
        raise CurateError(f"evaluate.encoder={place}: no such file or folder; check the path")


def measure(
    settings: RunSettings, chosen: EvaluateSettings, encoder_place: str, folder: str
) -> list[Result]:
    """Every protocol that is chosen, on the encoder at `encoder_place`.

    folder: holds the labelled sets as `train` and `test`; they are made by the first call, and
    used again by others with the same sources. Calls that run at the same time need them made
    before: `labelled_sets`.
    Raises CurateError for what cannot be measured, before anything is trained.
    """
    if set(chosen.protocols) != {"selection"} and not encoders.is_there(encoder_place):
        raise CurateError(
            f"{encoder_place}: no such file or folder to evaluate; `curate pretrain` makes an "
            "encoder, or set evaluate.encoder"
        )
    labelled_sets(settings, chosen, folder)
    subject = Subject(settings, chosen, encoder_place, folder)
    for name in chosen.protocols:
        CHECKS.get(name, _nothing)(subject)
    return [result for name in chosen.protocols for result in PROTOCOLS[name](subject)]


def labelled_sets(settings: RunSettings, chosen: EvaluateSettings, folder: str) -> None:
    """The images of evaluate.train and test as training sets in `folder`, if they are not there."""
    if set(chosen.protocols) <= OWN_DATA:
        return
    for name in ("train", "test"):
        source = getattr(chosen, name)
        materialise.labelled_images(settings, source, EvaluationFiles(folder).labelled(name))


@dataclass(frozen=True)
class Subject:
    """What is measured, and what several protocols need of it, made when one asks."""

    settings: RunSettings
    chosen: EvaluateSettings
    place: str
    folder: str

    @cached_property
    def bench(self) -> Bench:
        return Bench(
            encoders.described(self.place, self.settings.encoder),
            self.settings.images,
            EvaluationFiles(self.folder).labelled("train"),
            EvaluationFiles(self.folder).labelled("test"),
            decoders=min(DECODERS, _cpus_a_gpu()),
        )

    @cached_property
    def labels(self) -> Labels:
        [(labels, _)] = results([_task(labels_of, self.bench.train, self.bench.test)])
        return labels

    @cached_property
    def features(self) -> Features:
        [(features, _)] = results([_on_a_gpu(features_of_sets, self.bench)])
        return features

    @cached_property
    def labelled_features(self) -> LabelledFeatures:
        """Of train its features and labels, then of test; images without a label left out."""
        known, asked = self.labels.train >= 0, self.labels.test >= 0
        return (
            self.features.train[known],
            self.labels.train[known],
            self.features.test[asked],
            self.labels.test[asked],
        )

    @property
    def seeds(self) -> range:
        return range(self.chosen.seeds)

    @cached_property
    def attributes(self) -> list[Attribute]:
        told = self.chosen.attributes
        assert told is not None  # the settings say so
        table = read_table(told)
        [(found, _)] = results([_task(attributes_of, table, self.bench.train, self.bench.test)])
        return found

    @cached_property
    def quality(self) -> tuple[Quality, float]:
        """Of the run's own coreset, and the seconds that it took."""
        started = time.monotonic()
        found = coreset_quality(self.settings.output, set(self.chosen.oracle or ()))
        if not found.oracle_images:
            raise CurateError("evaluate.oracle: no image of the open set has any of these labels")
        return found, round(time.monotonic() - started, 2)


def _linear(subject: Subject) -> Iterator[Result]:
    arguments = [ray.put(array) for array in subject.labelled_features]
    runs = results([_task(_probe, *arguments, seed) for seed in subject.seeds])
    found = [(one, seconds) for (one, _), seconds in runs]
    told = {"C": [c for (_, c), _ in runs]}
    yield from _accuracies("linear probe", found, subject.labels.test_images, told)


def _probe(*arguments: Any) -> tuple[Accuracy, float]:
    try:
        return linear_probe(*arguments)
    except ValueError as error:
        raise CurateError(f"evaluate.train: {error}") from error


def _check_knn(subject: Subject) -> None:
    images, most = subject.labels.train_images, max(subject.chosen.k)
    if most > images:
        raise CurateError(f"evaluate.k: k={most} neighbours of {images} images; lower k")


def _knn(subject: Subject) -> Iterator[Result]:
    train, train_labels, test, test_labels = subject.labelled_features
    for k in subject.chosen.k:
        started = time.monotonic()
        predicted = knn_predict(train, train_labels, test, len(subject.labels.classes), k)
        found = [(accuracy(predicted, test_labels), time.monotonic() - started)]
        yield from _accuracies(f"kNN, k = {k}", found, len(test), {"k": k})


def _sgd(subject: Subject) -> Iterator[Result]:
    told = subject.chosen.sgd
    tasks = [_on_a_gpu(sgd_probe, subject.bench, told, seed) for seed in subject.seeds]
    found = results(tasks)
    yield from _accuracies("SGD probe", found, subject.labels.test_images, told.model_dump())


def _finetune(subject: Subject) -> Iterator[Result]:
    told = subject.chosen.finetune
    tasks = {
        fraction: [_on_a_gpu(finetune, subject.bench, told, fraction, s) for s in subject.seeds]
        for fraction in told.fractions
    }
    for fraction, waiting in tasks.items():
        runs = results(waiting)
        found = [(one, seconds) for (one, _), seconds in runs]
        config = {
            **told.model_dump(exclude={"fractions"}),
            "fraction": fraction,
            "images": runs[0][0][1],
        }
        what = f"fine-tuned on {100 * fraction:g} %"
        yield from _accuracies(what, found, subject.labels.test_images, config)


def _attributes(subject: Subject) -> Iterator[Result]:
    train, test = (ray.put(x) for x in (subject.features.train, subject.features.test))
    tasks = [
        [_task(attribute_probe, one, train, test, seed) for seed in subject.seeds]
        for one in subject.attributes
    ]
    means: list[list[tuple[Accuracy, float]]] = []
    for one, waiting in zip(subject.attributes, tasks, strict=True):
        runs = results(waiting)
        found = [(accuracy_, seconds) for (accuracy_, _), seconds in runs]
        told = {"values": one.values, "C": [c for (_, c), _ in runs]}
        yield from _accuracies(f"attribute {one.name}", found, one.test_images, told)
        means.append(found)
    over_columns = [
        (
            Accuracy(*(float(np.mean([getattr(a, n) for a, _ in seed])) for n in ACCURACIES)),
            sum(seconds for _, seconds in seed),
        )
        for seed in zip(*means, strict=True)
    ]
    images = max(one.test_images for one in subject.attributes)
    told = {"columns": [one.name for one in subject.attributes]}
    yield from _accuracies("attributes, mean", over_columns, images, told)


def _detection(subject: Subject) -> Iterator[Result]:
    yield from _dense(subject, "detection", detection, subject.chosen.detection)


def _segmentation(subject: Subject) -> Iterator[Result]:
    yield from _dense(subject, "segmentation", segmentation, subject.chosen.segmentation)


def _dense(
    subject: Subject,
    what: str,
    function: Callable[..., dict[str, float]],
    told: DetectionSettings | SegmentationSettings | None,
) -> Iterator[Result]:
    assert told is not None  # the settings say so
    tasks = [_on_a_gpu(with_encoder, function, subject.bench, told, s) for s in subject.seeds]
    runs: list[tuple[dict[str, float], float]] = results(tasks)
    seconds = round(sum(taken for _, taken in runs), 2)
    images = int(runs[0][0]["images"])
    for metric in runs[0][0]:
        values = np.array([found[metric] for found, _ in runs])
        if metric == "images" or np.isnan(values).all():  # NaN: a class that is not there
            continue
        yield Result(
            metric=f"{what}, {metric}",
            value=float(np.nanmean(values)),
            std=float(np.nanstd(values)),
            seeds=len(runs),
            n=images,
            seconds=seconds,
            config=told.model_dump(mode="json"),
        )


def _selection(subject: Subject) -> Iterator[Result]:
    """Of the run's own coreset; the encoder has no part in it."""
    found, seconds = subject.quality
    figures: list[tuple[str, float | None, Unit, dict[str, Any]]] = [
        ("oracle share", found.oracle_share, "share", {"by_round": found.by_round}),
        (
            "oracle share of the open set",
            found.base_share,
            "share",
            {"oracle": subject.chosen.oracle},
        ),
        ("lift", found.lift, "ratio", {}),
        ("recall", found.recall, "share", {}),
        ("entropy", found.entropy, "bits", {"top_classes": found.top_classes}),
        ("entropy of the open set", found.open_entropy, "bits", {}),
        ("nearest-target similarity", found.near_target, "cosine", {}),
        ("the same of random images", found.near_target_random, "cosine", {}),
    ]
    for metric, value, unit, told in figures:
        if value is not None:
            yield Result(metric, value, 0.0, 1, found.selected, seconds, told, unit)


ACCURACIES = ("top1", "mean_per_class")


def _accuracies(
    what: str, found: list[tuple[Accuracy, float]], images: int, told: dict[str, Any]
) -> Iterator[Result]:
    """found: an accuracy a seed, with the seconds it took; images: that were asked for."""
    for name in ACCURACIES:
        values = [getattr(one, name) for one, _ in found]
        yield Result(
            metric=f"{what}, {name.replace('_', ' ')}",
            value=float(np.mean(values)),
            std=float(np.std(values)),
            seeds=len(found),
            n=images,
            seconds=round(sum(seconds for _, seconds in found), 2),
            config=told,
        )


@ray.remote
def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Functions come by their name, so that what their modules hold need not travel."""
    started = time.monotonic()
    value = function(*arguments)
    return value, time.monotonic() - started


def _task(function: Callable[..., Any], *arguments: Any) -> ObjectRef:
    return _timed.remote(function, *arguments)


def _on_a_gpu(function: Callable[..., Any], *arguments: Any) -> ObjectRef:
    """With the CPUs that go with it; on a cluster without GPUs, a task like others."""
    cpus = _cpus_a_gpu()
    if not cpus:
        return _task(function, *arguments)
    return _timed.options(num_gpus=1, num_cpus=cpus).remote(function, *arguments)


def _cpus_a_gpu() -> int:
    """0 where the cluster has no GPU."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = [max(1, int(node.get("CPU", 1) / node["GPU"])) for node in nodes if node.get("GPU")]
    return min(shares, default=0)


def _nothing(subject: Subject) -> None:
    pass


# What is told before anything is computed
CHECKS: dict[str, Callable[[Subject], Any]] = {
    "linear": lambda subject: subject.labels,
    "knn": _check_knn,
    "sgd": lambda subject: subject.labels,
    "finetune": lambda subject: subject.labels,
    "attributes": lambda subject: subject.attributes,
    "selection": lambda subject: subject.quality,
}
PROTOCOLS: dict[str, Callable[[Subject], Iterator[Result]]] = {
    "linear": _linear,
    "knn": _knn,
    "sgd": _sgd,
    "finetune": _finetune,
    "attributes": _attributes,
    "detection": _detection,
    "segmentation": _segmentation,
    "selection": _selection,
}
OWN_DATA = {"detection", "segmentation", "selection"}  # that need no evaluate.train and test
