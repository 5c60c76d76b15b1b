"""Images/s of pretraining against a bare PyTorch loop; on a GPU, against the model alone.

    python benchmarks/bench_pretraining.py [--images FOLDER] [--workers 2] [--steps 16] [--rounds 3]
    python benchmarks/bench_pretraining.py --device cuda [--images FOLDER] [--batch 512]

On CPUs: SimCLR, resnet18, 64 px, batches of 256. Ours is `curate pretrain` whole, with Ray Train,
its metrics, checkpoints and epochs; the bare loop is as many plain processes with DDP and gloo, the
same decoding, crops, augmentation, threads and precision, and nothing else. Rates are those after
the first epoch, so that start-up is in neither. Both start from the same weights and see the same
images: their losses must agree, or the run fails. Expected on 2 cores: a ratio of 0.9 or more.

On a GPU, in one process, 224 px, bf16: SimCLR on resnet50 in batches of 512, and DINO on ViT-S with
its 10 crops in batches of 128; each as it is and by torch.compile, DINO also with its crops cut on
the GPU, of images that are kept decoded. (a) the same model's forward and backward pass alone, on
views that lie on the GPU; (b) whole steps on crops that lie in pinned memory; (c) whole steps with
files decoded and cropped by loader processes. (c) / (a) should be 0.9 or more, or the rate of each
stage by itself says which is the limit. `--device cpu --trial` shows on a CPU that it runs.

Without --images, pictures of smooth noise are made: JPEGs of 96 px, or of 500 px for a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from curate import cluster
from curate.dataset.augment import Augment
from curate.dataset.crops import CropDataset, Crops, loader
from curate.dataset.decoded import Decoded, decoded_bytes, place_for
from curate.dataset.training_set import SCHEMA, Index, TrainingSet
from curate.dataset.views import crop, draw_box
from curate.dataset.wholes import WholeDataset
from curate.images import EncodedImage
from curate.methods import Batch
from curate.methods.base import of_one_size
from curate.pretraining.order import places_of
from curate.pretraining.plan import TrainingPlan, make_plan
from curate.pretraining.stage import pretrain
from curate.pretraining.trainer import Trainer
from curate.runfiles import shards
from curate.settings import ImageSettings, RunSettings
from curate.settings import load as config
from curate.sources import plan_source, read_unit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="folder of images; made where missing")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--backbone")
    parser.add_argument("--image-px", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, default=16, help="timed ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--trial", action="store_true", help="what a GPU is measured by, on a CPU")
    options = parser.parse_args()
    gpu = options.device == "cuda" or options.trial
    options.backbone = options.backbone or ("resnet50" if gpu else "resnet18")
    options.image_px = options.image_px or (224 if gpu else 64)
    options.batch = options.batch or (16 if options.trial else 512 if gpu else 256)
    with tempfile.TemporaryDirectory() as scratch:
        if not options.images:
            options.images = f"{scratch}/images"
            write_pictures(Path(options.images), 2 * options.batch, 500 if gpu else 96)
        return on_gpu(options, scratch) if gpu else on_cpu(options, scratch)


def write_pictures(root: Path, images: int, side: int) -> None:
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(root / f"{number:05d}.jpg")


def settings_of(
    options: argparse.Namespace, output: str, epochs: int, limit: int, **training: Any
) -> RunSettings:
    """`limit` images: so many whole batches make an epoch."""
    source = {"kind": "image_folder", "path": options.images}
    return config.parse(
        {
            "target": {**source, "limit": limit},
            "open": [{"name": "none", **source}],
            "encoder": {"backbone": options.backbone, "image_px": options.image_px},
            "output": output,
            "pretrain": {
                **{"method": "simclr", "preset": "simcore", "data": ["target"]},
                **{"epochs": epochs, "batch_size": options.batch, "precision": options.precision},
                "resources": {"workers": options.workers, "use_gpu": False},
                **training,
            },
        },
        "benchmark",
    )


# CPU: the whole against a bare loop


def on_cpu(options: argparse.Namespace, scratch: str) -> int:
    available = sum(1 for _ in Path(options.images).rglob("*.*"))
    batches = min(4, available // options.batch)
    epochs = 1 + -(-options.steps // batches)
    cluster.connect()
    ratios = []
    for number in range(options.rounds):
        output = f"{scratch}/round{number}"
        settings = settings_of(options, output, epochs, batches * options.batch)
        assert settings.pretrain is not None
        pretrain(settings)
        text = Path(output, "pretrain", "metrics.jsonl").read_text()
        records = [json.loads(line) for line in text.splitlines()]
        first, last = records[0], records[-1]
        images = (last["step"] - first["step"]) * options.batch
        ours = images / (last["seconds"] - first["seconds"])
        plan = make_plan(
            settings.pretrain,
            settings.encoder,
            images=batches * options.batch,
            open_images=0,
            workers=options.workers,
            section="benchmark",
        )
        bare, loss = bare_loop(plan, f"{output}/pretrain/data", options.workers, scratch)
        if not np.isclose(loss, last["loss"], rtol=2e-3):
            print(f"losses differ: ours {last['loss']}, bare loop {loss}")
            return 1
        ratios.append(ours / bare)
        print(
            f"round {number}: ours {ours:.1f} images/s, bare loop {bare:.1f}, "
            f"ratio {ours / bare:.3f}; loss {last['loss']:.4f} and {loss:.4f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.3f} (aim 0.9)")
    return 0


def bare_loop(plan: TrainingPlan, data: str, workers: int, scratch: str) -> tuple[float, float]:
    """→ images/s after the first epoch, and the last epoch's mean loss over the workers."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        threads = max(1, (os.cpu_count() or 1) // workers)
        mp.spawn(bare_worker, (workers, threads, plan, data, folder), nprocs=workers)
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(workers)]
    return found[0]["rate"], statistics.mean(worker["loss"] for worker in found)


def bare_worker(
    rank: int, workers: int, threads: int, plan: TrainingPlan, data: str, folder: str
) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers
    )
    built = Trainer(plan, torch.device("cpu"))  # for the same first weights
    model = DistributedDataParallel(built.method, broadcast_buffers=False)
    peak = plan.recipe.optimizer.learning_rate
    optimizer = torch.optim.SGD(
        model.parameters(), lr=peak, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, plan.steps, eta_min=peak * 1e-3
    )
    augment = Augment(built.mean, built.std, torch.device("cpu"), plan.image_px)
    dataset = CropDataset(TrainingSet(data), built.shapes, ImageSettings(), plan.seed, 0)
    places = places_of(plan, 0, rank, workers)
    started, losses = 0.0, []
    for step, crops in enumerate(loader(dataset, places, 0, False)):
        if step == plan.steps_per_epoch:
            started, losses = time.monotonic(), []
        elif step and step % plan.steps_per_epoch == 0:
            losses = []
        views = augment(torch.cat(crops.pixels), torch.cat(crops.parameters)).chunk(2)
        batch = Batch(list(views), crops.ids, crops.labels, crops.noise)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bf16"):
            loss, _ = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    rate = (plan.steps - plan.steps_per_epoch) * plan.batch_size / (time.monotonic() - started)
    result = {"rate": rate, "loss": statistics.mean(losses)}
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


# GPU: the whole against the model alone, and what limits it


@dataclass(frozen=True)
class Case:
    name: str
    backbone: str
    batch: int
    training: dict[str, Any]
    compiled: bool = False
    on_device: bool = False  # crops


def cases(options: argparse.Namespace) -> list[Case]:
    simclr = Case("SimCLR", options.backbone, options.batch, {})
    small = "vit_tiny_patch16_224" if options.trial else "vit_small_patch16_224"
    dino = Case("DINO", small, max(8, options.batch // 4), {"method": "dino", "preset": "paper"})
    return [
        *(simclr, replace(simclr, compiled=True)),
        *(dino, replace(dino, compiled=True), replace(dino, compiled=True, on_device=True)),
    ]


def on_gpu(options: argparse.Namespace, scratch: str) -> int:
    """One process: the same trainer and loader that Ray Train's workers run."""
    cluster.connect()  # images are listed by its tasks
    options.workers = 1
    settings = settings_of(options, scratch, 1, 1 << 30)
    rows = [
        {"source": "target", "key": item.key, "image": item.data}
        for unit in plan_source(settings.target, 1000, f"{scratch}/plan")
        for item in read_unit(settings.target, unit, settings.images.max_bytes)
    ]
    shards.write_arrow(f"{scratch}/data/part.arrow", pa.Table.from_pylist(rows, SCHEMA))
    Index({}, [("part.arrow", len(rows))], len(rows), 0, 0, "").write(f"{scratch}/data")
    for case in cases(options):
        measure(case, options, scratch)
    return 0


def measure(case: Case, options: argparse.Namespace, scratch: str) -> None:
    images = TrainingSet(f"{scratch}/data")
    settings = settings_of(options, scratch, 1000, 1 << 30, batch_size=case.batch, **case.training)
    assert settings.pretrain is not None
    plan = make_plan(
        settings.pretrain.model_copy(update={"precision": "bf16", "backbone": case.backbone}),
        settings.encoder,
        images=len(images),
        open_images=0,
        workers=1,
        section="benchmark",
    )
    device = torch.device(options.device)
    trainer = Trainer(plan, device, compiled=case.compiled)
    kept = None
    if case.on_device:
        room = decoded_bytes(images, ImageSettings())
        kept = Decoded(
            place_for(f"curate-bench-{os.getpid()}", room), len(images), room, ImageSettings()
        )
    kind = WholeDataset if case.on_device else CropDataset
    noise = trainer.method.noise
    dataset = kind(images, trainer.shapes, ImageSettings(), plan.seed, noise, kept)
    if kept is not None:  # as after the first epoch
        dataset.__getitems__([(0, place) for place in range(len(images))])
    processes = max(1, (os.cpu_count() or 2) - 1)
    crops = dataset.__getitems__(next(places_of(plan, 0, 0, 1)))
    if pinned := device.type == "cuda":
        crops = crops.pin_memory()
    alone = model_alone(trainer, crops, options.steps)
    cropped = timed(lambda: trainer.step(crops), options.steps, plan.batch_size)
    feeding = iter(loader(dataset, places_of(plan, 0, 0, 1), processes, pinned))
    decoded_ahead = 4 * processes  # batches, which would flatter what is timed
    for _ in range(decoded_ahead):
        trainer.step(next(feeding))
    whole = timed(lambda: trainer.step(next(feeding)), options.steps, plan.batch_size)
    for _ in range(decoded_ahead):
        next(feeding)
    loading = timed(lambda: next(feeding), options.steps, plan.batch_size)
    how = ", compiled" * case.compiled + ", crops cut on the device" * case.on_device
    print(f"{case.name} on {case.backbone}, {plan.image_px} px, batches of {plan.batch_size}{how}")
    print(f"  (a) model alone, forward and backward      {alone:9,.0f} images/s")
    print(f"  (b) whole steps, crops in pinned memory    {cropped:9,.0f} images/s")
    print(f"  (c) whole steps from files, {processes:2d} processes   {whole:9,.0f} images/s")
    stages = {"decode and crop": loading, "model": cropped}
    stages["transfer"] = timed(lambda: moved(crops, device), options.steps, plan.batch_size)
    stages |= {} if case.on_device else decode_or_crop(dataset, processes)
    for stage, rate in sorted(stages.items(), key=lambda stage: stage[1]):
        print(f"      {stage:40s}{rate:9,.0f} images/s")
    print(f"  (c) / (a) = {whole / alone:.3f} (aim 0.9); the limit: ", end="")
    print(min(("decode and crop", "transfer", "model"), key=stages.__getitem__), flush=True)


def model_alone(trainer: Trainer, crops: Crops, steps: int) -> float:
    """By views of one size in one go, as the methods do."""
    batch = trainer.batch(crops)
    runs = [torch.cat(batch.views[run]) for run in of_one_size(batch.views)]

    def forward_and_backward() -> None:
        with torch.autocast(trainer.device.type, torch.bfloat16):
            features = [trainer.method.backbone(images) for images in runs]
        torch.cat(features).float().mean().backward()
        trainer.method.zero_grad(set_to_none=True)

    return timed(forward_and_backward, steps, len(batch.ids))


def moved(crops: Crops, device: torch.device) -> None:
    for pixels in crops.pixels:
        pixels.to(device, non_blocking=True)


def decode_or_crop(dataset: CropDataset, processes: int) -> dict[str, float]:
    """One process's rates by themselves, times the processes."""

    places = range(min(64, len(dataset)))
    rng = np.random.default_rng(0)
    pictures = []

    def decode_all() -> None:
        pictures[:] = [
            EncodedImage(dataset.images.image(place), dataset.limits).decode() for place in places
        ]

    def crop_all() -> None:
        for picture in pictures:
            rgb = np.asarray(picture)
            for shape in dataset.views:
                crop(rgb, draw_box(rng, shape.view, *picture.size), shape)

    decoding = timed(decode_all, 3, len(places)) * processes
    cropping = timed(crop_all, 3, len(places)) * processes
    return {"  decoding alone, whole images": decoding, "  cropping alone": cropping}


def timed(what: Any, times: int, images: int) -> float:
    """images/s of calls after two that warm up."""
    for _ in range(2):
        what()
    wait()
    start = time.monotonic()
    for _ in range(times):
        what()
    wait()
    return times * images / (time.monotonic() - start)


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
