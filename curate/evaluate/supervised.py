"""What a supervised training is made of: random crops of labelled images, a linear head, rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curate.dataset.augment import Augment
from curate.dataset.crops import CropDataset, loader
from curate.dataset.training_set import TrainingSet
from curate.dataset.views import shapes
from curate.embedding import encoders
from curate.errors import CurateError
from curate.evaluate.bench import Bench, device_here, matched
from curate.evaluate.features import features_of
from curate.evaluate.linear import Accuracy, accuracy
from curate.images import Preprocessing
from curate.settings import FinetuneSettings, ImageSettings, SgdSettings
from curate.settings.recipes import View

# SimCore's authors', train_sup.py: a crop of 20 to 100 % of the area, flipped half the time
CROP = View(1, scale=(0.2, 1.0), jitter_p=0, grey_p=0)
ORDER = 2  # a stream of random numbers beside the loader's


def train_and_test(
    bench: Bench,
    told: SgdSettings | FinetuneSettings,
    seed: int,
    choose: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    rates: dict[str, float],
    rate: Callable[[float], float],
    key: str,
) -> tuple[Accuracy, int]:
    """Accuracy on centre crops, and how many images were trained on.

    choose: labels (N,), -1 for none, to the rows that are trained on; rates: at the start, of the
    `head`, and of the `encoder`, which is frozen where it has none; rate and key: see `descend`.
    Steps are those of epochs over all labelled images, however few are chosen.
    """
    train, test = bench.open_sets()
    labels = matched(train, test)
    rows, asked = choose(labels.train), np.flatnonzero(labels.test >= 0)
    encoder = encoders.build(bench.encoder)
    device = device_here()
    bf16 = device.type == "cuda"
    frozen = "encoder" not in rates
    module = encoder.module.train(not frozen).requires_grad_(not frozen).to(device)
    module = module.to(memory_format=torch.channels_last)
    head = new_head(encoder.feature_dim, len(labels.classes), seed).to(device)
    parts: dict[str, nn.Module] = {"encoder": module, "head": head}
    optimizer = sgd([(parts[name], value) for name, value in rates.items()], told.weight_decay)
    steps = told.epochs * steps_an_epoch(labels.train_images, told.batch_size)
    crops = batches(
        train,
        labels.train,
        rows,
        encoder.preprocessing,
        bench.limits,
        seed=seed,
        steps=steps,
        batch_size=told.batch_size,
        device=device,
        decoders=bench.decoders,
    )

    def logits(pixels: Tensor) -> Tensor:
        with (
            torch.set_grad_enabled(not frozen),
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        ):
            features: Tensor = module(pixels)
        found: Tensor = head(features.float())
        return found

    descend(logits, crops, optimizer, rate, steps, told, key)
    seen = features_of(
        module, encoder.preprocessing, bench.limits, test, asked, device, bf16, unit=False
    )
    return accuracy(predicted_by(head, seen), labels.test[asked]), len(rows)


def steps_an_epoch(images: int, batch_size: int) -> int:
    return -(-images // batch_size)


def batches(
    images: TrainingSet,
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    eye: Preprocessing,
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
    dataset = CropDataset(images, shapes((CROP,), eye.image_px), limits, seed, noise=0)
    prepare = Augment(eye.mean, eye.std, device)
    wanted = np.zeros(len(images), bool)
    wanted[rows] = True
    places = places_of(rows, seed, steps, batch_size)
    for crops in loader(dataset, places, decoders, device.type == "cuda"):
        ids = crops.ids.numpy()
        # What stands in for an image that cannot be decoded may lie outside of `rows`
        keep = torch.from_numpy(wanted[ids])
        if keep.any():
            pixels = prepare(crops.pixels[0][keep], crops.parameters[0][keep])
            yield pixels, torch.from_numpy(labels[ids])[keep].to(device)


def places_of(
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


def sgd(groups: list[tuple[nn.Module, float]], weight_decay: float) -> torch.optim.SGD:
    """groups: modules, each with its learning rate at the start."""
    parts = [{"params": list(part.parameters()), "lr": rate, "peak": rate} for part, rate in groups]
    return torch.optim.SGD(parts, momentum=0.9, weight_decay=weight_decay, nesterov=True)


def descend(
    logits_of: Callable[[Tensor], Tensor],
    crops: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.SGD,
    rate: Callable[[float], float],
    steps: int,
    told: SgdSettings | FinetuneSettings,
    key: str,
) -> None:
    """SGD over `steps` batches; rate: progress, 0 … 1, to a share of each group's learning rate.

    Raises CurateError for a loss that is not finite, and for a batch beyond the GPU's memory.
    """
    for step, (pixels, wanted) in enumerate(crops):
        set_rates(optimizer, rate(step / steps))
        try:
            loss = nn.functional.cross_entropy(logits_of(pixels), wanted)
            if not math.isfinite(loss.item()):
                raise CurateError(
                    f"{key}.learning_rate={told.learning_rate:g}: the loss is not finite after "
                    f"{step} steps; lower it"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        except torch.cuda.OutOfMemoryError:
            raise CurateError(
                f"{key}.batch_size={told.batch_size}: over the GPU's memory; lower it"
            ) from None


def set_rates(optimizer: torch.optim.SGD, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
