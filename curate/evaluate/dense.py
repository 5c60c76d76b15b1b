"""What detection and segmentation share: a ResNet's feature maps, batches, and their figures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import timm
import torch
from timm.models.resnet import ResNet
from torch import nn

from curate.cluster import results
from curate.embedding import encoders
from curate.embedding.encoders import Encoder
from curate.errors import CurateError
from curate.evaluate.bench import Bench, device_here
from curate.evaluate.subject import Result, Subject, Timed, on_gpu
from curate.settings import DetectionSettings, SegmentationSettings

Figures = dict[str, float]  # by metric; `images`: how many were tested

STAGES = ("layer1", "layer2", "layer3", "layer4")  # timm's names, and torchvision's
ORDER = 0  # stream of random numbers


def resnet_of(encoder: Encoder, protocol: str, trained: str = "trained") -> ResNet:
    """A copy of the encoder's network, on the CPU; trained: as the settings' `encoder` has it.

    Raises CurateError where it is not a ResNet of timm's.
    """
    if not isinstance(encoder.module, ResNet):
        raise CurateError(
            f"evaluate.protocols: {protocol} needs a ResNet, and the encoder is a "
            f"{type(encoder.module).__name__}; leave {protocol} out, "
            "or pretrain a ResNet, such as encoder.backbone=resnet50"
        )
    if len(encoder.preprocessing.mean) != 3:
        raise CurateError(
            f"evaluate.protocols: {protocol} is of colour images, and images.channels=1; leave "
            f"{protocol} out"
        )
    # What embedded images before may have been frozen
    return copy.deepcopy(encoder.module).cpu().requires_grad_(trained == "trained")


def set_training(model: nn.Module, network: nn.Module, trained: str) -> None:
    """network: of the encoder, in the model. A frozen one goes by its BatchNorms' averages."""
    model.train()
    network.train(trained != "frozen")


def dilated(network: ResNet, stride: int = 8) -> ResNet:
    """The same weights with feature maps of that stride: dilation takes the place of later strides.

    One that has a small stem is at stride 8 as it is.
    """
    if strides_of(network)[-1] <= stride:
        return network
    name = cast("dict[str, str]", network.pretrained_cfg)["architecture"]
    with torch.random.fork_rng(devices=[]):
        rebuilt = cast(ResNet, timm.create_model(name, num_classes=0, output_stride=stride))
    rebuilt.load_state_dict(network.state_dict(), strict=True)
    return rebuilt.requires_grad_(next(network.parameters()).requires_grad)


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


def figures_of(
    what: str,
    protocol: Callable[..., Figures],
    settings: DetectionSettings | SegmentationSettings | None,
    subject: Subject,
) -> Iterator[Result]:
    """protocol: encoder, settings, limits, seed and device → its figures."""
    assert settings is not None  # the settings say so
    tasks = [
        on_gpu(_with_encoder, protocol, subject.bench, settings, seed) for seed in subject.seeds
    ]
    runs: list[Timed[Figures]] = results(tasks)
    seconds = round(sum(taken for _, taken in runs), 2)
    images = int(runs[0][0]["images"])
    for metric in runs[0][0]:
        values = np.array([figures[metric] for figures, _ in runs])
        if metric == "images" or np.isnan(values).all():  # NaN: a class that is not there
            continue
        yield Result(
            metric=f"{what}{settings.whose}, {metric}",
            value=float(np.nanmean(values)),
            std=float(np.nanstd(values)),
            seeds=len(runs),
            n=images,
            seconds=seconds,
            config=settings.model_dump(mode="json"),
        )


def _with_encoder(
    protocol: Callable[..., Figures],
    bench: Bench,
    settings: DetectionSettings | SegmentationSettings,
    seed: int,
) -> Figures:
    return protocol(encoders.build(bench.encoder), settings, bench.limits, seed, device_here())
