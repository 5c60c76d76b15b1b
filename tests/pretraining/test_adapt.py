"""Trainings that begin from weights: the same features first, and then only what is to move."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from curate.embedding.backbones import build_backbone
from curate.errors import CurateError
from curate.pretraining.adapt import Beginning, LowRank
from curate.pretraining.plan import TrainingPlan
from curate.pretraining.trainer import Trainer
from tests.pretraining.test_trainer import crops_of, plan_of

PX = 32
SGD = {"name": "sgd", "learning_rate": 0.1, "weight_decay": 0, "momentum": 0}

HOW = {
    "all": {},
    "decayed": {"layer_decay": 0.5},
    "last": {"trained_blocks": 2},
    "lora": {"lora_rank": 4, "lora_alpha": 8},
    "lora-last": {"trained_blocks": 3, "lora_rank": 4},
}
CASES = [
    *(("simclr", "test_vit", how) for how in HOW),
    *(("simclr", "test_resnet", how) for how in ("all", "decayed", "last")),
    ("byol", "test_resnet", "last"),
    ("mae", "test_vit", "lora"),
]


def weights_of(backbone: str) -> dict[str, Tensor]:
    """Other ones than a training's seed would make."""
    return build_backbone(backbone, PX, seed=17).module.state_dict()


def planned(method: str, backbone: str, how: dict[str, Any], **changes: Any) -> TrainingPlan:
    changes = {"options": {"projection_dim": 8}} | changes if method == "byol" else changes
    plan = plan_of(PX, method=method, backbone=backbone, optimizer=SGD, **changes)
    return TrainingPlan(**{**vars(plan), "begins": Beginning("sha", **how)})


def begun(method: str, backbone: str, how: str, **changes: Any) -> Trainer:
    plan = planned(method, backbone, HOW[how], **changes)
    return Trainer(plan, torch.device("cpu"), weights=weights_of(backbone))


def plain(backbone: str, state: dict[str, Tensor]) -> nn.Module:
    module = timm.create_model(
        backbone, num_classes=0, **({"img_size": PX} if "vit" in backbone else {})
    )
    module.load_state_dict(state)
    return module.eval()


@torch.no_grad()
def features(module: nn.Module) -> Tensor:
    images = torch.randn(6, 3, PX, PX, generator=torch.Generator().manual_seed(0))
    return module.eval()(images)


@pytest.mark.parametrize(("method", "backbone", "how"), CASES)
def test_it_begins_as_it_was_and_ends_as_timms(method: str, backbone: str, how: str) -> None:
    first = features(plain(backbone, weights_of(backbone)))
    trainer = begun(method, backbone, how)
    training = trainer.method.backbone.training
    assert torch.allclose(features(trainer.method.encoder()), first, atol=1e-6)
    trainer.method.backbone.train(training)
    for step in range(3):
        loss, _, _ = trainer.step(crops_of(trainer, step))
        assert torch.isfinite(loss)
    trained = features(trainer.method.encoder())
    assert (trained - first).abs().max() > 1e-4
    # What is kept is the plain architecture, and the adapters are in it
    kept = trainer.encoder_state()
    assert torch.allclose(features(plain(backbone, kept)), trained, atol=1e-5)


@pytest.mark.parametrize(("method", "backbone", "how"), CASES)
def test_what_is_frozen_stays_and_the_rest_moves(method: str, backbone: str, how: str) -> None:
    before = weights_of(backbone)
    trainer = begun(method, backbone, how)
    for step in range(3):
        trainer.step(crops_of(trainer, step))
    after = trainer.encoder_state()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in after if is_trained(name, backbone, how, method)}


def is_trained(name: str, backbone: str, how: str, method: str) -> bool:
    """By the names of timm's test networks, which have 6 blocks and 4."""
    if name.endswith("num_batches_tracked"):
        return how != "last" or not name.startswith(("conv", "bn", "layer1", "layer2"))
    if name == "pos_embed" and method == "mae":
        return False
    last = "last" in how
    if backbone == "test_resnet":
        return not last or name.startswith(("layer3", "layer4"))
    head, _, rest = name.partition(".")
    block = int(rest.partition(".")[0]) if head == "blocks" else 6 if head == "norm" else -1
    if "lora" in how:
        linear = any(part in name for part in ("attn.qkv.", "attn.proj.", "mlp.fc1.", "mlp.fc2."))
        return linear and name.endswith("weight") and block >= (3 if last else 0)
    return not last or block >= 4


def test_blocks_learn_at_rates_of_their_own() -> None:
    """Of SGD's step from the same gradients: all by its rate, times ½ for each block behind."""
    trainer = begun("simclr", "test_vit", "decayed")
    crops = crops_of(trainer)
    before = {n: w.detach().clone() for n, w in trainer.method.named_parameters()}
    trainer.step(crops)
    for name, weight in trainer.method.named_parameters():
        parts = name.split(".")
        behind = 0
        if parts[0] == "backbone":
            behind = {"blocks": 5 - int(parts[2]) if parts[1] == "blocks" else 0, "norm": 0}.get(
                parts[1], 6
            )
        if weight.grad is None:
            continue
        wanted = before[name] - 0.1 * 0.5**behind * weight.grad
        assert torch.allclose(weight, wanted, atol=1e-6), name


def test_frozen_layers_need_no_gradient() -> None:
    trainer = begun("simclr", "test_vit", "last")
    trainer.step(crops_of(trainer))
    grown = {n for n, w in trainer.method.backbone.named_parameters() if w.grad is not None}
    assert grown and not any(n.startswith(("patch", "pos", "cls", "blocks.0")) for n in grown)


@pytest.mark.parametrize("how", ["lora-last", "last"])
def test_gone_on_with_it_ends_alike(how: str) -> None:
    whole = begun("simclr", "test_vit", how)
    for step in range(4):
        whole.step(crops_of(whole, step))
    first = begun("simclr", "test_vit", how)
    for step in range(2):
        first.step(crops_of(first, step))
    state = first.state()
    second = Trainer(first.plan, torch.device("cpu"), weights=weights_of("test_vit"))
    second.load(state)
    for step in range(2, 4):
        second.step(crops_of(second, step))
    a, b = whole.method.state_dict(), second.method.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_adapters_are_few() -> None:
    trainer = begun("simclr", "test_vit", "lora")
    adapters = [part for part in trainer.method.backbone.modules() if isinstance(part, LowRank)]
    assert len(adapters) == 6 * 4  # qkv, projection, and two of the MLP in each block
    trained = [w for w in trainer.method.backbone.parameters() if w.requires_grad]
    assert len(trained) == 2 * len(adapters)


@pytest.mark.parametrize(
    ("backbone", "how", "message"),
    [
        (
            "test_resnet",
            {"lora_rank": 4},
            "pretrain.init.lora_rank=4: this backbone's blocks have no linear layers to adapt; "
            "set trained_blocks in its place",
        ),
        (
            "test_vit",
            {"trained_blocks": 7},
            "pretrain.init.trained_blocks=7: this backbone has 6",
        ),
    ],
)
def test_what_cannot_be(backbone: str, how: dict[str, Any], message: str) -> None:
    with pytest.raises(CurateError) as refused:
        Trainer(planned("simclr", backbone, how), torch.device("cpu"))
    assert str(refused.value) == message
