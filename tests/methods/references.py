"""Slow, independent losses: loops over numbers in float64, each from its paper's formula.

Vectors and matrices are anything with rows, such as arrays and detached tensors. Nothing here
imports a method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Rows = list[list[float]]


def rows(x: Any) -> Rows:
    """Python floats of a matrix."""
    return [[float(value) for value in row] for row in x]


def dot(x: Sequence[float], y: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def directions(x: Any) -> Rows:
    """Its rows at length 1."""
    return [[value / math.sqrt(dot(row, row)) for value in row] for row in rows(x)]


def cosine_similarity(x: Sequence[float], y: Sequence[float]) -> float:
    return dot(x, y) / math.sqrt(dot(x, x)) / math.sqrt(dot(y, y))


def softmax(x: Sequence[float]) -> list[float]:
    largest = max(x)
    powers = [math.exp(value - largest) for value in x]
    return [power / math.fsum(powers) for power in powers]


def cross_entropy(wanted: Sequence[float], logits: Sequence[float]) -> float:
    """-Σ wanted · log softmax(logits)"""
    return -math.fsum(w * math.log(p) for w, p in zip(wanted, softmax(logits), strict=True))


def nt_xent(a: Any, b: Any, temperature: float) -> float:
    """SimCLR, equation 1 and algorithm 1: the mean over all 2N anchors, each against the 2N - 1
    other views, of which one is its positive."""
    views = rows(a) + rows(b)
    n = len(views) // 2
    losses = []
    for i, anchor in enumerate(views):
        others = [k for k in range(2 * n) if k != i]
        powers = {k: math.exp(cosine_similarity(anchor, views[k]) / temperature) for k in others}
        losses.append(-math.log(powers[(i + n) % (2 * n)] / math.fsum(powers.values())))
    return math.fsum(losses) / len(losses)


def info_nce(query: Any, key: Any, queue: Any, temperature: float) -> float:
    """MoCo, equation 1: the sum runs over one positive and K negative samples."""
    losses = []
    for q, positive in zip(rows(query), rows(key), strict=True):
        powers = [math.exp(dot(q, k) / temperature) for k in [positive, *rows(queue)]]
        losses.append(-math.log(powers[0] / math.fsum(powers)))
    return math.fsum(losses) / len(losses)


def similarity_distillation(
    student: Any, teacher: Any, queue: Any, student_temperature: float, teacher_temperature: float
) -> float:
    """SEED, equations 3 to 5, image by image; its set of instances is the queue and itself."""

    def distribution(row: Sequence[float], others: Rows, temperature: float) -> list[float]:
        most = max(dot(row, other) for other in others) / temperature
        powers = [math.exp(dot(row, other) / temperature - most) for other in others]
        return [power / math.fsum(powers) for power in powers]

    losses = []
    for s, t in zip(rows(student), rows(teacher), strict=True):
        instances = [t, *rows(queue)]
        wanted = distribution(t, instances, teacher_temperature)
        given = distribution(s, instances, student_temperature)
        losses.append(-math.fsum(w * math.log(g) for w, g in zip(wanted, given, strict=True)))
    return math.fsum(losses) / len(losses)


def squared_distance_of_directions(x: Any, y: Any) -> float:
    """BYOL, equation 2: ‖x/‖x‖ - y/‖y‖‖², the mean over rows."""
    values = [math.dist(p, q) ** 2 for p, q in zip(directions(x), directions(y), strict=True)]
    return math.fsum(values) / len(values)


def negative_cosine(x: Any, y: Any) -> float:
    """SimSiam, equation 1, the mean over rows."""
    values = [-cosine_similarity(p, q) for p, q in zip(rows(x), rows(y), strict=True)]
    return math.fsum(values) / len(values)


def sinkhorn(scores: Any, epsilon: float, iterations: int) -> Rows:
    """SwAV, equations 3 to 5: Q* = Diag(u) exp(CᵀZ / ε) Diag(v), u and v found in turns so that
    prototypes get 1/K and samples 1/B of the mass. Returned as B · Qᵀ, a row a sample."""
    scores = rows(scores)
    samples, prototypes = range(len(scores)), range(len(scores[0]))
    m = [[math.exp(scores[b][k] / epsilon) for b in samples] for k in prototypes]
    u, v = [1.0 for _ in prototypes], [1.0 for _ in samples]
    for _ in range(iterations):
        u = [1 / len(u) / math.fsum(m[k][b] * v[b] for b in samples) for k in prototypes]
        v = [1 / len(v) / math.fsum(m[k][b] * u[k] for k in prototypes) for b in samples]
    return [[len(v) * u[k] * m[k][b] * v[b] for k in prototypes] for b in samples]


def swapped_prediction(scores: Sequence[Any], codes: Sequence[Any], temperature: float) -> float:
    """SwAV, equations 1 and 2, and section 3.2 for small views: ℓ(z_v, q_i) for all v ≠ i."""
    losses = []
    for i, code in enumerate(codes):
        for v, score in enumerate(scores):
            if v == i:
                continue
            for q, z in zip(rows(code), rows(score), strict=True):
                losses.append(cross_entropy(q, [value / temperature for value in z]))
    return math.fsum(losses) / len(losses)


def distillation(
    student: Sequence[Any],
    teacher: Sequence[Any],
    center: Sequence[float],
    student_temperature: float,
    teacher_temperature: float,
) -> float:
    """DINO, equations 1 to 3 and algorithm 1: H(P_t(x), P_s(x')) for all x' ≠ x."""
    losses = []
    for i, seen in enumerate(teacher):
        for v, view in enumerate(student):
            if v == i:
                continue
            for t, s in zip(rows(seen), rows(view), strict=True):
                centred = [x - float(c) for x, c in zip(t, center, strict=True)]
                wanted = softmax([x / teacher_temperature for x in centred])
                losses.append(cross_entropy(wanted, [x / student_temperature for x in s]))
    return math.fsum(losses) / len(losses)


def koleo(features: Any) -> float:
    """DINOv2, section 4: -1/n Σ log min ‖x_i - x_j‖ over j ≠ i, of unit rows."""
    x = directions(features)
    nearest = [min(math.dist(x[i], x[j]) for j in range(len(x)) if j != i) for i in range(len(x))]
    return -math.fsum(math.log(distance) for distance in nearest) / len(x)


def masked_distillation(
    given: Sequence[Any], wanted: Sequence[Any], student_temperature: float
) -> float:
    """iBOT, equation 2, with its code's weights: of each view the mean over its masked patches.

    given, wanted: of each view, the masked patches' scores, and the teacher's probabilities.
    """
    views = []
    for scores, targets in zip(given, wanted, strict=True):
        losses = [
            cross_entropy(t, [x / student_temperature for x in s])
            for t, s in zip(rows(targets), rows(scores), strict=True)
        ]
        views.append(math.fsum(losses) / len(losses) if losses else 0.0)
    return math.fsum(views) / len(views)


def patch(image: Any, row: int, column: int, patch_px: int) -> list[float]:
    """One patch of an image (3, H, W): its pixels line by line, red green blue of each."""
    return [
        float(image[channel][row * patch_px + y][column * patch_px + x])
        for y in range(patch_px)
        for x in range(patch_px)
        for channel in range(3)
    ]


def reconstruction_error(
    predicted: Any, images: Any, hidden: Any, patch_px: int, normalise: bool
) -> float:
    """MAE, section 3: mean squared error in pixels, on hidden patches alone."""
    errors = []
    for n, image in enumerate(images):
        across = len(image[0][0]) // patch_px
        for place in range(len(image[0]) // patch_px * across):
            if not hidden[n][place]:
                continue
            wanted = patch(image, place // across, place % across, patch_px)
            if normalise:
                mean = math.fsum(wanted) / len(wanted)
                variance = math.fsum((x - mean) ** 2 for x in wanted) / (len(wanted) - 1)
                wanted = [(x - mean) / math.sqrt(variance + 1e-6) for x in wanted]
            given = [float(x) for x in predicted[n][place]]
            errors += [(x - y) ** 2 for x, y in zip(given, wanted, strict=True)]
    return math.fsum(errors) / len(errors)


def contrastive_margin(
    a: Any, b: Any, group_a: Sequence[int], group_b: Sequence[int], margin: float
) -> float:
    """DrLIM, equation 4: D²/2 of similar pairs and max(0, m - D)²/2 of others, the mean of each."""
    similar, others = [], []
    for p, group_p in zip(rows(a), group_a, strict=True):
        for q, group_q in zip(rows(b), group_b, strict=True):
            distance = math.dist(p, q)
            if int(group_p) == int(group_q):
                similar.append(distance**2 / 2)
            else:
                others.append(max(0.0, margin - distance) ** 2 / 2)
    return math.fsum(similar) / max(len(similar), 1) + math.fsum(others) / max(len(others), 1)


def exemplar(features: Any, weight: Any, bias: Any, classes: Sequence[int]) -> float:
    """Exemplar-CNN, equations 3 and 4: the multinomial negative log-likelihood of each image's own
    class."""
    losses = []
    for x, own in zip(rows(features), classes, strict=True):
        logits = [dot(w, x) + float(c) for w, c in zip(rows(weight), bias, strict=True)]
        losses.append(-math.log(softmax(logits)[int(own)]))
    return math.fsum(losses) / len(losses)
