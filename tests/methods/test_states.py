"""What methods carry from step to step, what they train, and what they keep."""

from __future__ import annotations

import copy
import math
from collections import deque
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curate.dataset.views import shapes
from curate.methods import METHODS, Batch, Clock, Context, Method
from curate.methods.base import by_size, cosine, enqueue, follow, mlp, momentum_copy, unit
from curate.methods.mae import sincos
from curate.settings.recipes import RECIPES
from tests.methods import references
from tests.methods.building import (
    IMAGES,
    PATCH,
    SIDE,
    build,
    random_batch,
    tiny_cnn,
    tiny_vit,
)

PRESETS = [(name, preset) for name, presets in RECIPES.items() for preset in presets]
TARGETS = {
    "moco": [("key_backbone", "backbone"), ("key_projector", "projector")],
    "byol": [("target_backbone", "backbone"), ("target_projector", "projector")],
    "dino": [("teacher_backbone", "backbone"), ("teacher_head", "head")],
    "dinov2": [
        ("teacher_backbone", "backbone"),
        ("teacher_head", "head"),
        ("teacher_patch_head", "patch_head"),
    ],
}


def some(name: str, preset: str | None = None, **options: Any) -> Any:
    """A method whose attributes are its own: no type of the protocol's."""
    return build(name, preset, **options)


def shake(module: nn.Module) -> None:
    """All weights that are trained move."""
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape))


def weights_of(module: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in module.parameters()]


# All methods


def recipe_batch(method: Method, name: str, preset: str) -> Batch:
    """4 images in all of the recipe's views."""
    views = shapes(RECIPES[name][preset].views, SIDE, PATCH)
    return random_batch(4, tuple(s.px for s in views for _ in range(s.view.count)), 0, method.noise)


def full_views(name: str, preset: str) -> int:
    return sum(view.count for view in RECIPES[name][preset].views if view.side == 1)


def trains(method: Method, batch: Batch) -> None:
    """A loss and gradients for all that is trained, and features of some of the views."""
    method.before_step(Clock(0, 10, 5))
    loss, features = method(batch)
    assert loss.shape == () and loss.isfinite()
    assert features.ndim == 2 and features.shape[1] == method.context.feature_dim
    assert len(features) % len(batch.ids) == 0
    loss.backward()
    total = 0.0
    for name, weight in method.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None and weight.grad.isfinite().all(), name
            total += weight.grad.abs().sum().item()
        else:
            assert weight.grad is None, name
    assert total > 0
    method.after_backward()
    method.after_step()


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_recipe_trains(name: str, preset: str) -> None:
    method = build(name, preset, global_views=full_views(name, preset))
    trains(method, recipe_batch(method, name, preset))


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_recipe_trains_a_transformer(name: str, preset: str) -> None:
    method = build(name, preset, backbone=tiny_vit(), global_views=full_views(name, preset))
    trains(method, recipe_batch(method, name, preset))


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_few_steps_on_one_batch_lower_the_loss(name: str, preset: str) -> None:
    """Every gradient points the right way, where neither queue nor center moves."""
    method = build(name, preset, global_views=full_views(name, preset))
    batch = recipe_batch(method, name, preset)
    trained = [weight for weight in method.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.02)
    start = {key: buffer.clone() for key, buffer in method.named_buffers()}
    method.before_step(Clock(20, 100, 1))
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss, _ = method(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1)
        optimizer.step()
        losses.append(loss.item())
        for key, buffer in method.named_buffers():
            buffer.copy_(start[key])
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_is_kept(name: str) -> None:
    """The backbone that was trained; of DINO and DINOv2 the teacher's."""
    method = cast("Any", build(name))
    kept = method.teacher_backbone if name in ("dino", "dinov2") else method.backbone
    assert method.encoder() is kept


@pytest.mark.parametrize("name", sorted(METHODS))
def test_constant_rate_is_simsiam_s_predictor_s_alone(name: str) -> None:
    method = cast("Any", build(name))
    constant = {id(weight) for weight in method.constant_rate()}
    expected = {id(weight) for weight in method.predictor.parameters()} if name == "simsiam" else ()
    assert constant == set(expected)


# Parts


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.996, 1.0])
def test_follow(momentum: float) -> None:
    """Weights: momentum · slow + (1 - momentum) · fast. Buffers are each one's own."""
    torch.manual_seed(0)
    slow, fast = tiny_cnn(), tiny_cnn()
    fast(torch.randn(2, 3, SIDE, SIDE))  # moves the statistics
    before, target = weights_of(slow), weights_of(fast)
    buffers = [b.clone() for b in slow.buffers()]
    follow(slow, fast, momentum)
    for now, old, towards in zip(slow.parameters(), before, target, strict=True):
        expected = (momentum * old.double() + (1 - momentum) * towards.double()).float()
        torch.testing.assert_close(now.data, expected, rtol=1e-6, atol=1e-7)
    for weight, towards in zip(fast.parameters(), target, strict=True):
        assert torch.equal(weight, towards)
    for now, old in zip(slow.buffers(), buffers, strict=True):
        assert torch.equal(now, old)


def test_a_momentum_copy_has_memory_of_its_own_and_no_gradients() -> None:
    fast = tiny_cnn()
    slow = momentum_copy(fast)
    assert not any(weight.requires_grad for weight in slow.parameters())
    assert all(weight.requires_grad for weight in fast.parameters())
    before = weights_of(slow)
    shake(fast)
    assert all(torch.equal(a, b) for a, b in zip(before, slow.parameters(), strict=True))


def test_cosine() -> None:
    assert cosine(0.9, 0.1, 0) == pytest.approx(0.9)
    assert cosine(0.9, 0.1, 0.5) == pytest.approx(0.5)
    assert cosine(0.9, 0.1, 1 / 3) == pytest.approx(0.1 + 0.8 * 0.75)
    assert cosine(0.9, 0.1, 1) == pytest.approx(0.1)
    assert cosine(0.9, 0.1, 1.2) == pytest.approx(0.1)


def kinds(module: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in module]


def test_mlp_s_layers() -> None:
    """Biases only where no BatchNorm follows; no scale and shift after the last layer."""
    plain, normed = mlp(4, 5, 6, batch_norm=False), mlp(4, 5, 6, last_norm=True)
    assert kinds(plain) == ["Linear", "ReLU", "Linear"]
    assert kinds(normed) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert kinds(mlp(4, 5, 6)) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [layer.bias is not None for layer in plain if isinstance(layer, nn.Linear)] == [True] * 2
    assert [layer.bias is not None for layer in normed if isinstance(layer, nn.Linear)] == [
        False,
        False,
    ]
    norms = [layer.affine for layer in normed if isinstance(layer, nn.BatchNorm1d)]
    assert norms == [True, False]


@pytest.mark.parametrize("sides", [(16, 16, 8, 8), (16, 8, 16), (16,), (8, 12, 12, 16, 8)])
def test_views_by_size_are_views_one_by_one(sides: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    backbone, views = tiny_cnn().eval(), random_batch(3, sides).views
    expected = torch.cat([backbone(view) for view in views])
    torch.testing.assert_close(by_size(backbone, views), expected)


# Momentum encoders


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_targets_start_as_copies_and_get_no_gradient(name: str) -> None:
    method = cast("Any", build(name))
    method(random_batch(4, noise=method.noise))[0].backward()
    for slow, fast in TARGETS[name]:
        slow, fast = getattr(method, slow), getattr(method, fast)
        for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
            assert torch.equal(a, b)
            assert not a.requires_grad and a.grad is None


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_after_step_moves_the_targets(name: str, progress: float) -> None:
    """BYOL's and DINO's momentum climbs to 1 by a cosine, MoCo's is constant."""
    method = cast("Any", build(name, momentum=0.9))
    momentum = 0.9 if name == "moco" else 1 - 0.1 * (math.cos(math.pi * progress) + 1) / 2
    before = {slow: weights_of(getattr(method, slow)) for slow, _ in TARGETS[name]}
    shake(method)
    method.before_step(Clock(round(100 * progress), 100, 10))
    method.after_step()
    for slow, fast in TARGETS[name]:
        pairs = zip(weights_of(getattr(method, fast)), before[slow], strict=True)
        for now, (towards, old) in zip(weights_of(getattr(method, slow)), pairs, strict=True):
            expected = momentum * old + (1 - momentum) * towards
            torch.testing.assert_close(now, expected, rtol=1e-5, atol=1e-6)


# MoCo


@given(st.lists(st.integers(1, 20), max_size=6))
@settings(deadline=None, max_examples=50)
def test_moco_s_queue_is_first_in_first_out(lengths: list[int]) -> None:
    """Against a deque, for batches shorter and longer than the queue of 7."""
    method = some("moco", queue=7, projection_dim=3)
    expected = deque(method.queue.tolist(), maxlen=7)
    number = 0
    for length in lengths:
        keys = torch.arange(number, number + length).float().unsqueeze(1).expand(-1, 3)
        number += length
        enqueue(method.queue, method.queue_end, keys)
        expected.extend(keys.tolist())
        assert 0 <= int(method.queue_end) < 7
        oldest_first = method.queue.roll(-int(method.queue_end), 0)
        assert oldest_first.tolist() == list(expected)


def test_moco_s_queue_begins_with_random_directions() -> None:
    queue = some("moco", queue=9).queue
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(9))
    assert (queue @ queue.T).fill_diagonal_(0).abs().max() < 0.999


def test_moco_enqueues_the_second_view_s_keys_after_the_loss() -> None:
    method, batch = some("moco", queue=12).eval(), random_batch(4)
    shake(method.key_projector)
    keys = nn.functional.normalize(method.key_projector(method.key_backbone(batch.views[1])))
    method(batch)
    torch.testing.assert_close(method.queue[:4], keys)
    assert int(method.queue_end) == 4


def test_moco_s_heads() -> None:
    assert isinstance(some("moco", "v1").projector, nn.Linear)
    assert kinds(some("moco", "v2").projector) == ["Linear", "ReLU", "Linear"]


# SwAV


def swav_loss(method: Any, batch: Batch, queues: list[Any] | None) -> float:
    """By the paper, the codes being balanced over the batch and, where given, a queue a view."""
    prototypes = references.rows(method.prototypes.weight.detach())
    project = nn.Sequential(method.backbone, method.projector)

    def scores_of(z: Any) -> references.Rows:
        return [[references.dot(row, c) for c in prototypes] for row in references.rows(z)]

    scores = [scores_of(references.directions(project(view).detach())) for view in batch.views]
    codes, epsilon = [], method.context.number("epsilon")
    for i in range(2):
        more = scores_of(queues[i]) if queues else []
        codes.append(references.sinkhorn(scores[i] + more, epsilon, 3)[: len(batch.ids)])
    return references.swapped_prediction(scores, codes, 0.1)


def test_swav_s_queue_is_filled_from_its_epoch_on_and_used_when_full() -> None:
    """10 rows, 4 a batch, an epoch a step: filled from epoch 2 on, full after epoch 4."""
    options = {"queue": 10, "queue_from_epoch": 2}
    method = some("swav", **options).eval()
    project = nn.Sequential(method.backbone, method.projector)
    newest_first: list[list[Tensor]] = [[], []]
    used = []
    for epoch in range(8):
        batch = random_batch(4, seed=epoch)
        method.before_step(Clock(epoch, 10, 1))
        with_queue = swav_loss(method, batch, newest_first) if epoch > 2 else None
        without = swav_loss(method, batch, None)
        loss = method(batch)[0].item()
        used.append(with_queue is not None and loss == pytest.approx(with_queue, rel=1e-5))
        assert used[-1] or loss == pytest.approx(without, rel=1e-5)
        if epoch >= 2:
            for i, queue in enumerate(newest_first):
                z = nn.functional.normalize(project(batch.views[i]).detach())
                newest_first[i] = [*z, *queue][:10]
        rows = len(newest_first[0])
        assert rows == (0, 0, 4, 8, 10, 10, 10, 10)[epoch]
        for i, queue in enumerate(newest_first):
            if rows:
                torch.testing.assert_close(method.queue[i, :rows], torch.stack(queue))
            assert not method.queue[i, rows:].any()
    assert used == [False] * 5 + [True] * 3


def test_a_batch_longer_than_swav_s_queue_fills_it() -> None:
    method = some("swav", queue=3, queue_from_epoch=0).eval()
    batch = random_batch(5)
    method(batch)
    project = nn.Sequential(method.backbone, method.projector)
    z = nn.functional.normalize(project(batch.views[0]).detach())
    torch.testing.assert_close(method.queue[0], z[:3])
    queues = [method.queue[i].clone() for i in range(2)]
    expected = swav_loss(method, random_batch(5, seed=1), queues)
    assert method(random_batch(5, seed=1))[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_views_have_batch_statistics_of_their_own(name: str) -> None:
    """A pass a view is, in training mode, what two calls by hand give; one pass for both is not."""
    batch, losses = random_batch(6), {}
    for apart in (True, False):
        method = (
            some(name, views_apart=apart, as_byol=False)
            if name == "simsiam"
            else some(name, views_apart=apart)
        )
        losses[apart] = method(batch)[0].item()
    method = some(name)
    chain = nn.Sequential(method.backbone, method.projector)
    a, b = (chain(view) for view in batch.views)
    predicted = [method.predictor(one) for one in (a, b)]
    if name == "byol":
        target = nn.Sequential(method.target_backbone, method.target_projector)
        a, b = (target(view) for view in batch.views)
    cosine = [
        nn.functional.cosine_similarity(one, other.detach()).mean()
        for one, other in zip(predicted, (b, a), strict=True)
    ]
    both = float(sum(one.item() for one in cosine))
    by_hand = 4 - 2 * both if name == "byol" else -both / 2
    assert losses[True] == pytest.approx(by_hand, rel=1e-4)
    assert abs(losses[False] - by_hand) > 1e-3


def test_simsiam_of_simcores_authors_is_byol_without_momentum() -> None:
    """ssl/simsiam.py: its heads, its loss, and one rate for all."""
    method, byol = some("simsiam", "simcore"), some("byol", "simcore")
    for mine, its in ((method.projector, byol.projector), (method.predictor, byol.predictor)):
        assert [w.shape for w in mine.parameters()] == [w.shape for w in its.parameters()]
    assert list(method.constant_rate()) == []
    batch = random_batch(6)
    both = method.projector(method.backbone(torch.cat(batch.views)))
    predicted, target = method.predictor(both).chunk(2), both.detach().chunk(2)
    cosine = [nn.functional.cosine_similarity(predicted[i], target[1 - i]).mean() for i in range(2)]
    again = some("simsiam", "simcore")
    both = sum(one.item() for one in cosine)
    assert again(batch)[0].item() == pytest.approx(4 - 2 * both, rel=1e-4)


def test_simclrs_last_norm_has_a_scale_and_no_shift() -> None:
    last = some("simclr").projector[-1]
    assert last.weight.requires_grad and not last.bias.requires_grad
    assert not last.bias.any()
    assert isinstance(some("simclr", "simcore").projector[-1], nn.Linear)


@pytest.mark.parametrize(("preset", "normed"), [("paper", True), ("simcore", False)])
def test_lengths_of_dinos_prototypes(preset: str, normed: bool) -> None:
    method = some("dino", preset)
    lengths = method.head.last.parametrizations.weight.original0
    assert torch.all(lengths == 1) and lengths.requires_grad != normed
    assert not method.teacher_head.last.parametrizations.weight.original0.requires_grad


def test_mae_begins_as_its_code_does() -> None:
    """Linear layers by Xavier, uniform; the patches' weights as those of one."""
    method = some("mae")
    vit = method.backbone
    patches = vit.patch_embed.proj.weight.flatten(1)
    layers = [patches, vit.blocks[0].attn.qkv.weight, method.decoder[0].mlp.fc1.weight]
    for weight in [*layers, method.into_decoder.weight]:
        bound = (6 / sum(weight.shape)) ** 0.5
        assert float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.15)
    assert not vit.blocks[0].attn.qkv.bias.any() and not method.into_decoder.bias.any()
    assert float(vit.cls_token.std()) == pytest.approx(0.02, rel=0.6)


def test_swav_without_a_queue() -> None:
    method = some("swav", "simcore").eval()
    assert method.queue.numel() == 0
    for seed in range(2):
        batch = random_batch(4, seed=seed)
        expected = swav_loss(method, batch, None)
        assert method(batch)[0].item() == pytest.approx(expected, rel=1e-5)


def test_swav_s_prototypes_are_of_length_1_before_each_step() -> None:
    method = some("swav")
    shake(method)
    directions = nn.functional.normalize(method.prototypes.weight.detach())
    method.before_step(Clock(0, 10, 5))
    torch.testing.assert_close(method.prototypes.weight.data, directions)


@pytest.mark.parametrize(("step", "frozen"), [(0, True), (4, True), (5, False), (9, False)])
def test_swav_s_prototypes_are_frozen_in_the_first_epoch(step: int, frozen: bool) -> None:
    method = some("swav")
    method.before_step(Clock(step, 10, 5))
    method(random_batch(4))[0].backward()
    method.after_backward()
    assert (method.prototypes.weight.grad is None) == frozen
    assert all(weight.grad is not None for weight in method.projector.parameters())


# DINO


def test_dino_s_center_follows_the_teacher_s_mean() -> None:
    """Over both full views, of the batches seen, by an exponential mean of 0.9."""
    method = some("dino").eval()
    assert not method.center.any()
    expected = torch.zeros(1, 12)
    for seed in range(3):
        batch = random_batch(4, (SIDE, SIDE, 8), seed)
        seen = method.teacher_head(method.teacher_backbone(torch.cat(batch.views[:2])))
        expected = 0.9 * expected + 0.1 * seen.sum(0, keepdim=True) / 8
        method(batch)
        torch.testing.assert_close(method.center, expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(method.state_dict()["center"], method.center)


def test_dino_s_loss_is_by_the_center_of_the_batches_before() -> None:
    method, batch = some("dino").eval(), random_batch(4)
    fresh = copy.deepcopy(method)
    first, second = method(batch)[0].item(), method(batch)[0].item()
    assert first != pytest.approx(second, rel=1e-6)
    fresh.center = method.center.clone()
    assert fresh(batch)[0].item() != pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize(
    ("epoch", "temperature"), [(0, 0.04), (15, 0.055), (30, 0.07), (31, 0.07), (100, 0.07)]
)
def test_dino_s_teacher_temperature(epoch: int, temperature: float) -> None:
    """From 0.04 to 0.07 in 30 epochs of 2 steps."""
    method = some("dino")
    method.before_step(Clock(2 * epoch, 200, 2))
    assert method.teacher_temperature == pytest.approx(temperature)


def test_dino_s_teacher_temperature_without_warm_up() -> None:
    method = some("dino", teacher_warmup_epochs=0)
    for step in (0, 50, 200):
        method.before_step(Clock(step, 200, 2))
        assert method.teacher_temperature == 0.04


def test_dino_s_loss_is_by_the_temperature_of_the_step() -> None:
    """Its teacher and student are one to begin with, and the center is 0."""
    method, batch = some("dino").eval(), random_batch(4)
    logits = [method.head(method.backbone(view)).detach() for view in batch.views]
    method.before_step(Clock(15, 100, 1))
    expected = references.distillation(logits, logits, [0.0] * 12, 0.1, 0.055)
    assert method(batch)[0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("step", "frozen"), [(0, True), (4, True), (5, False), (9, False)])
def test_dino_s_last_layer_is_frozen_in_the_first_epoch(step: int, frozen: bool) -> None:
    method = some("dino")
    method.before_step(Clock(step, 10, 5))
    method(random_batch(4))[0].backward()
    method.after_backward()
    trained = [weight for weight in method.head.last.parameters() if weight.requires_grad]
    assert len(trained) == 1
    assert (trained[0].grad is None) == frozen
    assert all(weight.grad is not None for weight in method.head.mlp.parameters())


def test_dino_s_prototypes_are_of_length_1_whatever_is_trained() -> None:
    method = some("dino")
    shake(method)
    torch.testing.assert_close(method.head.last.weight.norm(dim=1), torch.ones(12))


def test_dino_s_teacher_drops_no_path() -> None:
    """The student does: two passes differ."""
    torch.manual_seed(0)
    method = some("dino", backbone=tiny_vit(drop_path=0.5))
    method.train()
    views = random_batch(16).views[0]
    with torch.no_grad():
        assert not torch.equal(method.backbone(views), method.backbone(views))
        assert torch.equal(method.teacher_backbone(views), method.teacher_backbone(views))


# MAE


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 4), (0.5, 8), (0.9, 2), (0.99, 1)])
def test_mae_s_encoder_sees_so_many_patches(ratio: float, kept: int) -> None:
    """Of 16, beside the class token."""
    method = some("mae", mask_ratio=ratio)
    assert method.noise == 16
    lengths = []
    method.backbone.blocks[0].register_forward_hook(lambda _, x, __: lengths.append(x[0].shape[1]))
    method(random_batch(3, (SIDE,), noise=16))
    assert lengths == [1 + kept]


def test_mae_s_encoder_sees_nothing_of_hidden_patches() -> None:
    """Those of the 12 largest numbers. Of the 4 others every pixel counts."""
    method = some("mae").eval()
    batch = random_batch(3, (SIDE,), noise=16)
    _, features = method(batch)
    visible = torch.zeros(3, 1, 4, 4)
    for n, row in enumerate(batch.noise.tolist()):
        for place in sorted(range(16), key=lambda i: row[i])[:4]:
            visible[n, 0, place // 4, place % 4] = 1
    visible = visible.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    change = torch.randn(3, 3, SIDE, SIDE)
    (images,) = batch.views
    for where, changed in ((1 - visible, False), (visible, True)):
        loss, now = method(Batch([images + where * change], batch.ids, batch.labels, batch.noise))
        assert loss.isfinite()
        assert torch.equal(now, features) != changed


def test_mae_s_decoder_gets_every_token_in_its_place() -> None:
    """With encoder blocks and decoder that do nothing: the patch's own token where it is visible,
    the mask token elsewhere, each with the position of its place."""
    method = some("mae").eval()
    vit = method.backbone
    vit.blocks, vit.norm, method.decoder = nn.Sequential(), nn.Identity(), nn.Identity()
    (images,) = random_batch(2, (SIDE,)).views
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    decoded = method._decode(method._encode(images, order[:, :4]), order)
    for n in range(2):
        for place in range(16):
            y, x = place // 4 * PATCH, place % 4 * PATCH
            pixels = images[n : n + 1, :, y : y + PATCH, x : x + PATCH]
            token = vit.patch_embed.proj(pixels).flatten() + vit.pos_embed[0, 1 + place]
            seen = place in order[n, :4].tolist()
            expected = method.into_decoder(token) if seen else method.mask_token[0, 0]
            expected = expected + method.decoder_positions[0, 1 + place]
            torch.testing.assert_close(decoded[n, place], expected, rtol=1e-4, atol=1e-5)


def test_mae_s_positions_are_fixed_waves() -> None:
    """The first half of the numbers tells the column, the second the row, by sines then cosines of
    falling frequency; the class token has none."""
    method = some("mae")
    positions = method.backbone.pos_embed
    assert not positions.requires_grad
    assert torch.equal(positions.data, sincos(16, 4))
    assert not positions[0, 0].any()
    row, column = 2, 3
    expected = []
    for place in (column, row):
        for wave in (math.sin, math.cos):
            expected += [wave(place / 10_000 ** (k / 4)) for k in range(4)]
    assert positions[0, 1 + row * 4 + column].tolist() == pytest.approx(expected, rel=1e-6)


# The others


def test_exemplar_of_too_many_images() -> None:
    """A million rows of 2,048 are 8 GB, three times over."""
    with pytest.raises(ValueError, match=r"1,000,000 of 2048 dimensions take 25 GB in training"):
        METHODS["exemplar"](nn.Identity(), Context(2048, 1_000_000, SIDE, 2, {}))


def test_exemplar_has_a_class_an_image() -> None:
    assert some("exemplar").classifier.out_features == IMAGES


def test_simclr_s_head_with_and_without_batch_norm() -> None:
    paper, simcore = some("simclr").projector, some("simclr", "simcore").projector
    assert kinds(paper) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert kinds(simcore) == ["Linear", "ReLU", "Linear"]


def test_simsiam_s_heads() -> None:
    """A projector of three layers, normalised to the end; a predictor with a bottleneck."""
    method = some("simsiam", projection_dim=12, hidden_dim=5)
    three = ["Linear", "BatchNorm1d", "ReLU"] * 3
    assert kinds(method.projector) == three[:-1]
    assert kinds(method.predictor) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert method.predictor[0].out_features == 5


def test_unit_rows_are_of_float32_whatever_autocast_made_of_them() -> None:
    rows = unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_losses_under_autocast_are_close_to_those_in_float32(name: str) -> None:
    """bfloat16 has 8 bits; BatchNorm of its own statistics would take the noise for a signal."""
    method = build(name).eval()
    batch = random_batch(8, noise=method.noise)
    expected = copy.deepcopy(method)(batch)[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method(batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.03, abs=0.01)
