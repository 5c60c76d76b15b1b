"""Semantic segmentation: a head of `deeplab.py` on the encoder's feature maps.

All fine-tuned, as Chen et al. 2017, arXiv:1706.05587: BatchNorm is trained, the rate falls as
(1 - t)^0.9. No auxiliary loss. Scales and crops as in torchvision's training of it. Or, with
`preset: authors`, on the frozen encoder, as SimCore's authors do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from curate.embedding.encoders import Encoder
from curate.errors import CurateError
from curate.evaluate.annotated import fitted, read_image
from curate.evaluate.deeplab import DeepLab
from curate.evaluate.dense import figures_of, resnet_of, seeded, set_training, shuffled
from curate.evaluate.descent import descend, sgd
from curate.evaluate.loading import loaded
from curate.evaluate.masks import Masked, read_mask, read_masks
from curate.evaluate.subject import Result, Subject
from curate.settings import ImageSettings, SegmentationSettings

KEY = "evaluate.segmentation"
VOID = 255  # of pixels that do not count, after `Legend`
POWER = 0.9
CROPS = 1  # stream of random numbers


@dataclass(frozen=True)
class Legend:
    """What the masks' values mean."""

    classes: list[str]
    table: NDArray[np.int64]  # (256,) value → class, VOID, or -1 where it means nothing

    def read(self, mask: NDArray[np.uint8], uri: str) -> NDArray[np.uint8]:
        """Raises CurateError for a value that means nothing."""
        numbers = self.table[mask]
        if (numbers < 0).any():
            raise CurateError(
                f"{uri}: value {mask[numbers < 0].min()} is none of the {len(self.classes)} "
                f"classes; set {KEY}.classes, or {KEY}.ignore"
            )
        return numbers.astype(np.uint8)


@dataclass(frozen=True)
class MaskedPixels:
    pixels: NDArray[np.uint8]  # (H, W, 3)
    truth: NDArray[np.uint8]  # (h, w) classes and VOID: of a crop its size, else the mask's own


def check(subject: Subject) -> None:
    """Nothing: `segmentation` reads all of the test set before it trains."""


def run(subject: Subject) -> Iterator[Result]:
    return figures_of("segmentation", segmentation, subject.evaluation.segmentation, subject)


def segmentation(
    encoder: Encoder,
    settings: SegmentationSettings,
    limits: ImageSettings,
    seed: int,
    device: torch.device,
) -> dict[str, float]:
    """IoU of each class over all pixels of the test set, at the masks' own size, and their mean.

    "IoU <class>" is NaN for a class that is neither in the test set nor predicted, and left out of
    the mean. Without settings.classes the classes are the values in the train masks. The encoder
    is copied, and left as it is. The seed decides new layers, order and crops; on a CPU two runs
    of one seed give the same figures.

    Raises CurateError for an encoder that is no ResNet, masks or images that cannot be used, a
    single class, a single image to train on, and a loss that is not finite.
    """
    network = resnet_of(encoder, "segmentation", settings.encoder)
    train = read_masks(settings.train, f"{KEY}.train")
    test = read_masks(settings.test, f"{KEY}.test")
    if len(train) < 2:
        raise CurateError(
            f"{KEY}.train: one image, and BatchNorm needs two; add an image with its mask"
        )
    legend = _legend(train, settings)
    void = True
    for image in _whole(test, legend, settings, limits):  # trouble is told before training
        void &= bool((image.truth == VOID).all())
    if void:
        raise CurateError(
            f"{KEY}.test: every pixel is of value {settings.ignore}; set {KEY}.ignore"
        )
    with seeded(seed, device):
        plus = settings.head == "deeplabv3+"
        model = DeepLab(network, len(legend.classes), encoder.preprocessing, plus=plus).to(device)
        _train(model, train, legend, settings, limits, seed, device)
        confusion = _confusion(model, test, legend, settings, limits, device)
    by_class = intersection_over_union(confusion)
    return {
        "mean IoU": float(np.nanmean(by_class)),
        **{f"IoU {name}": float(iou) for name, iou in zip(legend.classes, by_class, strict=True)},
        "images": float(len(test)),
    }


def confusion_of(
    truth: NDArray[np.uint8], predicted: NDArray[np.uint8], classes: int
) -> NDArray[np.int64]:
    """(classes, classes) pixels by true class, then predicted one; those of VOID do not count."""
    counted = truth != VOID
    pairs = truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def intersection_over_union(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """(C, C) by true, then predicted class → (C,) 0 … 1; NaN of a class that is in neither."""
    both = np.diag(confusion).astype(np.float64)
    either = confusion.sum(0) + confusion.sum(1) - both
    return np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)


def predict(logits: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(classes, h, w) logits → (H, W) classes, the logits bilinearly brought to `size`: H, W.

    A class at a time, so that a large image with many classes takes memory for one.
    """
    best = torch.full(size, -math.inf, device=logits.device)
    label = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for number, plane in enumerate(logits):
        here = nn.functional.interpolate(plane[None, None], size, mode="bilinear")[0, 0]
        better = here > best
        best = torch.where(better, here, best)
        label[better] = number
    return label.cpu().numpy()


def _legend(train: list[Masked], settings: SegmentationSettings) -> Legend:
    if settings.classes is not None:
        names, values = settings.classes, list(range(len(settings.classes)))
        if len(set(names)) < len(names) or len(names) > VOID:
            raise CurateError(f"{KEY}.classes: at most {VOID} names, each once; mend the list")
        values = [value for value in values if value != settings.ignore]
        names = [names[value] for value in values]
    else:
        found: set[int] = set()
        for [mask] in loaded(lambda pair: read_mask(pair.mask), ([pair] for pair in train)):
            found |= set(np.unique(mask).tolist())
        values = sorted(found - {settings.ignore})
        names = [str(value) for value in values]
    if len(names) < 2:
        raise CurateError(
            f"{KEY}.train: {len(names)} class{'' if len(names) == 1 else 'es'} in all its masks "
            f"({', '.join(names)}), and two are the least; check annotations, classes and ignore"
        )
    table = np.full(256, -1, np.int64)
    table[values] = np.arange(len(values))
    table[settings.ignore] = VOID
    return Legend(names, table)


def _train(
    model: DeepLab,
    train: list[Masked],
    legend: Legend,
    settings: SegmentationSettings,
    limits: ImageSettings,
    seed: int,
    device: torch.device,
) -> None:
    fill = tuple(round(255 * float(value)) for value in model.mean.flatten())

    def load(entry: tuple[int, int]) -> MaskedPixels:
        epoch, row = entry
        rng = np.random.default_rng([seed, CROPS, epoch, row])
        return _crop(train[row], legend, settings, limits, fill, rng)

    def loss_of(batch: list[MaskedPixels]) -> Tensor:
        pixels = torch.from_numpy(np.stack([image.pixels for image in batch])).to(device)
        truth = torch.from_numpy(np.stack([image.truth for image in batch])).to(device).long()
        logits = nn.functional.interpolate(model(pixels), truth.shape[1:], mode="bilinear")
        total = nn.functional.cross_entropy(logits, truth, ignore_index=VOID, reduction="sum")
        return total / (truth != VOID).sum().clamp(min=1)  # there may be none at all

    batches = shuffled(len(train), settings.batch_size, settings.epochs, seed)
    steps = len(batches)
    groups = [(model, settings.learning_rate)]
    optimizer = sgd(groups, settings.weight_decay, nesterov=settings.nesterov)
    set_training(model, model.network, settings.encoder)
    descend(
        optimizer,
        loss_of,
        loaded(load, batches),
        lambda step: (1 - step / steps) ** POWER,
        settings,
        KEY,
    )


@torch.inference_mode()
def _confusion(
    model: DeepLab,
    test: list[Masked],
    legend: Legend,
    settings: SegmentationSettings,
    limits: ImageSettings,
    device: torch.device,
) -> NDArray[np.int64]:
    model.eval()
    classes = len(legend.classes)
    confusion = np.zeros((classes, classes), np.int64)
    for image in _whole(test, legend, settings, limits):
        [logits] = model(torch.from_numpy(image.pixels)[None].to(device))
        height, width = image.truth.shape
        confusion += confusion_of(image.truth, predict(logits, (height, width)), classes)
    return confusion


def _whole(
    pairs: list[Masked], legend: Legend, settings: SegmentationSettings, limits: ImageSettings
) -> Iterator[MaskedPixels]:
    """Every image in order, resized as `fitted` says; its mask as it is."""

    def load(pair: Masked) -> MaskedPixels:
        image = read_image(pair.image, limits, lambda w, h: min(fitted(w, h, settings.image_px)))
        mask = read_mask(pair.mask, image.size)
        resized = image.rgb.resize(
            fitted(*image.size, settings.image_px), Image.Resampling.BILINEAR, reducing_gap=2.0
        )
        return MaskedPixels(np.array(resized), legend.read(mask, pair.mask))

    return (image for [image] in loaded(load, ([pair] for pair in pairs)))


def _crop(
    pair: Masked,
    legend: Legend,
    settings: SegmentationSettings,
    limits: ImageSettings,
    fill: tuple[int, ...],
    rng: np.random.Generator,
) -> MaskedPixels:
    """A px × px window of the image at a random scale, flipped or not; where the image is smaller,
    the rest is `fill` and VOID."""
    px, scale = settings.image_px, rng.uniform(*settings.scales)
    image = read_image(pair.image, limits, lambda w, h: round(scale * min(fitted(w, h, px))))
    truth = Image.fromarray(legend.read(read_mask(pair.mask, image.size), pair.mask))
    width, height = (max(1, round(scale * side)) for side in fitted(*image.size, px))
    w, h = min(px, width), min(px, height)
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    part = np.array([left / width, top / height, (left + w) / width, (top + h) / height])

    def cut(picture: Image.Image, how: Image.Resampling) -> NDArray[np.uint8]:
        left, top, right, bottom = (float(x) for x in part * np.array(picture.size * 2))
        gap = 2.0 if how == Image.Resampling.BILINEAR else None
        return np.asarray(picture.resize((w, h), how, (left, top, right, bottom), gap))

    pixels = np.full((px, px, 3), fill, np.uint8)
    mask = np.full((px, px), VOID, np.uint8)
    pixels[:h, :w] = cut(image.rgb, Image.Resampling.BILINEAR)
    mask[:h, :w] = cut(truth, Image.Resampling.NEAREST)
    if rng.random() < 0.5:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    return MaskedPixels(np.ascontiguousarray(pixels), np.ascontiguousarray(mask))
