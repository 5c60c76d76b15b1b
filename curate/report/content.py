"""What a report shows, as plain data: found by `collect`, laid out by `pages`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from curate.comparison.table import Comparison
from curate.coreset.recut import Cut


@dataclass(frozen=True)
class Source:
    name: str
    of_target: bool
    seen: int
    embedded: int
    rejected: int
    selected: int


@dataclass(frozen=True)
class Tile:
    """An image as it is shown. `thumb` is a file's name, None where the image cannot be read."""

    thumb: str | None
    trouble: str | None
    key: str
    source: str
    label: str | None
    round: int | None = None
    centroid: int | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class Centroid:
    number: int
    selected: int
    nearest: list[Tile]  # of the target set
    first: list[Tile]
    last: list[Tile]


@dataclass(frozen=True)
class Reject:
    source: str
    key: str
    stage: str
    reason: str
    tile: Tile | None  # of those that a forgiving decoder can still show


@dataclass(frozen=True)
class Rejects:
    shown: list[Reject]
    reasons: list[tuple[str, int]]  # of the files read, the most frequent first
    counted: int  # rejected images in the files read


@dataclass(frozen=True)
class Cloud:
    """One set on the map. outlines: rings around the densest 90 % and 50 % of it."""

    name: str  # target, open or coreset
    points: NDArray[np.float64]  # (N, 2) of the picture's side, 0…1, y upwards
    outlines: list[list[list[tuple[float, float]]]]


@dataclass(frozen=True)
class Map:
    """The sets in two dimensions."""

    method: str
    about: str
    clouds: list[Cloud]
    overlaps: dict[str, float]  # of the target's density with the set's
    nearness: dict[str, float]  # mean similarity of a target image to the nearest of the set
    compared: int  # images of each set in `nearness`


@dataclass(frozen=True)
class Classes:
    """The most frequent labels of one selection."""

    title: str
    images: int
    labelled: int
    distinct: int
    top: list[tuple[str, int, float | None]]  # label, images, its share of the open set


@dataclass(frozen=True)
class Figure:
    """One of the figures that an evaluation found."""

    metric: str
    value: float
    std: float
    seeds: int
    n: int  # images
    unit: str = "share"  # or what the number counts


@dataclass(frozen=True)
class Evaluation:
    """evaluate/results.json, as far as it is shown."""

    results: list[Figure]


@dataclass(frozen=True)
class Report:
    name: str
    place: str
    method: str
    clusters: int | None  # as many as there were
    tau: float | None
    reference_round: int
    selected: int
    rounds: int
    stopped_because: str
    stopping_objective: float | None
    sources: list[Source]
    seconds: dict[str, float]
    versions: dict[str, str]
    settings: str  # YAML, without secrets
    encoder: str
    curve: list[tuple[int, float, int]]  # round, f(S_t), images so far; thinned
    gallery: list[Tile]
    centroids: list[Centroid] = field(default_factory=list)
    rejects: Rejects | None = None
    cuts: list[Cut] = field(default_factory=list)
    maps: list[Map] = field(default_factory=list)
    classes: list[Classes] = field(default_factory=list)
    evaluation: list[Figure] = field(default_factory=list)
    comparison: Comparison | None = None
    missing: dict[str, str] = field(default_factory=dict)  # section → why it is not there
    figures: dict[str, float | None] = field(default_factory=dict)  # coreset.figures
    left_out: dict[str, int] = field(default_factory=dict)  # images, by reason

    @property
    def open_embedded(self) -> int:
        return sum(source.embedded for source in self.sources if not source.of_target)

    @property
    def target_embedded(self) -> int:
        return sum(source.embedded for source in self.sources if source.of_target)

    @property
    def threshold(self) -> float | None:
        """τ · f(S_reference), where the reference round was reached."""
        for number, objective, _ in self.curve:
            if number == self.reference_round and self.tau is not None:
                return self.tau * objective
        return None
