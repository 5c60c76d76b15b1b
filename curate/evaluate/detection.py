"""Object detection: a detector of `detectors.py` on the encoder.

Fine-tuned as MoCo does, arXiv:1911.05722, section 4.2: BatchNorm is trained and the pyramid has its
own, since features that come without labels are of another magnitude than those that detectors'
rates were tuned for. Its statistics are those of the batch, on one device: batches of a few images
make them noisy. Or, with `preset: authors`, on the frozen encoder, as SimCore's authors do.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from curate.embedding.encoders import Encoder
from curate.errors import CurateError
from curate.evaluate.annotated import fitted, read_image
from curate.evaluate.boxes import Boxes, Scene, read_boxes
from curate.evaluate.dense import figures_of, resnet_of, seeded, set_training, shuffled
from curate.evaluate.descent import adam, cosine, descend, sgd
from curate.evaluate.detectors import Detector, faster_rcnn, retinanet
from curate.evaluate.loading import loaded
from curate.evaluate.subject import Result, Subject
from curate.settings import DetectionSettings, ImageSettings

KEY = "evaluate.detection"
DETECTORS = {"faster_rcnn": faster_rcnn, "retinanet": retinanet}
LEAST_PX = 1.0  # a box that is smaller than this to the network is not trained on
WARMUP_STEPS = 1000
CHANGES = 1  # stream of random numbers
WHOLE = np.array([0.0, 0.0, 1.0, 1.0])  # left, top, right, bottom: shares of an image's sides


@dataclass(frozen=True)
class Detections:
    """What a detector finds in one image."""

    boxes: NDArray[np.float64]  # (N, 4) left, top, right, bottom in px
    labels: NDArray[np.int64]  # (N,)
    scores: NDArray[np.float64]  # (N,)


@dataclass(frozen=True)
class ScaledScene:
    """A scene at the network's size, with the boxes to train on."""

    pixels: Tensor  # (H, W, 3) uint8
    scale: NDArray[np.float64]  # (4,) of boxes: px here for a px of the image
    boxes: Tensor  # (N, 4) px here
    labels: Tensor  # (N,) from 1: 0 is the background


def check(subject: Subject) -> None:
    """Nothing: `detection` reads all of both sets before it trains."""


def run(subject: Subject) -> Iterator[Result]:
    return figures_of("detection", detection, subject.evaluation.detection, subject)


def detection(
    encoder: Encoder,
    settings: DetectionSettings,
    limits: ImageSettings,
    seed: int,
    device: torch.device,
) -> dict[str, float]:
    """COCO's mAP and mAP50 on the test images, 0 … 1, and their number.

    The encoder is copied, and left as it is. COCO's crowds and VOC's difficult boxes are not
    trained on, and to find them is neither right nor wrong. The seed decides new layers, order,
    crops, flips and sampled regions; on a CPU two runs of one seed give the same figures.

    Raises CurateError for an encoder that is no ResNet, annotations or images that cannot be used,
    a loss that is not finite, and where pycocotools is missing.
    """
    _coco_tool("coco")  # before hours of training
    network = resnet_of(encoder, "detection", settings.encoder)
    train = read_boxes(settings.train, f"{KEY}.train")
    test = read_boxes(settings.test, f"{KEY}.test").in_classes(train.classes, f"{KEY}.test")
    for boxes, name in ((train, "train"), (test, "test")):
        if not boxes.counted():
            raise CurateError(
                f"{KEY}.{name}.annotations: no box in any image that is not a crowd or difficult; "
                "name annotations that have some"
            )
    for _ in _scaled_scenes(test, settings, limits):  # what cannot be read is told before training
        pass
    with seeded(seed, device):
        build = DETECTORS[settings.detector]
        model = build(network, len(train.classes), settings.image_px, encoder.preprocessing)
        model.to(device)
        _train(model, train, settings, limits, seed, device)
        found = _detect(model, test, settings, limits, device)
    mean, at_half = average_precision(test, found)
    return {"mAP": mean, "mAP50": at_half, "images": float(len(test.scenes))}


def average_precision(truth: Boxes, found: list[Detections]) -> tuple[float, float]:
    """COCO's mAP over IoU 0.50, 0.55 … 0.95, and that at 0.50; found: one entry a scene.

    By pycocotools: precision at 101 recalls, the 100 best boxes of an image, the mean over the
    classes that have a box in `truth`.
    """
    ids = range(1, len(truth.scenes) + 1)
    coco_truth = _coco_tool("coco").COCO()
    boxes = [
        _coco_box(image, scene.boxes[i], scene.labels[i]) | {"iscrowd": int(scene.ignored[i])}
        for image, scene in zip(ids, truth.scenes, strict=True)
        for i in range(len(scene.boxes))
    ]
    coco_truth.dataset = {
        "images": [{"id": image} for image in ids],
        "categories": [{"id": label} for label in range(len(truth.classes))],
        # From 1: to the evaluation a match with number 0 is none
        "annotations": [{"id": number, **box} for number, box in enumerate(boxes, 1)],
    }
    guesses = [
        _coco_box(image, boxes.boxes[i], boxes.labels[i]) | {"score": float(boxes.scores[i])}
        for image, boxes in zip(ids, found, strict=True)
        for i in range(len(boxes.boxes))
    ]
    if not guesses:  # which pycocotools cannot take
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        coco_truth.createIndex()
        judge = _coco_tool("cocoeval").COCOeval(coco_truth, coco_truth.loadRes(guesses), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0]), float(judge.stats[1])


def rate_at(step: int, steps: int, schedule: str = "steps") -> float:
    """Share of the learning rate. "cosine": from 1 to 0. "steps": linear warm-up over a tenth of
    the steps, 1000 at most, then a tenth from 2/3 on and a hundredth from 8/9 on, as Detectron's
    1× schedule has it."""
    if schedule == "cosine":
        return cosine(step / steps)
    warmup = min(WARMUP_STEPS, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 ** ((step >= steps * 2 / 3) + (step >= steps * 8 / 9))


def _train(
    model: Detector,
    train: Boxes,
    settings: DetectionSettings,
    limits: ImageSettings,
    seed: int,
    device: torch.device,
) -> None:
    def load(entry: tuple[int, int]) -> ScaledScene:
        epoch, row = entry
        rng = np.random.default_rng([seed, CHANGES, epoch, row])
        flip = rng.random() < 0.5
        window = window_around(train.scenes[row], rng) if settings.crop else WHOLE
        return _scaled(train.scenes[row], settings.image_px, limits, window, flip=flip)

    def loss_of(batch: list[ScaledScene]) -> Tensor:
        targets = [
            {"boxes": scene.boxes.to(device), "labels": scene.labels.to(device)} for scene in batch
        ]
        losses: dict[str, Tensor] = model([_on(device, scene) for scene in batch], targets)
        return torch.stack(list(losses.values())).sum()

    batches = shuffled(len(train.scenes), settings.batch_size, settings.epochs, seed)
    steps = len(batches)
    build = {"sgd": sgd, "adam": adam}[settings.optimizer]
    optimizer = build([(model, settings.learning_rate)], settings.weight_decay)
    set_training(model, model.backbone.body, settings.encoder)
    descend(
        optimizer,
        loss_of,
        loaded(load, batches),
        lambda step: rate_at(step, steps, settings.schedule),
        settings,
        KEY,
    )


@torch.inference_mode()
def _detect(
    model: Detector,
    test: Boxes,
    settings: DetectionSettings,
    limits: ImageSettings,
    device: torch.device,
) -> list[Detections]:
    model.eval()
    found = []
    for batch in _scaled_scenes(test, settings, limits):
        answers = model([_on(device, scene) for scene in batch])
        for scene, answer in zip(batch, answers, strict=True):
            found.append(
                Detections(
                    answer["boxes"].cpu().numpy().astype(np.float64) / scene.scale,
                    answer["labels"].cpu().numpy() - 1,
                    answer["scores"].cpu().numpy().astype(np.float64),
                )
            )
    return found


def _scaled_scenes(
    boxes: Boxes, settings: DetectionSettings, limits: ImageSettings
) -> Iterator[list[ScaledScene]]:
    """Every image in order, in batches."""

    def load(scene: Scene) -> ScaledScene:
        return _scaled(scene, settings.image_px, limits)

    size, scenes = settings.batch_size, boxes.scenes
    return loaded(load, (scenes[start : start + size] for start in range(0, len(scenes), size)))


def window_around(scene: Scene, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random part of the image that holds all of its boxes; all of it where there are none, or
    its annotations do not say how large it is."""
    if scene.size is None or not len(scene.boxes):
        return WHOLE
    boxes = np.clip(scene.boxes / np.array(scene.size * 2), 0, 1)
    inner = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
    return WHOLE + (inner - WHOLE) * rng.random(4)


def _scaled(
    scene: Scene,
    px: int,
    limits: ImageSettings,
    window: NDArray[np.float64] = WHOLE,
    *,
    flip: bool = False,
) -> ScaledScene:
    """The window of the image at test size and the boxes to train on; torchvision's own resizing,
    without antialiasing, then has little or nothing left to do."""
    image = read_image(scene.image, limits, lambda w, h: min(fitted(w, h, px)))
    if scene.size not in (None, image.size):
        raise CurateError(
            f"{scene.image}: {image.size[0]}×{image.size[1]} px upright, and its annotations say "
            f"{scene.size[0]}×{scene.size[1]}; annotate it as it is shown"
        )
    cut = window * np.array(image.size * 2)  # px of the image
    wide, high = (cut[2:] - cut[:2]).tolist()
    width, height = fitted(wide, high, px)
    pixels = image.rgb.resize(
        (width, height),
        Image.Resampling.BILINEAR,
        tuple((window * np.array(image.rgb.size * 2)).tolist()),
        reducing_gap=2.0,
    )
    scale = np.array([width, height] * 2) / np.array([wide, high] * 2)
    boxes = np.clip((scene.boxes - np.tile(cut[:2], 2)) * scale, 0, [width, height] * 2)
    kept = ~scene.ignored & ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_PX).all(axis=1)
    boxes = boxes[kept]
    if flip:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return ScaledScene(
        torch.from_numpy(np.array(pixels)),
        scale,
        torch.from_numpy(boxes).float(),
        torch.from_numpy(scene.labels[kept] + 1),
    )


def _on(device: torch.device, scene: ScaledScene) -> Tensor:
    """(3, H, W) of 0 … 1; the detector subtracts the mean itself."""
    return scene.pixels.to(device).permute(2, 0, 1).float() / 255


def _coco_box(image: int, box: NDArray[np.float64], label: np.int64) -> dict[str, object]:
    left, top, right, bottom = (float(value) for value in box)
    width, height = right - left, bottom - top
    return {
        "image_id": image,
        "category_id": int(label),
        "bbox": [left, top, width, height],
        "area": width * height,
    }


def _coco_tool(name: str) -> ModuleType:
    try:
        from pycocotools import coco, cocoeval
    except ImportError:
        raise CurateError(
            "evaluate.protocols: detection needs pycocotools; pip install 'curate[eval]'"
        ) from None
    return {"coco": coco, "cocoeval": cocoeval}[name]
