"""Whether a GPU is kept at work: the whole job from JPEGs against the same model fed from memory.

    python benchmarks/bench_gpu.py --images FOLDER [--count 50000] [--actors-per-gpu 1]

FOLDER is any tree of photographs; it is repeated, by links, to as many files as --count says. With
resnet50 and with ViT-L/14 at 224 px: images/s of the job (plan, read, decode, resize, embed, write)
on all the GPUs of the machine, the rate being that of further images, so that start-up is not in
it; images/s of one GPU with the same batches of pixels that lie in memory, times the GPUs; their
ratio, to be 0.9 or more; and where the seconds of readers and actors went, which says what there is
too little of. Without a GPU it runs on the CPU, to show that it runs: take --count 60.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch

from curate import cluster
from curate.embedding import encoders
from curate.embedding.embedder import Embedder
from curate.embedding.stage import embed
from curate.progress import spent
from curate.runfiles.run import Run
from curate.settings import RunSettings
from curate.settings import load as config

BACKBONES = {"resnet50": "resnet50", "ViT-L/14": "vit_large_patch14_clip_224"}
PARTS = 4  # of pixels in memory, on their way one behind the other


def settings_for(
    backbone: str, folder: Path, output: Path, options: argparse.Namespace
) -> RunSettings:
    source = {"kind": "image_folder", "path": str(folder)}
    return config.parse(
        {
            "target": {**source, "limit": 1},  # a run has one; it is not what is timed
            "open": [{"name": "photographs", **source}],
            "encoder": {"backbone": backbone},
            "embed": {
                "batch_size": options.batch,
                "unit_images": max(8, min(1000, options.count // 16)),
                "actors_per_gpu": options.actors_per_gpu,
            },
            "output": str(output),
        },
        "benchmark",
    )


def from_memory(settings: RunSettings, device: str, count: int) -> float:
    """Images/s of one device; its input is there, and its results are fetched part by part."""
    embedder = Embedder(encoders.build(settings.encoder), device, settings.embed.batch_size)
    part = min(1000, max(settings.embed.batch_size, count // PARTS))
    pixels = np.random.default_rng(0).integers(0, 256, (part, 224, 224, 3)).astype(np.uint8)
    embedder(pixels)
    begun, waiting, done = time.monotonic(), [], 0
    while done < count:
        waiting.append(embedder.start(pixels))
        if len(waiting) == PARTS:
            waiting.pop(0)()
        done += part
    for result in waiting:
        result()
    return done / (time.monotonic() - begun)


def job(settings: RunSettings, device: str) -> tuple[float, int, dict[str, float]]:
    """(seconds of embedding, images, where the seconds of readers and actors went)."""
    encoder = encoders.build(settings.encoder)
    run = Run.begin(settings, {"device": device})
    begun = time.monotonic()
    progress = embed(run, encoder)
    return time.monotonic() - begun, progress.images, dict(progress.feed)


def link(images: Path, folder: Path, count: int) -> None:
    sources = sorted(p for p in images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not sources:
        sys.exit(f"{images}: no photographs there")
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:07d}.jpg").symlink_to(sources[i % len(sources)].resolve())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--actors-per-gpu", type=int, default=1)
    options = parser.parse_args()
    cluster.connect()
    there = ray.cluster_resources()
    gpus, cores = int(there.get("GPU", 0)), int(there["CPU"])
    device = "gpu" if gpus else "cpu"
    if gpus:
        print(f"{gpus} × {torch.cuda.get_device_name()}, {cores} cores")
    else:
        print(f"NO GPU HERE: on {cores} cores, which says nothing about a GPU")
    counts = {"few": max(8, options.count // 4), "many": options.count + options.count // 4}
    with tempfile.TemporaryDirectory() as scratch:
        for name, count in counts.items():
            link(options.images, Path(scratch) / name, count)
        for title, backbone in BACKBONES.items():
            found = {}
            for name in counts:
                output = Path(scratch) / f"{backbone}-{name}"
                settings = settings_for(backbone, Path(scratch) / name, output, options)
                found[name] = job(settings, device)
            feed = found["many"][2]
            rate = (found["many"][1] - found["few"][1]) / (found["many"][0] - found["few"][0])
            torch_device = "cuda" if gpus else "cpu"
            most = from_memory(settings, torch_device, options.count) * max(1, gpus)
            print(
                f"{title}: the job {rate:.1f} images/s, fed from memory {most:.1f}, "
                f"ratio {rate / most:.3f}; {rate / cores:.1f} images/s a core",
                flush=True,
            )
            print(f"  {spent(feed)}")


if __name__ == "__main__":
    main()
