"""How good a selection is, where labels of the open set are known: by those labels, and by how near
the selected images are to the target set.

Labels are for measuring a selection, never for making one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOP = 20


@dataclass(frozen=True)
class Quality:
    selected: int
    oracle_images: int  # of the open set
    oracle_share: float | None  # of the selected images; None of an empty selection
    base_share: float  # of the open set
    lift: float | None  # oracle_share / base_share
    recall: float | None  # oracle images that are selected, of all there are
    by_round: list[tuple[int, int, float]]  # round, images so far, their oracle share
    top_classes: list[tuple[str, int, float]]  # class, images selected, share of its images
    entropy: float | None  # of the selected classes, bits
    open_entropy: float  # of the open set's
    near_target: float | None = None  # mean over images of the similarity to the nearest target
    near_target_random: float | None = None  # the same of as many random images of the open set


def quality(
    selected: Sequence[str | None],
    rounds: NDArray[np.int64],
    open_counts: Counter[str | None],
    oracle: set[str],
    near: NDArray[np.floating] | None = None,
    near_random: NDArray[np.floating] | None = None,
) -> Quality:
    """selected: the images' labels in the selection's order, with their rounds; open_counts: images
    of each label in the open set; oracle: the labels a perfect selection would take; near: each
    selected image's similarity to the target image nearest to it; near_random: a random sample's.

    Images without a label count as images, and as no class.
    """
    total = sum(open_counts.values())
    oracle_images = sum(count for label, count in open_counts.items() if label in oracle)
    hits = np.array([label in oracle for label in selected], bool)
    counts: Counter[str] = Counter(label for label in selected if label is not None)
    share = float(hits.mean()) if len(hits) else None
    base = oracle_images / total if total else 0.0
    return Quality(
        selected=len(selected),
        oracle_images=oracle_images,
        oracle_share=share,
        base_share=base,
        lift=share / base if share is not None and base else None,
        recall=float(hits.sum()) / oracle_images if oracle_images else None,
        by_round=_by_round(hits, rounds),
        top_classes=[
            (label, count, count / open_counts[label]) for label, count in counts.most_common(TOP)
        ],
        entropy=entropy(counts.values()) if counts else None,
        open_entropy=entropy(count for label, count in open_counts.items() if label is not None),
        near_target=_mean(near),
        near_target_random=_mean(near_random),
    )


def _mean(values: NDArray[np.floating] | None) -> float | None:
    return float(values.mean()) if values is not None and len(values) else None


def _by_round(hits: NDArray[np.bool_], rounds: NDArray[np.int64]) -> list[tuple[int, int, float]]:
    """After each round, the share among all that were taken until then."""
    if not len(hits):
        return []
    so_far = np.cumsum(hits)
    ends = np.flatnonzero(np.diff(rounds, append=rounds[-1] + 1))
    return [(int(rounds[end]), int(end) + 1, float(so_far[end] / (end + 1))) for end in ends]


def entropy(counts: Iterable[int]) -> float:
    """Of the distribution that the counts make, in bits; 0 of none at all."""
    values = np.array([count for count in counts if count], np.float64)
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(-(shares * np.log2(shares)).sum())
