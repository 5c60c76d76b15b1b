"""What training reads of large photographs, and the shared memory that its batches take.

    python benchmarks/bench_photographs.py --images FOLDER [--count 64] [--megapixels 12]

FOLDER is any tree of photographs; --count of them are scaled up to so many megapixels. From them
training sets are made, by the job itself: as they are (`dataset.max_side: none`), and smaller, as
is usual. Then images/s of one process that decodes and crops SimCLR's two views of 224 px: of
either set, and of the smaller one once its images are kept decoded. All see the same order, and how
far their views are apart is printed: mean difference of a px, 0 … 255, and that of views of other
images, to compare with.

Then loader processes fill what they may before anything is taken: the most that /dev/shm held, with
four batches of 512 ahead for each of 15 processes, as it was, and bounded by what is free, as it
is.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from curate import cluster
from curate.dataset import materialise
from curate.dataset.crops import AHEAD, CropDataset, ahead_of, batch_bytes, loader, shared_memory
from curate.dataset.decoded import Decoded, decoded_bytes
from curate.dataset.training_set import TrainingSet
from curate.dataset.views import Shape, shapes
from curate.settings import ImageSettings, PretrainSettings, RunSettings
from curate.settings import load as config

PX = 224
LIMITS = ImageSettings()
PROCESSES, BATCH = 15, 512  # as beside a GPU


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cluster.connect()
    recipe = PretrainSettings(method="simclr").recipe
    views = shapes(recipe.views, PX, 1)
    with tempfile.TemporaryDirectory() as scratch:
        photographs = Path(scratch, "photographs")
        scaled_up(Path(options.images), photographs, options.count, options.megapixels)
        sets = {
            "as they are": made(photographs, Path(scratch, "large"), "none"),
            "smaller": made(photographs, Path(scratch, "small"), None),
        }
        decoding(sets, views, Path(scratch), options)
        in_shared_memory(sets["smaller"], views)
    return 0


def scaled_up(found: Path, folder: Path, count: int, megapixels: float) -> None:
    folder.mkdir()
    paths = sorted(path for path in found.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for number, path in enumerate(paths[:count]):
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        scale = (megapixels * 1e6 / (rgb.width * rgb.height)) ** 0.5
        size = (round(rgb.width * scale), round(rgb.height * scale))
        rgb.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg", quality=90)


def made(photographs: Path, output: Path, max_side: str | None) -> TrainingSet:
    source = {"kind": "image_folder", "path": str(photographs)}
    settings: RunSettings = config.parse(
        {
            "target": source,
            "open": [{"name": "none", **source}],
            "encoder": {"image_px": PX},
            "output": str(output),
            "pretrain": {"data": ["target"], "dataset": {"max_side": max_side}},
        },
        "benchmark",
    )
    assert settings.pretrain is not None
    side_px = settings.pretrain.side_px(PX)
    begun = time.monotonic()
    index = materialise.training_images(settings, ["target"], str(output), None, side_px)
    seconds = time.monotonic() - begun
    size = sum(path.stat().st_size for path in output.rglob("*.arrow"))
    print(
        f"made, max_side {side_px}: {index.images} images, {index.reduced} of them smaller, "
        f"{size / 1e6:.0f} MB, {index.images / seconds:.1f} images/s"
    )
    return TrainingSet(str(output))


def decoding(
    sets: dict[str, TrainingSet], views: list[Shape], scratch: Path, options: argparse.Namespace
) -> None:
    small = sets["smaller"]
    room = decoded_bytes(small, LIMITS)
    kept = Decoded(scratch / "decoded", len(small), room, LIMITS)
    readers = {
        **{name: CropDataset(images, views, LIMITS, 0, 0) for name, images in sets.items()},
        "kept decoded": CropDataset(small, views, LIMITS, 0, 0, kept),
    }
    wanted = [(0, place) for place in range(len(small))]
    first = {name: reader.__getitems__(wanted) for name, reader in readers.items()}  # fills, too
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for epoch in range(1, options.rounds + 1):
        for name, reader in readers.items():
            begun = time.monotonic()
            reader.__getitems__([(epoch, place) for _, place in wanted])
            rates[name].append(len(wanted) / (time.monotonic() - begun))
    before = statistics.median(rates["as they are"])
    whole = first["as they are"]
    others = apart(whole.pixels[0], whole.pixels[0].roll(1, 0))
    for name, found in rates.items():
        rate = statistics.median(found)
        assert torch.equal(first[name].ids, whole.ids)
        far = apart(first[name].pixels[0], whole.pixels[0])
        print(
            f"{name:14} {rate:8.1f} images/s a process, {rate / before:5.1f} times; "
            f"views {far:.1f} apart ({others:.1f} of other images)"
        )
    print(f"decoded images take {room / 1e6:.0f} MB")


def apart(some: torch.Tensor, others: torch.Tensor) -> float:
    return float((some.float() - others.float()).abs().mean())


def in_shared_memory(images: TrainingSet, views: list[Shape]) -> None:
    size = batch_bytes(views, BATCH, LIMITS)
    bounded = ahead_of(PROCESSES, size, shared_memory())
    print(f"a batch of {BATCH} is {size / 1e6:.0f} MB, {free() / 1e9:.1f} GB of /dev/shm are free")
    for name, (workers, ahead) in {"as it was": (PROCESSES, AHEAD), "bounded": bounded}.items():
        if workers * ahead * size > free():
            print(
                f"{name}: {workers} processes, {ahead} ahead: {workers * ahead * size / 1e9:.1f} "
                "GB, which would end in a bus error here"
            )
            continue
        dataset = CropDataset(images, views, LIMITS, 0, 0)
        begun, least = free(), free()
        feeding = iter(loader(dataset, places(len(images)), workers, False, ahead))
        next(feeding)
        still = 0
        while still < 20:  # half a second apart, until nothing more comes
            time.sleep(0.5)
            now = free()
            still = 0 if now < least else still + 1
            least = min(least, now)
        print(
            f"{name}: {workers} processes, {ahead} ahead: {(begun - least) / 1e9:.1f} GB "
            f"of /dev/shm (reckoned {workers * ahead * size / 1e9:.1f})"
        )
        del feeding


def free() -> int:
    return shutil.disk_usage("/dev/shm").free


def places(images: int) -> Iterator[list[tuple[int, int]]]:
    rng = np.random.default_rng(0)
    for epoch in itertools.count():
        yield [(epoch, int(place)) for place in rng.integers(0, images, BATCH)]


if __name__ == "__main__":
    sys.exit(main())
