"""Every loss against its paper's formula in slow loops, and where its value is known by hand."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curate.methods.byol import prediction_error
from curate.methods.dino import distillation
from curate.methods.dinov2 import balanced, koleo, tokens_of
from curate.methods.distill import similarity_distillation
from curate.methods.drlim import contrastive_margin
from curate.methods.mae import mean_of_hidden, patch_errors, patchify
from curate.methods.moco import info_nce
from curate.methods.simclr import nt_xent
from curate.methods.simsiam import negative_cosine
from curate.methods.swav import sinkhorn, swapped_prediction
from tests.methods import references
from tests.methods.building import (
    SIDE,
    build,
    random_batch,
    unit_rows,
)

SEEDS = range(3)
CLOSE = 1e-5  # relative, of a float32 loss


def reconstruction_error(predicted: Tensor, patches: Tensor, hidden: Tensor, norm: bool) -> Tensor:
    return mean_of_hidden(patch_errors(predicted, patches, norm), hidden)


def close(loss: Tensor, expected: float) -> None:
    assert loss.item() == pytest.approx(expected, rel=CLOSE, abs=1e-6)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def log_of_one_against(positive: float, negatives: int) -> float:
    """-log(e^p / (e^p + n)): one positive logit against n of 0."""
    return math.log1p(negatives * math.exp(-positive))


# SimCLR


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize(("seed", "n"), [(0, 1), (1, 2), (2, 7)])
def test_nt_xent(seed: int, n: int, temperature: float) -> None:
    a, b = unit_rows(n, 5, seed), unit_rows(n, 5, seed + 100)
    close(nt_xent(a, b, temperature), references.nt_xent(a, b, temperature))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_nt_xent_where_all_embeddings_are_one(n: int) -> None:
    """Nothing tells the positive from the 2N - 2 others."""
    same = unit_rows(1, 4).expand(n, -1)
    close(nt_xent(same, same, 0.1), math.log(2 * n - 1))


def test_nt_xent_of_orthogonal_images_and_identical_views() -> None:
    views = torch.eye(4, 6)
    close(nt_xent(views, views, 0.5), log_of_one_against(2, 6))


def test_nt_xent_where_each_view_is_like_another_image() -> None:
    """a₁ = b₂ and a₂ = b₁: the positive has logit 0, one negative 1/τ, the other 0."""
    a = torch.eye(2)
    close(nt_xent(a, a.flip(0), 0.5), math.log(2 + math.exp(2)))


# MoCo


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_info_nce(seed: int, temperature: float) -> None:
    query, key, queue = (unit_rows(n, 5, seed + n) for n in (4, 4, 9))
    key = unit_rows(4, 5, seed + 50)
    expected = references.info_nce(query, key, queue, temperature)
    close(info_nce(query, key, queue, temperature), expected)


def test_info_nce_of_an_orthogonal_queue() -> None:
    query, queue = torch.eye(2, 8), torch.eye(8)[3:]
    close(info_nce(query, query, queue, 0.2), log_of_one_against(5, 5))


def test_info_nce_where_the_queue_holds_the_key_again_and_again() -> None:
    query = torch.eye(3)[:1]
    close(info_nce(query, query, query.expand(7, -1), 0.07), math.log(8))


# SEED


@pytest.mark.parametrize("teacher_temperature", [0.01, 0.2])
@pytest.mark.parametrize("seed", SEEDS)
def test_similarity_distillation(seed: int, teacher_temperature: float) -> None:
    student, teacher, queue = (unit_rows(n, 5, seed + k) for k, n in enumerate((4, 4, 9)))
    given = (student, teacher, queue, 0.2, teacher_temperature)
    close(similarity_distillation(*given), references.similarity_distillation(*given))


def test_similarity_distillation_of_a_student_who_says_the_same_is_the_entropy() -> None:
    """Of one instance that is like itself alone, and of all alike."""
    teacher = torch.eye(2, 8)
    close(similarity_distillation(teacher, teacher, torch.eye(8)[3:], 1e-3, 1e-3), 0)
    alike = teacher[:1].expand(7, -1)
    close(similarity_distillation(teacher[:1], teacher[:1], alike, 0.2, 0.2), math.log(8))


# BYOL and SimSiam


@pytest.mark.parametrize("seed", SEEDS)
def test_prediction_error(seed: int) -> None:
    """Of vectors of any length."""
    x, y = 3 * normal(6, 5, seed=seed), normal(6, 5, seed=seed + 100)
    close(prediction_error(x, y), references.squared_distance_of_directions(x, y))


def test_prediction_error_of_identical_orthogonal_and_opposite_directions() -> None:
    x, y = torch.eye(4)[:2], torch.eye(4)[2:]
    close(prediction_error(x, 7 * x), 0)
    close(prediction_error(x, y), 2)
    close(prediction_error(x, -x), 4)


@pytest.mark.parametrize("seed", SEEDS)
def test_negative_cosine(seed: int) -> None:
    x, y = 3 * normal(6, 5, seed=seed), normal(6, 5, seed=seed + 100)
    close(negative_cosine(x, y), references.negative_cosine(x, y))


def test_negative_cosine_of_identical_orthogonal_and_opposite_directions() -> None:
    x, y = torch.eye(4)[:2], torch.eye(4)[2:]
    close(negative_cosine(x, 7 * x), -1)
    close(negative_cosine(x, y), 0)
    close(negative_cosine(x, -x), 1)


def test_no_gradient_passes_simsiam_s_target() -> None:
    x, y = normal(3, 4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    negative_cosine(x, y).backward()
    assert y.grad is None
    assert x.grad is not None and x.grad.abs().max() > 0


# SwAV


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("seed", SEEDS)
def test_sinkhorn(seed: int, iterations: int) -> None:
    scores = unit_rows(9, 5, seed) @ unit_rows(4, 5, seed + 100).T
    expected = torch.tensor(references.sinkhorn(scores, 0.05, iterations))
    torch.testing.assert_close(sinkhorn(scores, 0.05, iterations), expected, rtol=1e-4, atol=1e-5)


def test_sinkhorn_of_constant_scores_is_uniform() -> None:
    codes = sinkhorn(torch.full((6, 4), 0.3), 0.05, 3)
    torch.testing.assert_close(codes, torch.full((6, 4), 1 / 4))


@pytest.mark.parametrize("offset", [-1000.0, 0.0, 1000.0])
def test_sinkhorn_balances(offset: float) -> None:
    """Every sample is given out whole; in the end every prototype gets B / K, however large the
    scores. Few iterations leave the prototypes uneven."""
    scores = unit_rows(12, 8) @ unit_rows(4, 8, 1).T + offset
    few, many = sinkhorn(scores, 0.05, 1), sinkhorn(scores, 0.05, 500)
    for codes in (few, many):
        torch.testing.assert_close(codes.sum(1), torch.ones(12))
    torch.testing.assert_close(many.sum(0), torch.full((4,), 12 / 4), rtol=1e-3, atol=0)
    assert (few.sum(0) - 3).abs().max() > 0.1


def test_sinkhorn_assigns_by_the_scores() -> None:
    """Clear preferences that are balanced already stay."""
    scores = torch.eye(3).repeat(2, 1)
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3), scores, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_swapped_prediction(seed: int) -> None:
    scores = [normal(5, 4, seed=10 * seed + v) for v in range(4)]
    codes = [torch.softmax(normal(5, 4, seed=99 + seed + i), 1) for i in range(2)]
    expected = references.swapped_prediction(scores, codes, 0.1)
    close(swapped_prediction(scores, codes, 0.1), expected)


def test_swapped_prediction_of_uniform_scores() -> None:
    """Each of 3 prototypes is as likely, whatever the code."""
    scores = [torch.zeros(4, 3)] * 3
    close(swapped_prediction(scores, [torch.eye(3)[[0, 1, 2, 0]]] * 2, 0.1), math.log(3))


def test_swapped_prediction_leaves_out_a_view_s_own_code() -> None:
    """Each view is sure of what the other's code says, and of nothing that its own says."""
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    close(swapped_prediction([two, one], [one, two], 0.01), 0)
    close(swapped_prediction([one, two], [one, two], 0.01), 100)


# DINO


@pytest.mark.parametrize("seed", SEEDS)
def test_distillation(seed: int) -> None:
    student = [normal(5, 4, seed=10 * seed + v) for v in range(5)]
    teacher = [normal(5, 4, seed=99 + seed + i) for i in range(2)]
    center = normal(1, 4, seed=77)
    expected = references.distillation(student, teacher, center[0].tolist(), 0.1, 0.04)
    close(distillation(student, teacher, center, 0.1, 0.04), expected)


def test_distillation_of_a_student_who_says_the_same_is_the_teacher_s_entropy() -> None:
    logits, center = normal(5, 4), normal(1, 4, seed=1)
    distribution = torch.softmax((logits.double() - center) / 0.2, 1)
    entropy = float(-(distribution * distribution.log()).sum(1).mean())
    loss = distillation([logits - center] * 2, [logits] * 2, center, 0.2, 0.2)
    close(loss, entropy)
    assert float(distillation([logits] * 2, [logits] * 2, center, 0.2, 0.2)) > entropy


def test_distillation_leaves_out_a_view_s_own_distribution() -> None:
    one, two, none = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2)
    close(distillation([two, one], [one, two], none, 0.01, 0.01), 0)
    close(distillation([one, two], [one, two], none, 0.01, 0.01), 100)


def test_no_gradient_passes_dino_s_teacher() -> None:
    student, teacher = normal(3, 4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    distillation([student] * 2, [teacher] * 2, torch.zeros(1, 4), 0.1, 0.04).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().max() > 0


# MAE


def test_patches_go_row_by_row_and_hold_pixels_line_by_line() -> None:
    images = normal(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    for n in range(2):
        for place in range(6):
            expected = references.patch(images[n], place // 3, place % 3, 4)
            assert patches[n, place].tolist() == expected


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_reconstruction_error(seed: int, normalise: bool) -> None:
    images, predicted = normal(3, 3, 8, 8, seed=seed), normal(3, 4, 48, seed=seed + 100)
    hidden = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1]])
    expected = references.reconstruction_error(predicted, images, hidden, 4, normalise)
    close(reconstruction_error(predicted, patchify(images, 4), hidden, normalise), expected)


def test_a_perfect_reconstruction() -> None:
    patches, hidden = normal(2, 4, 48), torch.ones(2, 4)
    close(reconstruction_error(patches, patches, hidden, False), 0)
    close(reconstruction_error(patches + 2, patches, hidden, False), 4)


@pytest.mark.parametrize("normalise", [False, True])
def test_visible_patches_do_not_count(normalise: bool) -> None:
    patches, predicted = normal(2, 4, 48), normal(2, 4, 48, seed=1)
    hidden = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]])
    before = reconstruction_error(predicted, patches, hidden, normalise)
    off_where_visible = predicted + 100 * (1 - hidden).unsqueeze(2)
    assert reconstruction_error(off_where_visible, patches, hidden, normalise) == before
    off_where_hidden = predicted + 100 * hidden.unsqueeze(2)
    assert reconstruction_error(off_where_hidden, patches, hidden, normalise) > before + 1000


def test_normalised_patches_have_neither_brightness_nor_contrast() -> None:
    patches, predicted, hidden = normal(2, 4, 48), normal(2, 4, 48, seed=1), torch.ones(2, 4)
    gain, offset = normal(2, 4, 1, seed=2).exp(), normal(2, 4, 1, seed=3)
    first, second = (
        float(reconstruction_error(predicted, p, hidden, True))
        for p in (patches, gain * patches + offset)
    )
    assert first == pytest.approx(second, rel=1e-4)
    other = float(reconstruction_error(predicted, gain * patches + offset, hidden, False))
    assert other != pytest.approx(first, rel=0.1)


# DrLIM


@pytest.mark.parametrize("margin", [0.5, 1.5])
@pytest.mark.parametrize("seed", SEEDS)
def test_contrastive_margin(seed: int, margin: float) -> None:
    a, b = unit_rows(6, 3, seed), unit_rows(6, 3, seed + 100)
    groups = torch.tensor([0, 1, 2, 0, 1, 5])
    expected = references.contrastive_margin(a, b, groups.tolist(), groups.tolist(), margin)
    close(contrastive_margin(a, b, groups, groups, margin), expected)


def test_contrastive_margin_of_identical_views_far_from_others() -> None:
    """√2 apart, which a margin of 1 asks for and one of 2 does not."""
    views, groups = torch.eye(3), torch.arange(3)
    close(contrastive_margin(views, views, groups, groups, 1.0), 0)
    close(contrastive_margin(views, views, groups, groups, 2.0), (2 - math.sqrt(2)) ** 2 / 2)


def test_contrastive_margin_where_all_embeddings_are_one() -> None:
    """Dissimilar images at distance 0 cost half the margin squared, at a finite slope."""
    same, groups = torch.zeros(4, 3, requires_grad=True), torch.arange(4)
    loss = contrastive_margin(same, same, groups, groups, 1.5)
    assert loss.item() == pytest.approx(1.5**2 / 2, rel=1e-5)
    loss.backward()
    assert same.grad is not None and same.grad.isfinite().all()


def test_contrastive_margin_of_similar_pairs_alone() -> None:
    """At distances 0 and √2 in equal number."""
    groups = torch.zeros(2, dtype=torch.long)
    close(contrastive_margin(torch.eye(2), torch.eye(2), groups, groups, 1.0), 1 / 2)


# Whole methods: the loss of the module's own projections, a view at a time. BatchNorm is in
# evaluation mode, so that an image's projection is its own.


def parts_of(method: Any, *names: str) -> nn.Sequential:
    """Backbone, projector and what may come behind."""
    return nn.Sequential(*(getattr(method, name) for name in names)).eval()


@pytest.mark.parametrize("preset", ["paper", "simcore"])
def test_simclr(preset: str) -> None:
    method, batch = build("simclr", preset).eval(), random_batch(5)
    project = parts_of(method, "backbone", "projector")
    a, b = (project(view).detach() for view in batch.views)
    temperature = {"paper": 0.1, "simcore": 0.07}[preset]
    loss, features = method(batch)
    close(loss, references.nt_xent(a, b, temperature))
    torch.testing.assert_close(features, method.backbone(torch.cat(batch.views)))


@pytest.mark.parametrize(("preset", "temperature"), [("v1", 0.07), ("v2", 0.2), ("simcore", 1.0)])
def test_moco(preset: str, temperature: float) -> None:
    """Over three batches, with a queue of the test's own: the oldest keys make room."""
    method = cast("Any", build("moco", preset, queue=8)).eval()
    # A key encoder that has moved away from the query encoder
    with torch.no_grad():
        for weight in method.key_projector.parameters():
            weight.add_(0.3 * torch.randn(weight.shape))
    query_net = parts_of(method, "backbone", "projector")
    key_net = parts_of(method, "key_backbone", "key_projector")
    queue = references.rows(method.queue)
    for step in range(3):
        batch = random_batch(5, seed=step)
        query, key = (
            references.directions(projected)
            for projected in (query_net(batch.views[0]).detach(), key_net(batch.views[1]))
        )
        loss, _ = method(batch)
        close(loss, references.info_nce(query, key, queue, temperature))
        queue = (queue + key)[-8:]


def test_distill() -> None:
    """Over three batches; the teacher sees the student's view at its own size and normalisation."""
    method = cast("Any", build("distill", queue=8)).eval()
    student, taught = parts_of(method, "backbone", "projector"), method.context.teacher
    queue = references.rows(method.queue)
    for step in range(3):
        images = random_batch(5, (SIDE,), seed=step)
        seen = F.interpolate(
            1.5 * images.views[0] + 0.25, taught.px, mode="bicubic", antialias=True
        )
        given, wanted = (
            references.directions(x.detach())
            for x in (student(images.views[0]), taught.module(seen))
        )
        loss, features = method(images)
        close(loss, references.similarity_distillation(given, wanted, queue, 0.2, 0.01))
        torch.testing.assert_close(features, method.backbone(images.views[0]))
        queue = (queue + wanted)[-8:]


def test_distill_keeps_its_teacher_to_itself() -> None:
    method = cast("Any", build("distill"))
    teacher = method.context.teacher.module
    held = {id(x) for x in [*method.parameters(), *method.buffers()]}
    assert not held & {id(x) for x in [*teacher.parameters(), *teacher.buffers()]}
    method.train()
    assert not teacher.training


def test_byol() -> None:
    """Both directions, each a squared distance: 0 to 8."""
    method, batch = build("byol").eval(), random_batch(5)
    with torch.no_grad():
        for weight in cast("Any", method).target_projector.parameters():
            weight.add_(0.3 * torch.randn(weight.shape))
    predict = parts_of(method, "backbone", "projector", "predictor")
    target = parts_of(method, "target_backbone", "target_projector")
    a, b = batch.views
    expected = [
        references.squared_distance_of_directions(predict(x).detach(), target(y))
        for x, y in ((a, b), (b, a))
    ]
    assert expected[0] != pytest.approx(expected[1], rel=0.01)
    close(method(batch)[0], sum(expected))


def test_simsiam() -> None:
    method, batch = build("simsiam").eval(), random_batch(5)
    project = parts_of(method, "backbone", "projector")
    predict = parts_of(method, "backbone", "projector", "predictor")
    a, b = batch.views
    expected = [
        references.negative_cosine(predict(x).detach(), project(y).detach())
        for x, y in ((a, b), (b, a))
    ]
    assert expected[0] != pytest.approx(expected[1], rel=0.01)
    close(method(batch)[0], sum(expected) / 2)


def test_swav_of_small_views_too() -> None:
    method = cast("Any", build("swav")).eval()
    batch = random_batch(5, (SIDE, SIDE, 8, 8, 8))
    project = parts_of(method, "backbone", "projector")
    scores = []
    for view in batch.views:
        directions = references.directions(project(view).detach())
        prototypes = references.rows(method.prototypes.weight.detach())
        scores.append([[references.dot(z, c) for c in prototypes] for z in directions])
    codes = [references.sinkhorn(score, 0.05, 3) for score in scores[:2]]
    loss, features = method(batch)
    close(loss, references.swapped_prediction(scores, codes, 0.1))
    torch.testing.assert_close(features, method.backbone(torch.cat(batch.views[:2])))


def test_dino_of_small_views_too() -> None:
    method = cast("Any", build("dino")).eval()
    batch = random_batch(5, (SIDE, SIDE, 8, 8, 8))
    with torch.no_grad():
        method.center += torch.randn(method.center.shape)
        for weight in method.teacher_head.mlp.parameters():
            weight.add_(0.3 * torch.randn(weight.shape))
    center = method.center[0].tolist()
    student = parts_of(method, "backbone", "head")
    teacher = parts_of(method, "teacher_backbone", "teacher_head")
    expected = references.distillation(
        [student(view).detach() for view in batch.views],
        [teacher(view) for view in batch.views[:2]],
        center,
        0.1,
        0.04,
    )
    loss, features = method(batch)
    close(loss, expected)
    torch.testing.assert_close(features, method.backbone(torch.cat(batch.views[:2])))


# DINOv2


@pytest.mark.parametrize("seed", SEEDS)
def test_koleo(seed: int) -> None:
    features = normal(7, 5, seed=seed)
    close(koleo(features), references.koleo(features))


def test_koleo_of_opposite_and_of_equal_directions() -> None:
    close(koleo(torch.tensor([[3.0, 0.0], [-0.5, 0.0]])), -math.log(2))
    assert koleo(torch.ones(3, 4)) > 15  # finite, and far from what is wanted


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_balanced(seed: int, iterations: int) -> None:
    scores = normal(6, 4, seed=seed)
    expected = torch.tensor(references.sinkhorn(scores, 0.07, iterations))
    torch.testing.assert_close(balanced(scores, 0.07, iterations), expected, rtol=1e-4, atol=1e-6)
    assert balanced(scores[:0], 0.07, iterations).shape == (0, 4)


def test_dinov2() -> None:
    """All of its losses, with views that have no patch masked among them."""
    method = cast("Any", build("dinov2", mask_probability=0.6)).eval()
    with torch.no_grad():
        for head in (method.teacher_head, method.teacher_patch_head):
            for weight in head.mlp.parameters():
                weight.add_(0.3 * torch.randn(weight.shape))
        method.mask_token += torch.randn(method.mask_token.shape)
    n, batch = 5, random_batch(5, (SIDE, SIDE, 8, 8, 8), noise=method.noise)
    masks = method._masks(batch.noise)
    counts = masks.sum(1).tolist()
    assert 0 in counts and max(counts) > 1
    full = torch.cat(batch.views[:2])
    with torch.no_grad():
        taught, taught_patches = tokens_of(method.teacher_backbone, full)
        classes, patches = tokens_of(method.backbone, full, masks, method.mask_token)
        small = method.backbone(torch.cat(batch.views[2:]))
        views = method.head(torch.cat([classes, small])).chunk(5)
        wanted = torch.tensor(references.sinkhorn(method.teacher_head(taught), 0.04, 3))
        masked = torch.tensor(
            references.sinkhorn(method.teacher_patch_head(taught_patches[masks]), 0.04, 3)
        )
        scores = method.patch_head(patches[masks])
    expected = references.swapped_prediction(views, wanted.chunk(2), 0.1)
    expected += references.masked_distillation(scores.split(counts), masked.split(counts), 0.1)
    expected += 0.1 * sum(references.koleo(view) for view in classes.split(n))
    loss, features = method(batch)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(features, classes)


def test_no_gradient_passes_dinov2_s_teacher() -> None:
    method = cast("Any", build("dinov2"))
    method(random_batch(4, noise=method.noise))[0].backward()
    teachers = (method.teacher_backbone, method.teacher_head, method.teacher_patch_head)
    assert all(weight.grad is None for part in teachers for weight in part.parameters())


@pytest.mark.parametrize("label_pairs", [False, True])
def test_drlim(label_pairs: bool) -> None:
    """With labels, images of one class are similar pairs; without a label each is on its own."""
    method, batch = build("drlim", label_pairs=label_pairs, margin=0.8).eval(), random_batch(8)
    batch.labels.copy_(torch.tensor([0, 1, -1, 0, -1, 1, 0, 2]))
    a, b = (
        references.directions(parts_of(method, "backbone", "projector")(view).detach())
        for view in batch.views
    )
    groups = [10, 11, 100, 10, 101, 11, 10, 12] if label_pairs else list(range(8))
    close(method(batch)[0], references.contrastive_margin(a, b, groups, groups, 0.8))
    assert method.needs_labels == label_pairs


def test_drlim_label_is_not_taken_for_an_image() -> None:
    """Image 1 has no label, image 0 is of class 1: no pair."""
    method = build("drlim", label_pairs=True).eval()
    batch = random_batch(2)
    batch.ids.copy_(torch.tensor([0, 1]))
    losses = []
    for labels in ([1, -1], [0, 1], [-1, -1], [1, 1]):
        batch.labels.copy_(torch.tensor(labels))
        losses.append(method(batch)[0].item())
    assert losses[0] == losses[1] == losses[2] != losses[3]


def test_exemplar() -> None:
    """Every view's class is its image."""
    method, batch = cast("Any", build("exemplar")).eval(), random_batch(5)
    features = [row for view in batch.views for row in method.backbone(view).detach()]
    classifier = method.classifier
    expected = references.exemplar(
        features, classifier.weight.detach(), classifier.bias.detach(), batch.ids.tolist() * 2
    )
    close(method(batch)[0], expected)


def test_exemplar_of_a_classifier_that_knows_nothing() -> None:
    method = cast("Any", build("exemplar"))
    nn.init.zeros_(method.classifier.weight)
    nn.init.zeros_(method.classifier.bias)
    close(method(random_batch(5))[0], math.log(24))  # images


@pytest.mark.parametrize("normalise", [False, True])
def test_mae_of_a_decoder_that_says_nothing(normalise: bool) -> None:
    """The error is the mean square of what is hidden: of the noise's larger values."""
    method = cast("Any", build("mae", normalise_pixels=normalise))
    nn.init.zeros_(method.decoder[-1].weight)
    nn.init.zeros_(method.decoder[-1].bias)
    batch = random_batch(3, (SIDE,), noise=16)
    hidden = [[sum(y < x for y in row) >= 4 for x in row] for row in batch.noise.tolist()]
    silence = torch.zeros(3, 16, 48)
    expected = references.reconstruction_error(silence, batch.views[0], hidden, 4, normalise)
    close(method(batch)[0], expected)
