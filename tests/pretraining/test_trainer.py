"""One rank of a training, without Ray: every backbone, precision, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate.dataset.crops import Crops
from curate.dataset.views import draw_parameters
from curate.embedding.backbones import TESTED
from curate.errors import CurateError
from curate.pretraining.plan import TrainingPlan, make_plan
from curate.pretraining.trainer import Trainer, deviation
from curate.settings import EncoderSettings, TrainingSettings

IMAGES = 4


def plan_of(image_px: int = 32, **changes: Any) -> TrainingPlan:
    changes = {"method": "simclr", "batch_size": IMAGES, "epochs": 2} | changes
    changes["optimizer"] = {"warmup_epochs": 0} | changes.get("optimizer", {})
    return make_plan(
        TrainingSettings(**changes),
        EncoderSettings(backbone="resnet18", image_px=image_px),
        images=2 * IMAGES,
        open_images=0,
        workers=1,
        section="pretrain",
    )


def trainer_of(plan: TrainingPlan) -> Trainer:
    return Trainer(plan, torch.device("cpu"))


def crops_of(trainer: Trainer, seed: int = 0) -> Crops:
    """Noise in the views that the trainer's method wants."""
    rng = np.random.default_rng(seed)
    views = [shape for shape in trainer.shapes for _ in range(shape.view.count)]
    pixels = [rng.integers(0, 256, (IMAGES, s.px, s.px, 3), dtype=np.uint8) for s in views]
    parameters = [np.stack([draw_parameters(rng, s.view) for _ in range(IMAGES)]) for s in views]
    return Crops(
        [torch.from_numpy(x) for x in pixels],
        [torch.from_numpy(x) for x in parameters],
        torch.arange(IMAGES),
        torch.full((IMAGES,), -1),
        torch.from_numpy(rng.random((IMAGES, trainer.method.noise), np.float32)),
        [],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
def test_every_backbone_trains(name: str) -> None:
    trainer = trainer_of(plan_of(backbone=name, optimizer={"name": "sgd", "learning_rate": 0.1}))
    before = {n: w.detach().clone() for n, w in trainer.method.backbone.named_parameters()}
    loss, spread, rate = trainer.step(crops_of(trainer))
    assert torch.isfinite(loss) and torch.isfinite(spread) and rate == 0.1
    trainer.step(crops_of(trainer, 1))  # a ResNet's blocks begin as identities, and pass nothing on
    moved = [n for n, w in trainer.method.backbone.named_parameters() if (w != before[n]).any()]
    assert len(moved) > 0.9 * len(before)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_small_stem_trains(name: str) -> None:
    trainer = trainer_of(plan_of(backbone=name, small_stem=True))
    loss, _, _ = trainer.step(crops_of(trainer))
    assert torch.isfinite(loss)


def test_dino_on_a_vision_transformer_sees_small_views() -> None:
    """Its positions are interpolated; stochastic depth is the student's alone."""
    plan = plan_of(
        64,
        method="dino",
        backbone="vit_tiny_patch16_224",
        views={"local_views": 2},
        options={"projection_dim": 32, "hidden_dim": 32, "bottleneck_dim": 16},
    )
    trainer = trainer_of(plan)
    assert [shape.px for shape in trainer.shapes] == [64, 64, 32]  # 27 px, in whole patches
    rates = [
        {m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"}
        for backbone in (trainer.method.backbone, trainer.method.encoder())
    ]
    assert max(rates[0]) == pytest.approx(0.1) and rates[1] == {0.0}
    loss, _, _ = trainer.step(crops_of(trainer))
    assert torch.isfinite(loss)


def test_what_a_step_draws_depends_on_the_step_alone() -> None:
    """Stochastic depth: the same after other random numbers were drawn, as after a restart."""

    def losses(disturbed: bool) -> list[float]:
        plan = plan_of(
            method="dino",
            backbone="vit_tiny_patch16_224",
            views={"local_views": 0},
            options={"projection_dim": 32, "hidden_dim": 32, "bottleneck_dim": 16},
        )
        trainer = trainer_of(plan)
        found = []
        for step in range(3):
            if disturbed:
                torch.rand(step + 1)
            found.append(float(trainer.step(crops_of(trainer, step))[0]))
        return found

    assert losses(False) == losses(True)


HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_halves_stay_near_float32(precision: str, accumulate: int) -> None:
    """The loss, and where the weights go; fp16's gradients are scaled, and scaled back."""

    def stepped(precision: str) -> tuple[float, torch.Tensor]:
        plan = plan_of(
            backbone="test_resnet",
            precision=precision,
            accumulate=accumulate,
            optimizer={"name": "sgd", "learning_rate": 1.0, "weight_decay": 0},
        )
        trainer = trainer_of(plan)
        assert trainer.precision.half is HALVES.get(precision)
        if precision == "fp16":  # not the first one, which is tried and found too large
            trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 64.0})
        before = [w.detach().clone() for w in trainer.method.parameters()]
        loss = float(trainer.step(crops_of(trainer))[0])
        moved = [w.detach() - b for w, b in zip(trainer.method.parameters(), before, strict=True)]
        return loss, torch.cat([change.flatten() for change in moved])

    (loss, moved), (wanted_loss, wanted) = stepped(precision), stepped("float32")
    assert loss != wanted_loss and loss == pytest.approx(wanted_loss, rel=0.05)
    assert float(moved.norm()) == pytest.approx(float(wanted.norm()), rel=0.3)
    assert float(torch.cosine_similarity(moved, wanted, 0)) > 0.9


def test_a_step_that_overflows_is_left_out() -> None:
    """And the next ones are scaled less; the scale goes on from a checkpoint."""
    trainer = trainer_of(plan_of(backbone="test_resnet", precision="fp16"))
    trainer.step(crops_of(trainer))
    scale = trainer.scaler.get_scale()
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 1e38})
    before = [w.detach().clone() for w in trainer.method.backbone.parameters()]
    trainer.step(crops_of(trainer, 1))
    after = trainer.method.backbone.parameters()
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert scale < trainer.scaler.get_scale() < 1e38
    again = trainer_of(trainer.plan)
    again.load(trainer.state())
    assert again.scaler.get_scale() == trainer.scaler.get_scale()


@pytest.mark.parametrize("method", ["simclr", "mae", "dinov2"])
def test_activations_computed_again_change_nothing(method: str) -> None:
    """Stochastic depth is drawn the same again."""
    options = {"projection_dim": 16, "hidden_dim": 16, "bottleneck_dim": 8, "drop_path": 0.5}
    small = {"dinov2": {"options": options, "views": {"local_views": 2}}, "mae": {}, "simclr": {}}
    plan = plan_of(32, method=method, backbone="vit_tiny_patch16_224", **small[method])
    found = []
    for recomputed in (False, True):
        trainer = Trainer(plan, torch.device("cpu"), recomputed=recomputed)
        losses = [float(trainer.step(crops_of(trainer, step))[0]) for step in range(2)]
        found.append((losses, trainer.method.state_dict()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_compiled_stays_near(backbone: str) -> None:
    """And its weights keep their names."""
    plan = plan_of(32, backbone=backbone, optimizer={"name": "sgd", "learning_rate": 0.01})
    plain = trainer_of(plan)
    compiled = Trainer(plan, torch.device("cpu"), compiled=True)
    assert plain.method.state_dict().keys() == compiled.method.state_dict().keys()
    for step in range(2):
        losses = [float(one.step(crops_of(one, step))[0]) for one in (plain, compiled)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_gradients_are_clipped() -> None:
    """With the norm held to almost nothing, plain SGD moves the weights by almost nothing."""

    def moved(clip: float | None) -> float:
        plain = {"name": "sgd", "learning_rate": 1.0, "weight_decay": 0, "momentum": 0}
        plan = plan_of(optimizer={**plain, "clip_gradient": clip})
        trainer = trainer_of(plan)
        before = [w.detach().clone() for w in trainer.method.parameters()]
        trainer.step(crops_of(trainer))
        after = [w.detach() for w in trainer.method.parameters()]
        squares = [(a - b).square().sum() for a, b in zip(after, before, strict=True)]
        return float(torch.stack(squares).sum().sqrt())

    assert moved(None) > 1e-2
    assert moved(1e-3) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "mae", "backbone": "vit_tiny_patch16_224", "options": {"mask_ratio": 0.0}},
            "pretrain.options: mask_ratio=0.0 hides none of 4 patches",
        ),
        ({"method": "moco", "options": {"queue": 0}}, "pretrain.options: queue=0: MoCo needs"),
        (
            {"method": "mae", "backbone": "resnet18"},
            "mae needs a vision transformer, such as vit_t",
        ),
    ],
)
def test_what_a_method_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CurateError) as refused:
        trainer_of(plan_of(**changes))
    assert message in str(refused.value)


def test_deviation_of_the_sphere_and_of_a_point() -> None:
    points = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert float(deviation(points)) == pytest.approx(1, abs=0.02)
    assert float(deviation(points[:1].expand(100, -1))) == pytest.approx(0, abs=1e-6)


def one_of_two(rank: int, folder: str) -> None:
    """A step on images of its own; what its BatchNorm has seen goes to the folder."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    init = f"file://{folder}/init"
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    trainer = trainer_of(plan_of(backbone="test_resnet"))
    trainer.step(crops_of(trainer, seed=rank))
    trainer.step(crops_of(trainer, seed=rank))
    torch.save(trainer.method.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_share_weights_and_not_averages(tmp_path: Path) -> None:
    """And without a warning of torch's."""
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    apart = {name for name, value in one.items() if not torch.equal(value, other[name])}
    assert apart and all(name.endswith(("running_mean", "running_var")) for name in apart)
