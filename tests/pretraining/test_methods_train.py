"""Every method trains: two workers of Ray Train, real photographs, a tiny budget."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.actor import ActorHandle
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file

from curate.dataset import materialise
from curate.embedding import encoders
from curate.methods import METHODS
from curate.pretraining import checkpoints
from curate.pretraining.board import Board
from curate.pretraining.job import Job
from curate.pretraining.plan import TrainingPlan, make_plan
from curate.pretraining.trainer import Trainer
from curate.pretraining.worker import work
from curate.runfiles.files import TrainingFiles
from curate.settings import CheckpointSettings, EncoderSettings, ImageSettings, TrainingSettings
from curate.settings import load as config

DATA = os.environ.get("CURATE_TEST_DATA")
IMAGES, PX = 512, 32

# Large heads made small; rates for batches of 64 and no time to warm up
SMALL: dict[str, dict[str, Any]] = {
    "simclr": {"preset": "simcore", "optimizer": {"learning_rate": 0.05}},
    "moco": {"options": {"queue": 128, "momentum": 0.99}, "optimizer": {"learning_rate": 0.1}},
    "byol": {
        "options": {"hidden_dim": 256, "projection_dim": 64},
        "optimizer": {"learning_rate": 0.2},
    },
    "simsiam": {
        "options": {"hidden_dim": 64, "projection_dim": 256},
        "optimizer": {"learning_rate": 0.05},
    },
    "swav": {
        "options": {"hidden_dim": 256, "prototypes": 50, "queue": 128, "queue_from_epoch": 2},
        "optimizer": {"learning_rate": 0.3},
        "views": {"local_views": 2},
    },
    "dino": {
        "options": {
            **{"hidden_dim": 128, "bottleneck_dim": 64, "projection_dim": 256},
            **{"center_momentum": 0.5, "momentum": 0.97, "freeze_last_layer_epochs": 0},
            "teacher_temperature": 0.07,
        },
        "optimizer": {"learning_rate": 5e-3},
        "views": {"local_views": 2},
    },
    "dinov2": {
        "options": {
            **{"hidden_dim": 128, "bottleneck_dim": 64, "projection_dim": 256, "momentum": 0.97},
            **{"freeze_last_layer_epochs": 0, "teacher_temperature": 0.07},
        },
        "optimizer": {"learning_rate": 2e-3},
        "views": {"local_views": 2},
    },
    "mae": {"options": {"decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 4}},
    "distill": {
        "teacher": {"backbone": "test_vit"},
        "options": {"queue": 128},
        "optimizer": {"learning_rate": 0.1},
    },
    "drlim": {"optimizer": {"learning_rate": 0.05}},
    "exemplar": {"optimizer": {"learning_rate": 0.05}},
}
# MoCo's loss starts low, against a queue of noise, and rises until that is full of hard negatives
EPOCHS = {"moco": 8}
SETTLED = {"moco": 4}  # epochs
# Below this, most images would have one and the same embedding; untrained networks lie above it
LEAST_DEVIATION = 0.05


# Not of the student's size, as a large model's would not be
TEACHER = EncoderSettings(backbone="test_vit", image_px=48)


def plan_of(method: str, images: int) -> TrainingPlan:
    small = {"optimizer": {"learning_rate": 1e-3}, **SMALL[method]}
    small["optimizer"] |= {"warmup_epochs": 0, "clip_gradient": 3}
    backbone = "test_vit" if METHODS[method].needs_vit else "test_resnet"
    settings = TrainingSettings(
        method=method,
        epochs=EPOCHS.get(method, 4),
        batch_size=64,
        **small,
    )
    encoder = EncoderSettings(backbone=backbone, image_px=PX)
    return make_plan(settings, encoder, images=images, open_images=0, workers=2, section="pretrain")


def one_after_the_other(jobs: list[Job], board: ActorHandle) -> None:
    """Ray Train takes seconds to start; all trainings share one start."""
    for job in jobs:
        work(job, board)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, ray_session) -> Path:
    """All methods' folders below one."""
    root = tmp_path_factory.mktemp("methods")
    folder = {"kind": "image_folder", "path": f"{DATA}/target-pets/train"}
    document = {
        "target": {**folder, "limit": IMAGES},
        "open": [{"name": "none", **folder}],
        "output": str(root),
    }
    index = materialise.training_images(
        config.parse(document, "test"), ["target"], str(root / "data")
    )
    jobs = [
        Job(
            section="pretrain",
            plan=plan_of(method, index.images),
            files=TrainingFiles(str(root / method)),
            data=str(root / "data"),
            cache_gb=None,
            limits=ImageSettings(),
            mean=None,
            std=None,
            crop_fraction=1.0,
            probe=None,
            threads=1,
            loader_workers=0,
            checkpoints=CheckpointSettings(every=1000, keep=1),
            max_unreadable_fraction=0.0,
            teacher=TEACHER if METHODS[method].needs_teacher else None,
        )
        for method in METHODS
    ]
    encoders.build(TEACHER).save(TrainingFiles(str(root / "distill")).teacher)
    board = Board.remote()
    TorchTrainer(
        partial(one_after_the_other, jobs, board),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="methods", storage_path=str(root / "ray")),
    ).fit()
    assert ray.get(board.failure.remote()) is None
    return root


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="CURATE_TEST_DATA is not set")
@pytest.mark.parametrize("method", METHODS)
def test_loss_falls_and_nothing_collapses(trained: Path, method: str) -> None:
    lines = (trained / method / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["epoch"] for record in records] == list(range(1, EPOCHS.get(method, 4) + 1))
    assert records[-1]["loss"] < records[SETTLED.get(method, 1) - 1]["loss"]
    assert min(record["embedding_std"] for record in records) > LEAST_DEVIATION


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="CURATE_TEST_DATA is not set")
@pytest.mark.parametrize("method", METHODS)
def test_checkpoint_and_encoder_round_trip(trained: Path, method: str) -> None:
    plan = plan_of(method, IMAGES)
    state = checkpoints.newest(str(trained / method / "checkpoints"))
    assert state is not None and state["step"] == plan.steps
    teacher = encoders.build(TEACHER) if METHODS[method].needs_teacher else None
    trainer = Trainer(plan, torch.device("cpu"), teacher=teacher)
    fresh = {name: value.clone() for name, value in trainer.method.state_dict().items()}
    assert any(not torch.equal(value, state["method"][name]) for name, value in fresh.items())
    trainer.load(state)
    again = trainer.state()
    assert again["step"] == state["step"]
    assert all(torch.equal(v, again["method"][k]) for k, v in state["method"].items())
    before, after = state["optimizer"]["state"], again["optimizer"]["state"]
    assert before.keys() == after.keys() and len(before) > 0
    for number, tensors in before.items():
        for name, value in tensors.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after[number][name]))
    exported = load_file(trained / method / "encoder.safetensors")
    kept = trainer.method.encoder().state_dict()
    assert exported.keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in exported.items())
    loaded = encoders.build(
        EncoderSettings(backbone=plan.backbone, image_px=PX, checkpoint=str(trained / method))
    )
    weights = loaded.module.state_dict()
    counters = {name for name in weights if name.endswith("num_batches_tracked")}  # never loaded
    assert all(torch.equal(weights[name], exported[name]) for name in weights.keys() - counters)
