"""How much more likely an image is in the target set than in the open set: log p_X(x) / p_U(x).

Three estimates of it from embeddings of both. The linear one is Fisher's discriminant in closed
form; the logistic one separates the two sets; the kernel one compares soft distances to centroids
of both. Scores are exact, as similarities are: no shard or block can change one.

Source: Sugiyama, Suzuki & Kanamori, "Density Ratio Estimation in Machine Learning", 2012, chapters
3 and 4; for the noise, Xie et al., "Data Selection for Language Models via Importance Resampling",
NeurIPS 2023, and Kool et al., "Stochastic Beams and Where to Find Them", ICML 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression

from curate.coreset.centroids import centroids
from curate.coreset.similarity import on_grid, widen
from curate.settings.selection import Ratio

Rows = NDArray[np.float32]  # (n, D), unit, on the grid of similarity.py
Scores = NDArray[np.float64]  # (n,)

MANY = 50  # rows for each dimension
ROWS_AT_ONCE = 8192
LEAST = 1e-3  # of the mean variance, added to each: directions below it are noise
NEAR, FAR = 50, 250  # centroids of the target and of the open set, of a kernel ratio
TO_EACH = 64  # images of the open set, that a centroid of it is made of
TEMPERATURES = (0.05, 0.1, 0.2, 0.4)
COMPARED = 5000  # images of the open set that temperatures are compared on
BINS = 4, 20  # of held-out scores, at least and at most
IN_A_BIN = 10
FINE = 2.0**20  # scores that went through exp and log are rounded to its inverse


class Score(Protocol):
    """What images are ranked by: of rows (n, D) a number each, and a quick one near it."""

    def exact(self, rows: Rows) -> Scores: ...

    def rough(self, rows: Rows) -> tuple[Scores, float]:
        """Within the second, of the exact ones."""
        ...


@dataclass(frozen=True)
class Linear:
    """scale · (direction · x) + offset. direction (D,): a unit row on the grid, like a centroid."""

    direction: NDArray[np.float64]
    scale: float
    offset: float

    def exact(self, rows: Rows) -> Scores:
        return self.of_similarity(rows.astype(np.float64) @ self.direction)

    def of_similarity(self, similarity: Scores) -> Scores:
        return similarity * self.scale + self.offset

    def rough(self, rows: Rows) -> tuple[Scores, float]:
        near = (rows @ self.direction.astype(np.float32)).astype(np.float64)
        return self.of_similarity(near), 1.01 * self.scale * _float32_error(rows)


@dataclass(frozen=True)
class Kernel:
    """scale · (log mean exp(x·c / T) over the target's centroids, less that over the open set's)
    + offset.

    near (K, D), far (L, D): unit rows on the grid.
    """

    near: NDArray[np.float64]
    far: NDArray[np.float64]
    temperature: float
    scale: float = 1.0
    offset: float = 0.0

    def exact(self, rows: Rows) -> Scores:
        score = self._of(rows.astype(np.float64), self.near, self.far) * self.scale + self.offset
        return np.rint(score * FINE) / FINE

    def rough(self, rows: Rows) -> tuple[Scores, float]:
        near, far = self.near.astype(np.float32), self.far.astype(np.float32)
        # Of each similarity; what exp and log lose of float32 numbers to 1/T is the rest
        error = self.scale * (2.02 * _float32_error(rows) + 1e-5) / self.temperature + 1 / FINE
        score = self._of(rows, near, far).astype(np.float64)
        return score * self.scale + self.offset, error

    def _of(self, rows: NDArray, near: NDArray, far: NDArray) -> NDArray:
        return _log_mean_exp(rows @ near.T, self.temperature) - _log_mean_exp(
            rows @ far.T, self.temperature
        )


@dataclass(frozen=True)
class Noisy:
    """A score with Gumbel noise from the seed and the embedding's own bits: the best B of it are a
    sample of B without replacement, each image drawn with weight exp(score)."""

    score: Score
    seed: int

    def exact(self, rows: Rows) -> Scores:
        return self.score.exact(rows) + gumbel(rows, self.seed)

    def rough(self, rows: Rows) -> tuple[Scores, float]:
        near, error = self.score.rough(rows)
        return near + gumbel(rows, self.seed), error


def estimate(
    kind: Ratio, target: NDArray[np.floating], sample: NDArray[np.floating], seed: int
) -> Linear | Kernel:
    """target (T, D), sample of the open set (N, D): unit rows. seed: of a kernel's centroids.

    Raises ValueError for sets that do not differ, or of fewer than two images.
    """
    if min(len(target), len(sample)) < 2:
        raise ValueError("a ratio needs two images of either set at least")
    mine, theirs = widen(target), widen(sample)
    if kind == "linear":
        return _linear(mine, theirs)
    if kind == "logistic":
        return _logistic(mine, theirs)
    return _kernel(mine, theirs, seed)


def _linear(target: Rows, sample: Rows) -> Linear:
    """w = Σ_U⁻¹(μ_X − μ_U), as if both sets were Gaussian and of the open set's covariance."""
    inverse = np.linalg.inv(_covariance(sample))
    mine, theirs = target.mean(0, dtype=np.float64), sample.mean(0, dtype=np.float64)
    weights = inverse @ (mine - theirs)
    return _on_grid(weights, -float(weights @ (mine + theirs)) / 2)


def _logistic(target: Rows, sample: Rows) -> Linear:
    """On whitened embeddings, so that the penalty is the same in all directions."""
    variances, directions = np.linalg.eigh(_covariance(sample))
    whiten = directions / np.sqrt(variances)
    mean = sample.mean(0, dtype=np.float64)
    rows = np.concatenate([target, sample]) - mean.astype(np.float32)
    rows = rows @ whiten.astype(np.float32)
    labels = np.repeat([1, 0], [len(target), len(sample)])
    # Each set weighs the same: then the log odds are the log ratio
    fitted = LogisticRegression(class_weight="balanced", C=1 / len(target), max_iter=1000)
    fitted.fit(rows, labels)
    weights = whiten @ fitted.coef_[0].astype(np.float64)
    return _on_grid(weights, float(fitted.intercept_[0] - weights @ mean))


def _covariance(sample: Rows) -> NDArray[np.float64]:
    """(D, D), shrunk towards a ball: by LEAST, and, of few rows, by Ledoit and Wolf's share, which
    of many comes to nothing and takes as long as the covariance."""
    if len(sample) < MANY * sample.shape[1]:
        covariance, _ = ledoit_wolf(sample.astype(np.float64))
    else:
        covariance = _empirical(sample)
    ball = np.trace(covariance) / len(covariance)
    return np.asarray(covariance) + max(LEAST * ball, np.finfo(float).tiny) * np.eye(
        len(covariance)
    )


def _empirical(sample: Rows) -> NDArray[np.float64]:
    """(D, D): products of a few thousand rows in float32, which is twice as fast, and their sum in
    float64."""
    mean = sample.mean(0, dtype=np.float64).astype(np.float32)
    total = np.zeros((sample.shape[1],) * 2)
    for start in range(0, len(sample), ROWS_AT_ONCE):
        centred = sample[start : start + ROWS_AT_ONCE] - mean
        total += centred.T @ centred
    return total / len(sample)


def _on_grid(weights: NDArray[np.float64], offset: float) -> Linear:
    scale = float(np.linalg.norm(weights))
    if not scale > 0:
        raise ValueError("the target's embeddings do not differ from the open set's")
    return Linear(on_grid(weights / scale), scale, offset)


def _kernel(target: Rows, sample: Rows, seed: int) -> Kernel:
    """T is the one by which half of the target stands out most for the other half's centroids; of
    the scores of images that centroids have not seen, a logistic regression makes log ratios."""
    some = sample[:: -(-len(sample) // (FAR * TO_EACH))]
    far = on_grid(centroids(some, FAR, seed))
    compared = sample[:: -(-len(sample) // COMPARED)]
    halves_of = [
        (on_grid(centroids(mine, NEAR, seed)), other)
        for mine, other in ((target[::2], target[1::2]), (target[1::2], target[::2]))
    ]

    def held_out(temperature: float) -> list[tuple[Scores, Scores]]:
        """Scores of each half, and of the open set, by the other half's centroids."""
        both = [(Kernel(near, far, temperature), other) for near, other in halves_of]
        return [(one.exact(other), one.exact(compared)) for one, other in both]

    def told_apart(temperature: float) -> float:
        return sum(float(np.mean(open_ >= np.median(own))) for own, open_ in held_out(temperature))

    temperature = min(TEMPERATURES, key=told_apart)
    own, open_ = (np.concatenate(scores) for scores in zip(*held_out(temperature), strict=True))
    labels = np.repeat([1, 0], [len(own), len(open_)])
    fitted = LogisticRegression(class_weight="balanced", C=np.inf)
    fitted.fit(np.concatenate([own, open_])[:, None], labels)
    scale = float(fitted.coef_[0, 0])
    if not scale > 0:
        raise ValueError("half of the target does not stand out for the other; take linear")
    near = on_grid(centroids(target, NEAR, seed))
    return Kernel(near, far, temperature, scale, float(fitted.intercept_[0]))


def _log_mean_exp(similarity: NDArray, temperature: float) -> NDArray:
    """(n, K) → (n,)."""
    scaled = similarity / similarity.dtype.type(temperature)
    most = scaled.max(axis=1, keepdims=True)
    return most[:, 0] + np.log(np.exp(scaled - most).mean(axis=1))


def _float32_error(rows: Rows) -> float:
    """Of a dot product of unit rows, by float32: see similarity.prepare."""
    return rows.shape[1] * 2.0**-24 * 1.02


def gumbel(rows: Rows, seed: int) -> Scores:
    """(n,) standard Gumbel numbers: equal rows have equal ones, whatever stands beside them."""
    odd = np.random.default_rng(seed).integers(0, 2**64, rows.shape[1], np.uint64) | np.uint64(1)
    bits = np.ascontiguousarray(rows + np.float32(0)).view(np.uint32)  # -0 becomes 0
    mixed = splitmix64((bits.astype(np.uint64) * odd).sum(axis=1, dtype=np.uint64))  # modulo 2^64
    uniform = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.rint(-np.log(-np.log(uniform)) * FINE) / FINE


def splitmix64(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    return numbers ^ (numbers >> np.uint64(31))


@dataclass(frozen=True)
class Stop:
    """How much of the open set is worth taking: where among the next images half are target-like.

    bars: scores, falling, between which held-out images of the target fall in equal shares.
    """

    bars: NDArray[np.float64]

    @staticmethod
    def of(held_out: Scores) -> Stop:
        """held_out: scores of target images by an estimate that did not see them."""
        bins = int(np.clip(len(held_out) // IN_A_BIN, *BINS))
        return Stop(np.quantile(held_out, 1 - np.arange(1, bins) / bins))

    def count(self, above: NDArray[np.int64]) -> tuple[int, float]:
        """above: images of the open set at or over each bar. → how many to take, and how many
        target-like ones there are in the open set, by estimate.

        The open set holds target images in some unknown share; where it is densest in them, it
        holds nothing else (Scott, "A Rate of Convergence for Mixture Proportion Estimation", 2015).
        So that every bin holds as many of them as the densest holds images.
        """
        shares = np.arange(1, len(self.bars) + 1)
        # In each bin; the first few alone are too few images to tell
        each = float(np.min((above / shares)[len(shares) // 5 :]))
        between = np.diff(above, prepend=0)
        poor = np.flatnonzero(each < between / 2)
        taken = above[-1] if not len(poor) else (above[poor[0] - 1] if poor[0] else 0)
        return int(taken), each * (len(self.bars) + 1)


def is_small(target: int, width: int) -> bool:
    """Whether there are fewer images than dimensions: an estimate that shrinkage decides."""
    return target < width


def halves(count: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of a target set, every other image and the rest."""
    odd = np.arange(count) % 2 == 1
    return ~odd, odd


def gate_size(gate: float, budget: int, images: int) -> int:
    """How many images a gate lets through."""
    return min(images, math.ceil(gate * budget))
