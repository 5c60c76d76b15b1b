"""How fast a core feeds an encoder, without one: JPEG bytes in, 224 px of uint8 out.

    python benchmarks/bench_feed.py --images FOLDER [--rounds 5] [--only decode|read]

FOLDER is any tree of photographs; they are resized to 500×375 and to 1600×1200 and encoded again at
quality 90. For each size, in one run:

* decode and resize as this version does, against the way up to pixels 1 (`before`, below): seconds
  of CPU, the fastest of the rounds for each image; the quality of both against a float64
  antialiased bicubic of the whole picture, each over the square that it crops; and the cosine
  between embeddings of both by a seeded, untrained resnet18;
* the reader as the job runs it (`read_parts`: files, hashes, tables, clocks) against a bare loop of
  the same decoding, and against one that takes each file's SHA-256 too, which no reader can do
  without, in one process; the pixels must be equal, or the run fails;
* readers under Ray Data on all cores, everything but the actors, against as many processes with
  the bare loop, by wall clock: the rate at which further images come, after one run that is not
  counted. So neither has its start in it, nor the first touch of the object store's memory, which
  can take a virtual machine longer than the images.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from simplejpeg import decode_jpeg

from curate import cluster
from curate.embedding import stage
from curate.embedding.careful import Watch
from curate.embedding.parts import Reading, pixels_of, read_parts
from curate.images import EncodedImage, Preprocessing
from curate.runfiles import plan
from curate.runfiles.files import PlanFiles
from curate.settings import ImageSettings
from curate.settings import load as config

PREPROCESSING = Preprocessing(224, 0.875, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
RESIZED_PX = 256
LIMITS = ImageSettings()
SIZES = {(500, 375): 1600, (1600, 1200): 400}  # → images that readers read
UNITS = {"one reader": 400, "Ray Data": 40}  # images: near the job's own; enough to share out
Pixels = NDArray[np.uint8]


def now(data: bytes) -> Pixels:
    return PREPROCESSING.pixels(EncodedImage(data, LIMITS))


def before(data: bytes) -> Pixels:
    """Any of libjpeg's eighths, and Pillow's resize of a square between pixels."""
    EncodedImage(data, LIMITS)
    least = 2 * RESIZED_PX
    image = Image.fromarray(decode_jpeg(data, "RGB", min_height=least, min_width=least))
    side = min(image.size) * 224 / RESIZED_PX
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC, box, reducing_gap=2.0))


# Quality


def reference(data: bytes, left: float, top: float, side: float) -> NDArray[np.float64]:
    """Keys' kernel (a = -1/2) over all that a pixel stands for, of the whole picture."""

    def weights(pixels: int, first: float) -> NDArray[np.float64]:
        scale = side / 224
        centres = first + (np.arange(224) + 0.5) * scale
        x = np.abs(np.arange(pixels) + 0.5 - centres[:, None]) / max(scale, 1)
        inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        found = np.where(x < 1, inner, np.where(x < 2, outer, 0))
        return found / found.sum(1, keepdims=True)

    whole = decode_jpeg(data, "RGB").astype(float)
    rows, columns = weights(whole.shape[0], top), weights(whole.shape[1], left)
    return np.einsum("ih,hwc,jw->ijc", rows, whole, columns, optimize=True).clip(0, 255)


def quality(files: list[bytes]) -> None:
    db: dict[str, list[float]] = {"now": [], "before": []}
    for data in files:
        height, width = decode_jpeg(data, "RGB").shape[:2]
        exact = min(width, height) * 224 / RESIZED_PX
        # What the decoder halves, the crop's edges lie between the pixels of
        part = next((p for p in (8, 4, 2) if min(width, height) >= p * 2 * RESIZED_PX), 1)
        small_w, small_h = -(-width // part), -(-height // part)
        snapped = round(min(small_w, small_h) * 224 / RESIZED_PX)
        squares = {
            "before": ((width - exact) / 2, (height - exact) / 2, exact),
            "now": (
                (small_w - snapped) // 2 * part,
                (small_h - snapped) // 2 * part,
                snapped * part,
            ),
        }
        for name, pixels in (("now", now(data)), ("before", before(data))):
            error = float(np.mean((pixels - reference(data, *squares[name])) ** 2))
            db[name].append(10 * np.log10(255**2 / error))
    for name, values in db.items():
        print(
            f"  quality {name:<6} {np.mean(values):.1f} dB on average, {min(values):.1f} at least"
        )
    from curate.embedding import encoders
    from curate.embedding.embedder import Embedder
    from curate.settings import EncoderSettings

    embedder = Embedder(encoders.build(EncoderSettings(backbone="resnet18")), "cpu", 32)
    rows = [embedder(np.stack([make(d) for d in files])).astype(float) for make in (now, before)]
    cosine = (rows[0] * rows[1]).sum(1) / np.prod([np.linalg.norm(r, axis=1) for r in rows], 0)
    print(
        f"  cosine now, before: {cosine.mean():.5f} on average, {cosine.min():.5f} at least "
        f"({len(files)} photographs, untrained resnet18)"
    )


# Speed


def decoding(files: list[bytes], rounds: int) -> None:
    """Image by image in turn: whatever else the machine does then meets both alike."""
    spent = np.array(
        [
            [[cpu_seconds(lambda f=f, d=d: f(d)) for f in (now, before)] for d in files]
            for _ in range(rounds)
        ]
    )
    ours, theirs = len(files) / spent.min(0).sum(0)
    print(
        f"  decode and resize {ours:.0f} images/s of CPU, before {theirs:.0f}, "
        f"ratio {ours / theirs:.2f}",
        flush=True,
    )


def cpu_seconds(work: Callable[[], object]) -> float:
    """User and system, of all threads."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def alternating(work: dict[str, Callable[[], object]], count: int, rounds: int) -> dict[str, float]:
    """Images/s of CPU of each, the fastest of the rounds."""
    spent = [{name: cpu_seconds(each) for name, each in work.items()} for _ in range(rounds)]
    return {name: count / min(one[name] for one in spent) for name in work}


def reading_of(
    folder: Path, count: int, scratch: Path, unit_images: int
) -> tuple[plan.Plan, Reading, list[Path]]:
    """A plan of `count` links to the files of a folder, in turn."""
    sources = sorted(folder.iterdir())
    named = f"{count}-{unit_images}"
    links = [scratch / f"links-{named}" / f"{i:05d}.jpg" for i in range(count)]
    links[0].parent.mkdir()
    for i, link in enumerate(links):
        link.symlink_to(sources[i % len(sources)])
    source = {"kind": "image_folder", "path": str(links[0].parent)}
    document = {"target": {**source, "limit": 1}, "open": [{"name": "photographs", **source}]}
    document |= {"embed": {"unit_images": unit_images}, "output": str(scratch / "run")}
    settings = config.parse(document, "benchmark")
    made = plan.make(settings, PlanFiles(str(scratch / f"plan-{named}")))
    known = plan.by_name(settings)
    reading = Reading(made.files, known, settings.images, PREPROCESSING, True, stage.BOUNDS)
    return made, reading, links


def one_process(folder: Path, count: int, rounds: int, scratch: Path) -> None:
    made, reading, links = reading_of(folder, count, scratch, UNITS["one reader"])
    table, watch = made.table.slice(1), Watch.remote()

    def ours() -> int:
        return sum(pixels_of(part, 224).nbytes for part in read_parts(table, reading, watch))

    def bare() -> int:
        return sum(now(link.read_bytes()).nbytes for link in links)

    made_by_reader = [pixels_of(part, 224) for part in read_parts(table, reading, watch)]

    def hashing() -> int:
        pixels = 0
        for link in links:
            data = link.read_bytes()
            pixels += len(hashlib.sha256(data).hexdigest()) + now(data).nbytes
        return pixels

    expected = {data: now(data) for data in {link.read_bytes() for link in links}}
    if not all(
        (pixels == expected[link.read_bytes()]).all()
        for pixels, link in zip(np.concatenate(made_by_reader), links, strict=True)
    ):
        sys.exit("pixels differ")
    del made_by_reader
    rate = alternating({"ours": ours, "bare": bare, "hashing": hashing}, count, rounds)
    print(
        f"  one reader {rate['ours']:.0f} images/s of CPU; bare loop {rate['bare']:.0f}, ratio "
        f"{rate['ours'] / rate['bare']:.3f}; with hashes {rate['hashing']:.0f}, ratio "
        f"{rate['ours'] / rate['hashing']:.3f}; pixels equal",
        flush=True,
    )


def under_ray_data(folder: Path, count: int, rounds: int, scratch: Path) -> None:
    """Wall clock, all cores: the dataset of the job up to its actors."""
    cores = os.cpu_count() or 1
    few, many = count, 3 * count
    known = {n: reading_of(folder, n, scratch, UNITS["Ray Data"]) for n in (few, many)}
    rates = []
    context = get_context("spawn")
    with ProcessPoolExecutor(cores, context, initializer=now, initargs=(first(folder),)) as pool:
        for counted in [False, *[True] * rounds]:
            seconds = {}
            for n, (made, reading, links) in known.items():
                begun = time.monotonic()
                dataset = stage.parts_of(made.table.slice(1), cores, reading)
                rows = sum(b.num_rows() or 0 for b in dataset.iter_internal_ref_bundles())
                seconds["ours", n] = time.monotonic() - begun
                assert rows
                begun = time.monotonic()
                list(pool.map(bare_share, [links[i::cores] for i in range(cores)]))
                seconds["bare", n] = time.monotonic() - begun
            further = [
                (many - few) / (seconds[way, many] - seconds[way, few]) for way in ("ours", "bare")
            ]
            if counted:
                rates.append(further)
    ours, bare = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(a / b for a, b in rates)
    print(
        f"  {cores} cores under Ray Data {ours:.0f} images/s, bare processes {bare:.0f}, "
        f"ratio {ratio:.3f}; {ours / cores:.0f} a core",
        flush=True,
    )


def first(folder: Path) -> bytes:
    return next(iter(sorted(folder.iterdir()))).read_bytes()


def bare_share(links: list[Path]) -> int:
    return sum(now(link.read_bytes()).nbytes for link in links)


def write(images: Path, folder: Path, size: tuple[int, int]) -> list[bytes]:
    """Every photograph at this size, upright ones turned round."""
    folder.mkdir()
    paths = sorted(p for p in images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        sys.exit(f"{images}: no photographs there")
    files = []
    for i, path in enumerate(paths):
        image = Image.open(path).convert("RGB")
        wanted = size if image.width >= image.height else size[::-1]
        buffer = io.BytesIO()
        image.resize(wanted, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
        (folder / f"{i:05d}.jpg").write_bytes(files[-1])
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["decode", "read"], help="one half of it")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in Ray's workers
    os.nice(19)  # Ray's workers are nicer than others: so is then the bare loop
    if options.only != "decode":
        cluster.connect()
    with tempfile.TemporaryDirectory() as scratch:
        for size, count in SIZES.items():
            own = Path(scratch) / f"{size[0]}"
            own.mkdir()
            files = write(options.images, own / "photographs", size)
            print(f"{size[0]}×{size[1]}, {np.mean([len(data) for data in files]) / 1e3:.0f} kB:")
            if options.only != "read":
                decoding(files, options.rounds)
                quality(files)
            if options.only == "decode":
                continue
            one_process(own / "photographs", count, options.rounds, own)
            under_ray_data(own / "photographs", count, options.rounds, own)


if __name__ == "__main__":
    main()
