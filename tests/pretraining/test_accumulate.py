"""A batch in parts is the batch: losses, gradients and states, of every method."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from curate.dataset.crops import parts_of
from curate.errors import CurateError
from curate.methods import Batch, Clock
from curate.pretraining.accumulate import backward_in_parts
from tests.methods.building import part
from tests.methods.test_ranks import CLOSE, furthest
from tests.methods.two_ranks import CASES, IMAGES, STEPS, batch_of, build_case, one_process
from tests.pretraining.test_trainer import crops_of, plan_of, trainer_of

PARTS = 4


@pytest.mark.parametrize("case", CASES)
def test_parts_equal_the_whole(case: str) -> None:
    """BatchNorm in evaluation mode; queues and centres move once a step."""
    expected = one_process(case)
    method = build_case(case)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step in range(STEPS):
        batch = batch_of(case, method, step)
        size = IMAGES // PARTS
        makers = [partial(part, batch, slice(n * size, (n + 1) * size)) for n in range(PARTS)]
        whole = Batch([], batch.ids, batch.labels, batch.noise)
        optimizer.zero_grad()
        method.before_step(Clock(step, 10, 5))
        loss, _ = backward_in_parts(method, method, makers, whole, lambda _: nullcontext())
        method.after_backward()
        torch.testing.assert_close(loss, expected["losses"][step], rtol=CLOSE, atol=1e-6)
        gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
        assert furthest(gradients, expected["gradients"][step]) < CLOSE
        optimizer.step()
        method.after_step()
    for name, value in method.state_dict().items():
        torch.testing.assert_close(value, expected["state"][name], rtol=CLOSE, atol=CLOSE, msg=name)


def test_a_loss_of_each_part_by_itself_is_another() -> None:
    """Or the test above would show nothing: SimCLR's negatives are all images of the batch."""
    method = build_case("simclr")
    batch = batch_of("simclr", method, 0)
    apart = [method(part(batch, slice(n, n + 2)))[0] for n in range(0, IMAGES, 2)]
    whole, _ = method(batch)
    assert abs(float(torch.stack(apart).mean() - whole)) > 0.1


def test_the_trainer_draws_the_same_twice() -> None:
    """Stochastic depth, of both passes over a part, and after a restart."""
    plan = plan_of(
        method="dino",
        backbone="vit_tiny_patch16_224",
        views={"local_views": 0},
        options={"projection_dim": 32, "hidden_dim": 32, "bottleneck_dim": 16},
        accumulate=2,
    )
    found = []
    for _ in range(2):
        trainer = trainer_of(plan)
        found.append([float(trainer.step(crops_of(trainer, step))[0]) for step in range(3)])
        torch.rand(7)
    assert found[0] == found[1]


def test_running_averages_see_each_part_once() -> None:
    trainer = trainer_of(plan_of(backbone="test_resnet", accumulate=2))
    trainer.step(crops_of(trainer))
    norms = [m for m in trainer.method.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and {int(m.num_batches_tracked) for m in norms} == {2}
    assert all(m.track_running_stats for m in norms)


def test_parts_of_crops_are_all_of_them() -> None:
    crops = crops_of(trainer_of(plan_of()))
    parts = parts_of(crops, 2)
    assert [len(one.ids) for one in parts] == [2, 2]
    for view, pixels in enumerate(crops.pixels):
        assert torch.equal(torch.cat([one.pixels[view] for one in parts]), pixels)
    assert torch.equal(torch.cat([one.noise for one in parts]), crops.noise)


@pytest.mark.parametrize(("parts", "likely"), [(3, 2), (4, 2), (100, 2)])
def test_parts_that_do_not_divide(parts: int, likely: int) -> None:
    with pytest.raises(CurateError) as refused:
        plan_of(accumulate=parts)
    assert str(refused.value) == (
        f"pretrain.accumulate={parts}: a worker's 4 images make no so many equal parts of two and "
        f"more; set it to {likely}"
    )
