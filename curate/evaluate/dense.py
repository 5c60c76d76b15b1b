"""What detection and segmentation share: a ResNet's feature maps, batches, and SGD."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar, cast

import numpy as np
import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from curate.embedding.encoders import Encoder
from curate.errors import CurateError
from curate.settings import DetectionSettings, SegmentationSettings

log = logging.getLogger(__name__)

T = TypeVar("T")
W = TypeVar("W")

STAGES = ("layer1", "layer2", "layer3", "layer4")  # timm's names, and torchvision's
MOMENTUM = 0.9
THREADS = 8  # that decode; Pillow and libjpeg let go of Python's lock
BATCHES_AHEAD = 2
ORDER = 0  # stream of random numbers


def resnet_of(encoder: Encoder, protocol: str) -> ResNet:
    """A copy of the encoder's network, on the CPU, all of it to be trained.

    Raises CurateError where it is not a ResNet of timm's.
    """
    if not isinstance(encoder.module, ResNet):
        raise CurateError(
            f"evaluate.protocols: {protocol} needs a ResNet, and the encoder is a "
            f"{type(encoder.module).__name__}; leave {protocol} out, "
            "or pretrain a ResNet, such as encoder.backbone=resnet50"
        )
    # What embedded images before may have been frozen
    return copy.deepcopy(encoder.module).cpu().requires_grad_(True)


def dilated(network: ResNet) -> ResNet:
    """The same weights with feature maps of stride 8: dilation takes the place of later strides.

    One that has a small stem is at stride 8 as it is.
    """
    if strides_of(network)[-1] <= 8:
        return network
    name = cast("dict[str, str]", network.pretrained_cfg)["architecture"]
    with torch.random.fork_rng(devices=[]):
        rebuilt = cast(ResNet, timm.create_model(name, num_classes=0, output_stride=8))
    rebuilt.load_state_dict(network.state_dict(), strict=True)
    return rebuilt


@torch.no_grad()
def strides_of(network: ResNet) -> list[int]:
    """Image px to one px of each stage's feature maps."""
    px = 64
    training = network.training
    network.eval()
    _, maps = network.forward_intermediates(torch.zeros(1, 3, px, px), indices=[1, 2, 3, 4])
    network.train(training)
    return [px // features.shape[-1] for features in maps]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's random numbers by the seed; the caller's own stay its own."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def shuffled(images: int, batch_size: int, epochs: int, seed: int) -> list[list[tuple[int, int]]]:
    """(epoch, image), batch by batch. An epoch is so many whole batches, those left over have
    their turn in another; a set smaller than a batch makes one of itself."""
    size = min(batch_size, images)
    found = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, ORDER, epoch]).permutation(images)
        for start in range(0, images - size + 1, size):
            found.append([(epoch, int(place)) for place in order[start : start + size]])
    return found


def loaded(load: Callable[[W], T], batches: Iterable[list[W]]) -> Iterator[list[T]]:
    """Every batch with its entries loaded, by threads, a few batches ahead of what is used."""
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    waiting = iter(batches)

    def submit(count: int) -> Iterator[list[Future[T]]]:
        for batch in islice(waiting, count):
            yield [pool.submit(load, entry) for entry in batch]

    try:
        ahead = deque(submit(BATCHES_AHEAD))
        while ahead:
            yield [entry.result() for entry in ahead.popleft()]
            ahead.extend(submit(1))
    finally:
        pool.shutdown(cancel_futures=True)


def descend(
    model: nn.Module,
    loss_of: Callable[[list[T]], Tensor],
    batches: Iterable[list[T]],
    rate: Callable[[int], float],
    settings: DetectionSettings | SegmentationSettings,
    key: str,
) -> None:
    """SGD with momentum over the batches; rate: of a step, times settings.learning_rate.

    Raises CurateError for a loss that is not finite, and for a batch beyond the GPU's memory.
    """
    weights: list[Any] = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(
        weights, settings.learning_rate, momentum=MOMENTUM, weight_decay=settings.weight_decay
    )
    model.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate(step)
        try:
            loss = loss_of(batch)
            if not math.isfinite(loss.item()):
                raise CurateError(
                    f"{key}.learning_rate={settings.learning_rate}: the loss is not finite after "
                    f"{step} steps; lower it"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        except torch.cuda.OutOfMemoryError:
            raise CurateError(
                f"{key}.batch_size={settings.batch_size}: over the GPU's memory; "
                "lower it, or image_px"
            ) from None
        log.info("%s: step %d: loss %.4f", key, step + 1, loss.item())
