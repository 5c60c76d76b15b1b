"""What all protocols share: what is measured, what comes of it, and how their work is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar, Union

import numpy as np
import ray
from numpy.typing import NDArray
from ray import ObjectRef

from curate.cluster import alive_nodes, results
from curate.dataset.training_set import read_index
from curate.embedding import encoders
from curate.evaluate.accuracy import Accuracy
from curate.evaluate.bench import Bench, Labels, labels_of
from curate.evaluate.features import features_of_part, parts_of
from curate.runfiles.files import EvaluationFiles
from curate.settings import EvaluateSettings, RunSettings

T = TypeVar("T")
Json = Union[None, str, float, Sequence["Json"], Mapping[str, "Json"]]  # noqa: UP007 quoted
Timed = tuple[T, float]  # what a task gave, and the seconds that it took
Unit = Literal["share", "ratio", "bits", "cosine"]

DECODERS = 15  # that decode beside a GPU at most, where it has the CPUs


@dataclass(frozen=True)
class Result:
    """One figure of one protocol."""

    metric: str
    value: float
    std: float  # over seeds
    seeds: int
    n: int  # test images; of a selection, the selected ones
    seconds: float  # of work, all seeds together
    config: Mapping[str, Json]  # the protocol's settings, and what it chose itself
    unit: Unit = "share"


class Evaluator(Protocol):
    """What the module of each protocol has."""

    def check(self, subject: Subject) -> None:
        """Raises CurateError for what cannot be measured, before anything is computed."""

    def run(self, subject: Subject) -> Iterator[Result]:
        """Its figures."""


@dataclass(frozen=True)
class Features:
    """Of the images of both sets, labelled or not: unit rows, by references that tasks take."""

    train: ObjectRef  # of (N, D) float32
    test: ObjectRef  # of (M, D) float32


@dataclass(frozen=True, eq=False)
class Subject:
    """An encoder and what it is measured on; what several protocols need is made once."""

    settings: RunSettings
    evaluation: EvaluateSettings
    encoder_uri: str
    folder: str  # holds the labelled sets as `train` and `test`
    _made: dict[Callable[[Subject], Any], Any] = field(default_factory=dict)

    def once(self, make: Callable[[Subject], T]) -> T:
        """What `make` makes of this subject: what a protocol's check finds, its run has."""
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made

    @property
    def seeds(self) -> range:
        return range(self.evaluation.seeds)

    @cached_property
    def bench(self) -> Bench:
        encoder = encoders.described(self.encoder_uri, self.settings.encoder)
        encoders.check_images(encoder, self.settings.images, self.encoder_uri)
        return Bench(
            encoder,
            self.settings.images,
            EvaluationFiles(self.folder).labelled("train"),
            EvaluationFiles(self.folder).labelled("test"),
            decoders=min(DECODERS, _cpus_beside_a_gpu()),
        )

    @cached_property
    def labels(self) -> Labels:
        [(labels, _)] = results([on_cpu(labels_of, self.bench.train, self.bench.test)])
        return labels

    @cached_property
    def features(self) -> Features:
        """On a part of the images a task; they begin when this is asked for."""
        train, test = (self._features_of(set_) for set_ in (self.bench.train, self.bench.test))
        return Features(train, test)

    def _features_of(self, folder: str) -> ObjectRef:
        index = read_index(folder)
        assert index is not None  # `labelled_sets` made it
        resources = ray.cluster_resources()
        at_once = int(resources.get("GPU", 0) or resources.get("CPU", 1))
        parts = parts_of(index.images, at_once)
        return _joined.remote(*(on_gpu(features_of_part, self.bench, folder, p) for p in parts))


def on_cpu(function: Callable[..., Any], *arguments: Any) -> ObjectRef:
    """A task, whose result is `Timed`."""
    return _timed.remote(function, *arguments)


def on_gpu(function: Callable[..., Any], *arguments: Any) -> ObjectRef:
    """With the CPUs that go with it; on a cluster without GPUs, a task like others."""
    cpus = _cpus_beside_a_gpu()
    if not cpus:
        return on_cpu(function, *arguments)
    return _timed.options(num_gpus=1, num_cpus=cpus).remote(function, *arguments)


@ray.remote
def _timed(function: Callable[..., T], *arguments: Any) -> Timed[T]:
    """Functions come by their name, so that what their modules hold need not travel."""
    started = time.monotonic()
    value = function(*arguments)
    return value, time.monotonic() - started


@ray.remote
def _joined(*parts: Timed[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate([rows for rows, _ in parts])


def _cpus_beside_a_gpu() -> int:
    """0 where the cluster has no GPU."""
    with_gpus = (node for node in alive_nodes() if node.get("GPU"))
    shares = [max(1, int(node.get("CPU", 1) / node["GPU"])) for node in with_gpus]
    return min(shares, default=0)


def accuracies(
    what: str, found: list[Timed[Accuracy]], images: int, config: Mapping[str, Json]
) -> Iterator[Result]:
    """found: a seed each; images: that were asked for."""
    seconds = round(sum(seconds for _, seconds in found), 2)
    figures = [asdict(one) for one, _ in found]
    for name in figures[0]:
        values = [one[name] for one in figures]
        yield Result(
            metric=f"{what}, {name.replace('_', ' ')}",
            value=float(np.mean(values)),
            std=float(np.std(values)),
            seeds=len(found),
            n=images,
            seconds=seconds,
            config=config,
        )
