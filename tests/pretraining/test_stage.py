"""Pretraining as a user runs it: one config, workers that die, and what comes out of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from curate.embedding import encoders
from curate.errors import CurateError
from curate.pipeline import run
from curate.pretraining import checkpoints
from curate.pretraining.plan import make_plan
from curate.pretraining.stage import pretrain
from curate.pretraining.trainer import Trainer
from curate.runfiles.status import Status
from curate.settings import EncoderSettings, TrainingSettings
from curate.settings import load as config
from tests import datasets

ROOT = Path(__file__).resolve().parents[2]
TWO_CPU_WORKERS = {"workers": 2, "use_gpu": False}


def document_of(root: Path, **training: Any) -> dict[str, Any]:
    """A small target of 24 images in two classes, one open set, and a few epochs on them."""
    datasets.write_folder(root / "target", range(24))
    datasets.write_folder(root / "open", range(100, 140))
    return {
        "target": {"kind": "image_folder", "path": str(root / "target")},
        "open": [{"name": "folder", "kind": "image_folder", "path": str(root / "open")}],
        "encoder": {"backbone": "resnet18", "image_px": 32, "crop_fraction": 1.0},
        "coreset": {"clusters": 4, "tau": None, "budget": 12},
        "output": str(root / "run"),
        "pretrain": {
            **{"method": "simclr", "preset": "simcore", "data": ["target"]},
            **{"epochs": 4, "batch_size": 8, "resources": TWO_CPU_WORKERS},
            **training,
        },
    }


def parsed(document: dict[str, Any], **changes: Any):
    return config.parse({**document, **changes}, "test")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "encoder.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture(scope="module")
def full(tmp_path_factory, ray_session) -> tuple[dict[str, Any], dict[str, Any]]:
    """The algorithm whole: train on X, embed, select, train anew on X ∪ I. Config and summary."""
    root = tmp_path_factory.mktemp("full")
    labelled = {"kind": "image_folder", "path": str(root / "target")}
    probe = {"train": labelled, "test": labelled, "every": 2, "k": 1}
    document = document_of(root, data=["target", "coreset"], probe=probe)
    own = {"epochs": 2, "batch_size": 8, "optimizer": {"learning_rate": 0.01}}
    sampled = {"data": {"target": 0.7, "open": 0.3}, "open_sample": 10}
    document["encoder"]["pretrain"] = {**own, **sampled, "resources": TWO_CPU_WORKERS}
    return document, run(parsed(document), fresh=True)


def test_one_config_runs_the_whole_algorithm(full) -> None:
    document, summary = full
    output = Path(document["output"])
    assert summary.outcome.selected == 12
    trained = summary.pretrain
    assert (trained.images, trained.open_images) == (24 + 12, 12)
    assert trained.steps == 4 * (36 // 8)
    assert json.loads((output / "summary.json").read_text()) == summary.to_json()
    # The embeddings are those of the encoder that was trained on X and a sample of U
    on_target = output / "target_encoder"
    seen = load_file(output / "encoder.safetensors")
    trained_on_x = weights(on_target)
    counters = {name for name in seen if name.endswith("num_batches_tracked")}  # never loaded
    assert all(torch.equal(seen[name], trained_on_x[name]) for name in seen.keys() - counters)
    # and the final one was started afresh, on other images
    assert not same(weights(output / "pretrain"), weights(on_target))
    cards = [json.loads((output / f / "encoder.json").read_text()) for f in FOLDERS]
    assert cards[0]["dataset"] != cards[1]["dataset"]
    assert [card["images"] for card in cards] == [24 + 10, 36]


FOLDERS = ("target_encoder", "pretrain")


def test_training_set_holds_the_selected_images(full) -> None:
    document, _ = full
    output = Path(document["output"])
    chosen = pq.read_table(output / "coreset.parquet")["sha256"].to_pylist()
    index = json.loads((output / "pretrain" / "data" / "index.json").read_text())
    copied: list[str] = []
    for name, _ in index["parts"]:
        with (output / "pretrain" / "data" / name).open("rb") as file:
            copied += pa.ipc.open_file(file).read_all()["sha256"].to_pylist()
    assert len(copied) == 36
    assert set(copied[24:]) == set(chosen)


def test_encoder_loads_into_plain_timm_and_back_as_an_encoder(full) -> None:
    document, _ = full
    folder = Path(document["output"]) / "pretrain"
    card = json.loads((folder / "encoder.json").read_text())
    model = timm.create_model(card["backbone"], num_classes=0)
    model.load_state_dict(weights(folder), strict=True)
    model.eval()
    settings = EncoderSettings(backbone="resnet18", image_px=32, checkpoint=str(folder))
    encoder = encoders.build(settings)
    assert encoder.feature_dim == card["feature_dim"] == 512
    assert card["image_px"] == 32 and card["method"] == "simclr"
    images = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model(images), encoder.module(images))
    with pytest.raises(CurateError, match=r"encoder.backbone=resnet50: .* says resnet18"):
        encoders.build(settings.model_copy(update={"backbone": "resnet50"}))


def test_people_can_watch(full) -> None:
    document, summary = full
    folder = Path(document["output"]) / "pretrain"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert all(np.isfinite(record["loss"]) for record in records)
    assert all(record["embedding_std"] > 0.1 for record in records)
    # The probe's test images are its training images, and k = 1: each is its own neighbour
    assert [record.get("knn") for record in records] == [None, 1.0, None, 1.0]
    assert summary.pretrain.knn == 1.0
    assert list((folder / "tensorboard").glob("events.*"))
    rates = [record["learning_rate"] for record in records]
    assert rates == sorted(rates, reverse=True)


def test_a_finished_training_is_not_repeated(full, caplog) -> None:
    document, _ = full
    encoder = Path(document["output"]) / "pretrain" / "encoder.safetensors"
    written = encoder.stat().st_mtime_ns
    with caplog.at_level("INFO"):
        summary = run(parsed(document))
    assert encoder.stat().st_mtime_ns == written
    assert "pretrain: done before" in caplog.text
    assert summary.pretrain.images == 36


def test_another_training_in_the_same_place_is_refused(full) -> None:
    document, _ = full
    for change, key in (
        ({"method": "byol"}, "training.method was simclr, is byol"),
        ({"epochs": 5}, "training.recipe.epochs was 4, is 5"),
        ({"data": ["target"]}, "data.coreset was .*, is absent"),
    ):
        changed = {**document, "pretrain": {**document["pretrain"], **change}}
        with pytest.raises(CurateError, match=key) as refused:
            pretrain(parsed(changed))
        assert "`curate pretrain … --fresh`" in str(refused.value)
    wider = {**document, "encoder": {"backbone": "resnet50", "image_px": 32}}
    with pytest.raises(CurateError, match=r"training.backbone was resnet18, is resnet50"):
        pretrain(parsed(wider))


def test_begins_from_what_a_run_has_pretrained(full, tmp_path) -> None:
    earlier = Path(full[0]["output"])
    still = {"learning_rate": 1e-12, "weight_decay": 0}  # what comes out is what went in
    document = document_of(tmp_path, init=str(earlier), epochs=None, steps=1, optimizer=still)
    assert pretrain(parsed(document)).init == str(earlier)
    output = tmp_path / "run" / "pretrain"
    begun, found = weights(earlier / "pretrain"), load_file(output / "init.safetensors")
    ended = weights(output)
    for name, weight in begun.items():
        if not name.endswith(("num_batches_tracked", "running_mean", "running_var")):
            assert torch.equal(found[name], weight), name
            assert torch.allclose(ended[name], weight, atol=1e-9), name
    assert json.loads((output / "encoder.json").read_text())["init"] == str(earlier)
    document["pretrain"]["init"] = {"weights": str(earlier / "target_encoder")}
    with pytest.raises(CurateError, match=r"training\.begins\.weights was \w+, is "):
        pretrain(parsed(document))


def test_checkpoint_of_another_architecture_is_refused() -> None:
    def trainer(backbone: str) -> Trainer:
        settings = TrainingSettings(method="simclr", batch_size=4, backbone=backbone)
        encoder = EncoderSettings(image_px=32)
        plan = make_plan(settings, encoder, images=8, open_images=0, workers=1, section="pretrain")
        return Trainer(plan, torch.device("cpu"))

    state = trainer("resnet18").state()
    with pytest.raises(CurateError, match=r"of simclr on resnet18, not of simclr on resnet50"):
        trainer("resnet50").load(state)


# Death and resumption

INTERRUPTED = {"epochs": 10, "checkpoints": {"every": 4, "keep": 100}}  # 3 steps an epoch


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_session) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("undisturbed")
    document = document_of(root, **INTERRUPTED)
    pretrain(parsed(document))
    status = Status.read(document["output"])
    assert (status.state, [*status.seconds]) == ("finished", ["pretrain"])
    assert status.progress is not None
    assert (status.progress.done, status.progress.total, status.progress.unit) == (30, 30, "step")
    return Path(document["output"]) / "pretrain", document


def steps_saved(folder: Path) -> list[int]:
    return sorted(int(p.stem.partition("-")[2]) for p in folder.glob("checkpoints/step-*.pt"))


def ends_alike(a: Path, b: Path) -> None:
    """The same weights to the bit: of the encoder, and of all that a checkpoint holds."""
    assert same(weights(a), weights(b))
    states = [checkpoints.newest(str(folder / "checkpoints")) for folder in (a, b)]
    assert states[0] is not None and states[1] is not None
    assert same(states[0]["method"], states[1]["method"])
    assert states[0]["step"] == states[1]["step"] == 30
    losses = [[record["loss"] for record in state["records"]] for state in states]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_killed_worker_changes_nothing(undisturbed, tmp_path) -> None:
    folder, document = undisturbed
    changed = {**document, "output": str(tmp_path / "run")}
    killed: list[int] = []

    def kill_one() -> None:
        """Once a checkpoint is there, and training has gone on beyond it."""
        here = tmp_path / "run" / "pretrain"
        while not steps_saved(here):
            time.sleep(0.02)
        time.sleep(0.1)
        for process in psutil.process_iter(["cmdline"]):
            title = " ".join(process.info["cmdline"] or [])
            if "RayTrainWorker" in title and os.getpid() in {p.pid for p in process.parents()}:
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)
                return

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    pretrain(parsed(changed))
    thread.join(10)
    assert killed
    ends_alike(tmp_path / "run" / "pretrain", folder)


@pytest.mark.slow
def test_killed_driver_goes_on_when_run_again(undisturbed, tmp_path) -> None:
    folder, document = undisturbed
    changed = {**document, "output": str(tmp_path / "run")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(changed))
    here = tmp_path / "run" / "pretrain"
    process = subprocess.Popen(
        [sys.executable, "-m", "curate.cli", "pretrain", str(tmp_path / "run.yaml")],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 180
        while not steps_saved(here):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    saved = steps_saved(here)
    assert saved and saved[-1] < 30
    assert not (here / "encoder.json").exists()
    pretrain(parsed(changed))
    ends_alike(here, folder)


# What cannot be

OTHER = "memory://begin/resnet18.safetensors"
VIT = "memory://begin/vit.safetensors"  # at 32 px
DISTILL = {"method": "distill", "preset": None}
BAD = [
    ({"backbone": "resnet19"}, r"pretrain\.backbone=resnet19: .*Tested here: resnet18, resnet50"),
    ({"batch_size": 9}, r"pretrain\.batch_size=9: not divisible by 2 workers; set it to"),
    (
        {"backbone": "vit_tiny_patch16_224", "image_px": 40},
        r"pretrain\.image_px=40: vit_tiny_patch16_224 cannot take it: .*patches of 16 px",
    ),
    ({"method": "mae", "preset": None}, r"pretrain\.backbone=resnet18: mae needs a vision"),
    (
        {"resources": {"workers": 1000, "use_gpu": False}, "batch_size": 2000},
        r"pretrain\.resources\.workers=1000: the cluster has",
    ),
    ({"data": ["target", "coreset"]}, r"coreset\.parquet: no such manifest; run `curate run`"),
    ({"init": "no/such.pt"}, r"^pretrain\.init\.weights=no/such\.pt: no such file$"),
    (
        {"init": OTHER, "backbone": "resnet50"},
        r"pretrain\.init\.weights=.*: not a resnet50: lacks \d+ weights, first layer1.0.conv3",
    ),
    (
        {"init": {"weights": OTHER, "lora_rank": 4}},
        r"^pretrain\.init\.lora_rank=4: this backbone's blocks have no linear layers",
    ),
    (
        {**DISTILL, "teacher": {"weights": OTHER}},
        r"^pretrain\.teacher\.weights=.*: has no encoder\.json .*; set pretrain\.teacher\.back",
    ),
    (
        {**DISTILL, "teacher": {"backbone": "test_vit", "weights": VIT, "image_px": 64}},
        r"^pretrain\.teacher\.weights=.*: pos_embed is .*; set pretrain\.teacher\.backbone and",
    ),
    ({"small_stem": True, "backbone": "vit_tiny_patch16_224"}, r"pretrain\.small_stem=true: for"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_told_at_once(tmp_path, ray_session, change, message) -> None:
    for backbone, place in (("resnet18", OTHER), ("test_vit", VIT)):
        encoders.build(EncoderSettings(backbone=backbone, image_px=32)).save(place)
    document = document_of(tmp_path, **change)
    with pytest.raises(CurateError, match=message) as raised:
        pretrain(parsed(document))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_rate_too_high_is_told(tmp_path, ray_session) -> None:
    document = document_of(tmp_path, optimizer={"learning_rate": 1e30})
    with pytest.raises(CurateError, match=r"pretrain\.optimizer\.learning_rate=1e\+30: the loss"):
        pretrain(parsed(document))


@pytest.mark.skipif(torch.cuda.is_available(), reason="here training takes the GPU")
def test_a_gpu_that_no_machine_has(tmp_path, ray_session) -> None:
    document = document_of(tmp_path, resources={"use_gpu": True})
    with pytest.raises(CurateError) as raised:
        pretrain(parsed(document))
    assert str(raised.value) == (
        "pretrain.resources.use_gpu=true: the cluster has no GPU yet; set "
        "pretrain.resources.workers to how many it should scale up to"
    )


def test_command_line_says_it_in_one_line(tmp_path) -> None:
    document = document_of(tmp_path, method="simcrl")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [sys.executable, "jobs/pretrain.py", "--config", str(tmp_path / "run.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("curate: ") and done.stderr.count("\n") == 1
    assert "pretrain.method=simcrl" in done.stderr and "'simclr', 'moco'" in done.stderr


@pytest.mark.slow
def test_probe_without_labels_is_told_before_training(tmp_path, ray_session) -> None:
    labelled = {"kind": "image_folder", "path": str(tmp_path / "target")}
    bare = {"kind": "image_folder", "path": str(tmp_path / "target" / "a" / "deeper")}
    document = document_of(tmp_path, probe={"train": labelled, "test": bare})
    with pytest.raises(CurateError, match=r"probe\.test: no image has a label"):
        pretrain(parsed(document))
    assert not (tmp_path / "run" / "pretrain" / "checkpoints").exists()


@pytest.mark.slow
def test_too_many_unreadable_images_stop_the_training(tmp_path, ray_session) -> None:
    """What is copied is not decoded, so that it shows only in training."""
    document = document_of(tmp_path)
    for number in range(6):
        (tmp_path / "target" / "a" / f"page{number}.jpg").write_bytes(b"<html>404</html>")
    message = r"pretrain\.max_unreadable_fraction=0\.01: \d of 30 images cannot be decoded"
    with pytest.raises(CurateError, match=message):
        pretrain(parsed(document))
    document["pretrain"]["max_unreadable_fraction"] = 0.5
    summary = pretrain(parsed(document), fresh=True)
    assert 0 < summary.unreadable <= 6
