"""What a supervised training is made of: random crops of labelled images, a linear head, rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curate.dataset.augment import Augment
from curate.dataset.crops import CropDataset, loader
from curate.dataset.training_set import TrainingSet
from curate.dataset.views import shapes
from curate.embedding import encoders
from curate.evaluate.accuracy import Accuracy, accuracy
from curate.evaluate.bench import Bench, device_here, matched_labels
from curate.evaluate.descent import descend, sgd
from curate.evaluate.features import features_of
from curate.images import Preprocessing
from curate.settings import FinetuneSettings, ImageSettings, SgdSettings
from curate.settings.recipe import View

# SimCore's authors', train_sup.py: a crop of 20 to 100 % of the area, flipped half the time
CROP = View(1, scale=(0.2, 1.0), jitter_p=0, grey_p=0)
ORDER = 2  # a stream of random numbers beside the loader's


def train_and_test(
    bench: Bench,
    settings: SgdSettings | FinetuneSettings,
    seed: int,
    choose: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    rates: dict[str, float],
    rate: Callable[[float], float],
    key: str,
    *,
    moving: bool = False,
    best: bool = False,
) -> tuple[Accuracy, int]:
    """Accuracy on centre crops, and how many images were trained on.

    choose: labels (N,), -1 for none, to the rows that are trained on; rates: at the peak, of the
    `head`, and of the `encoder`, which is frozen where it has none; rate: progress, 0 … 1, to a
    share of them; key: of the settings, named in errors;
    moving: a frozen encoder's BatchNorms go by each batch's statistics; best: of all epochs, by
    accuracy, not the last.
    Steps are those of epochs over all labelled images, however few are chosen.
    """
    train, test = bench.open_sets()
    labels = matched_labels(train, test, "evaluate")
    rows, asked = choose(labels.train), np.flatnonzero(labels.test >= 0)
    encoder = encoders.build(bench.encoder)
    device = device_here()
    bf16 = device.type == "cuda"
    frozen = "encoder" not in rates
    module = encoder.module.train(moving or not frozen).requires_grad_(not frozen).to(device)
    module = module.to(memory_format=torch.channels_last)
    head = new_head(encoder.feature_dim, len(labels.classes), seed).to(device)
    parts: dict[str, nn.Module] = {"encoder": module, "head": head}
    groups = [(parts[name], peak) for name, peak in rates.items()]
    optimizer = sgd(groups, settings.weight_decay, nesterov=True)
    of_epoch = steps_an_epoch(labels.train_images, settings.batch_size)
    steps = settings.epochs * of_epoch
    batches = crops(
        train,
        labels.train,
        rows,
        encoder.preprocessing,
        bench.limits,
        seed=seed,
        steps=steps,
        batch_size=settings.batch_size,
        device=device,
        decoders=bench.decoders,
    )
    found: list[Accuracy] = []

    def measure(step: int) -> None:
        """At the ends of the epochs that may count."""
        if step == steps or (best and step % of_epoch == 0):
            seen = _features(module, encoder.preprocessing, bench, test, asked)
            found.append(accuracy(predicted_by(head, seen), labels.test[asked]))

    loss_of = _cross_entropy(module, head, frozen=frozen, bf16=bf16)
    descend(optimizer, loss_of, batches, lambda step: rate(step / steps), settings, key, measure)
    return max(found, key=lambda one: one.top1), len(rows)


def _features(
    module: nn.Module,
    preprocessing: Preprocessing,
    bench: Bench,
    images: TrainingSet,
    rows: NDArray[np.int64],
) -> NDArray[np.float32]:
    device = device_here()
    return features_of(
        module,
        preprocessing,
        bench.limits,
        images,
        rows,
        device,
        decoders=bench.decoders,
        bf16=device.type == "cuda",
        unit=False,
    )


def _cross_entropy(
    module: nn.Module, head: nn.Linear, *, frozen: bool, bf16: bool
) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, labels = batch
        with (
            torch.set_grad_enabled(not frozen),
            torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16),
        ):
            features: Tensor = module(pixels)
        return nn.functional.cross_entropy(head(features.float()), labels)

    return loss_of


def steps_an_epoch(images: int, batch_size: int) -> int:
    return -(-images // batch_size)


def crops(
    images: TrainingSet,
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    preprocessing: Preprocessing,
    limits: ImageSettings,
    *,
    seed: int,
    steps: int,
    batch_size: int,
    device: torch.device,
    decoders: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` batches of the images at `rows`: (n, 3, px, px) as the encoder takes them, and their
    labels (n,), on the device. Order and crops are functions of the seed.

    labels (N,) of all the set's images; decoders: processes that decode ahead.
    """
    dataset = CropDataset(images, shapes((CROP,), preprocessing.image_px), limits, seed, noise=0)
    prepare = Augment(preprocessing.mean, preprocessing.std, device, preprocessing.image_px)
    trained_on = np.zeros(len(images), bool)
    trained_on[rows] = True
    order = rows_of_batches(rows, seed, steps, batch_size)
    for batch in loader(dataset, order, decoders, device.type == "cuda"):
        ids = batch.ids.numpy()
        # What stands in for an image that cannot be decoded may lie outside of `rows`
        keep = torch.from_numpy(trained_on[ids])
        if keep.any():
            pixels = prepare(batch.pixels[0][keep], batch.parameters[0][keep])
            yield pixels, torch.from_numpy(labels[ids])[keep].to(device)


def rows_of_batches(
    rows: NDArray[np.int64], seed: int, steps: int, batch_size: int
) -> Iterator[list[tuple[int, int]]]:
    """(epoch, row) of each batch's images. An epoch has each row once, in batches of nearly equal
    size: a last one of a single image would be no batch for BatchNorm."""
    an_epoch = steps_an_epoch(len(rows), batch_size)
    for step in range(steps):
        epoch, part = divmod(step, an_epoch)
        if part == 0:
            order = np.random.default_rng([seed, ORDER, epoch]).permutation(rows)
            parts = np.array_split(order, an_epoch)
        yield [(epoch, int(row)) for row in parts[part]]


def new_head(features: int, classes: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):  # the caller's own random numbers stay its own
        torch.manual_seed(seed)
        return nn.Linear(features, classes)


@torch.no_grad()
def predicted_by(head: nn.Linear, features: NDArray[np.float32]) -> NDArray[np.int64]:
    """features (N, D) → (N,) classes."""
    device = head.weight.device
    found: NDArray[np.int64] = head(torch.from_numpy(features).to(device)).argmax(1).cpu().numpy()
    return found
