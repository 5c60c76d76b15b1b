"""Images/s of the embedding stage against a bare PyTorch loop, in one run on one machine.

    python benchmarks/bench_embedding.py --images FOLDER [--repeat-to 3200] [--rounds 3]

FOLDER is any tree of full-resolution photographs; it is repeated, by links, to 3,200 files. The
bare loop is what one would write without Ray: a DataLoader with as many workers as there are
cores, the same decoding, the same model, the same batches. Both embed with a seeded resnet18 at
224 px, first a fifth as many images and then six fifths: the rate is that of the difference, so
that start-up (workers, imports, model) is in neither, and it is printed beside them. The
embeddings of both must agree to float16, image by image, or the run fails.

Expected on 2 cores with nothing else at work: a ratio of 0.9 or more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from curate import cluster
from curate.embedding import encoders
from curate.embedding.embedder import Embedder
from curate.embedding.stage import embed
from curate.images import EncodedImage, Preprocessing
from curate.runfiles.run import Run
from curate.settings import ImageSettings, RunSettings
from curate.settings import load as config

IMAGE_PX = 224
CROP_FRACTION = 0.875
PREPROCESSING = Preprocessing(IMAGE_PX, CROP_FRACTION, (0, 0, 0), (1, 1, 1))
BATCH = 64


class Photographs(Dataset):
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        return PREPROCESSING.pixels(EncodedImage(self.paths[i].read_bytes(), ImageSettings()))


def collate(images: list[NDArray[np.uint8]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images))


def bare_loop(settings: RunSettings, paths: list[Path]) -> tuple[float, NDArray]:
    """(seconds, embeddings (N, D))."""
    begun = time.monotonic()
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    embedder = Embedder(encoders.build(settings.encoder), "cpu", BATCH)
    loader = DataLoader(Photographs(paths), BATCH, num_workers=cores, collate_fn=collate)
    rows = np.concatenate([embedder(batch.numpy()) for batch in loader])
    return time.monotonic() - begun, rows


def ours(settings: RunSettings) -> tuple[float, NDArray]:
    """(seconds with Ray already up, embeddings (N, D)) of the project's own stage."""
    begun = time.monotonic()
    encoder = encoders.build(settings.encoder)
    run = Run.begin(settings, {"device": "cpu"})
    embed(run, encoder)
    seconds = time.monotonic() - begun
    shards = [shard.uri for shard in run.embedded().open]
    tables = [pa.ipc.open_file(uri).read_all() for uri in shards]
    return seconds, np.concatenate([np.stack(t["embedding"].to_numpy()) for t in tables])


def settings_for(folder: Path, output: Path) -> RunSettings:
    source = {"kind": "image_folder", "path": str(folder)}
    return config.parse(
        {
            "target": {**source, "limit": 1},  # a run has one; it is not what is timed
            "open": [{"name": "photographs", **source}],
            "encoder": {
                "backbone": "resnet18",
                "image_px": IMAGE_PX,
                "crop_fraction": CROP_FRACTION,
            },
            "embed": {"batch_size": BATCH, "unit_images": 100},  # enough to share out
            "output": str(output),
        },
        "benchmark",
    )


def link(images: Path, folder: Path, count: int) -> list[Path]:
    """`count` links, to each image in turn, named so that they sort in this order."""
    sources = sorted(p for p in images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not sources:
        sys.exit(f"{images}: no photographs there")
    links = [folder / f"{i:05d}.jpg" for i in range(count)]
    folder.mkdir(parents=True)
    for i, path in enumerate(links):
        path.symlink_to(sources[i % len(sources)].resolve())
    return links


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--repeat-to", type=int, default=3200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.nice(19)  # Ray's workers are nicer than others: so is then the bare loop
    few, many = options.repeat_to // 5, options.repeat_to // 5 + options.repeat_to

    cluster.connect()
    ratios, rates, startups = [], {"ours": [], "bare": []}, {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory() as scratch:
        paths = {n: link(options.images, Path(scratch) / str(n), n) for n in (few, many)}
        for round_ in range(options.rounds):
            seconds: dict[tuple[str, int], float] = {}
            for n in (few, many):
                output = Path(scratch) / f"run-{round_}-{n}"
                settings = settings_for(Path(scratch) / str(n), output)
                seconds["ours", n], mine = ours(settings)
                seconds["bare", n], theirs = bare_loop(settings, paths[n])
                check(mine, theirs, n)
            for name in rates:
                # What the further images took: whatever is spent once is in both runs
                rate = (many - few) / (seconds[name, many] - seconds[name, few])
                rates[name].append(rate)
                startups[name].append(seconds[name, few] - few / rate)
            ratios.append(rates["ours"][-1] / rates["bare"][-1])
            print(
                f"round {round_ + 1}: ours {rates['ours'][-1]:.1f} images/s, "
                f"bare loop {rates['bare'][-1]:.1f} images/s, ratio {ratios[-1]:.3f}",
                flush=True,
            )
    print(f"{many - few} images of {IMAGE_PX} px, resnet18, {os.cpu_count()} cores, medians:")
    for name in rates:
        print(
            f"  {name:<5} {statistics.median(rates[name]):7.1f} images/s, "
            f"start-up {statistics.median(startups[name]):5.1f} s"
        )
    print(f"  ratio ours / bare loop {statistics.median(ratios):.3f}; embeddings agree")


def check(ours: NDArray, theirs: NDArray, n: int) -> None:
    """The same images in the same order give the same embeddings, to float16's rounding."""
    if ours.shape != theirs.shape or len(ours) != n:
        sys.exit(f"shapes differ: {ours.shape}, {theirs.shape}, {n} images")
    worst = float(np.abs(ours.astype(np.float32) - theirs.astype(np.float32)).max())
    if not worst < 2e-3:
        sys.exit(f"embeddings differ by {worst}")


if __name__ == "__main__":
    main()
