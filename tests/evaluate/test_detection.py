"""Object detection: COCO's mAP by hand and in loops, and detectors that learn rectangles."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from curate.embedding import encoders
from curate.errors import CurateError
from curate.evaluate import dense, detection, detectors
from curate.evaluate.boxes import Boxes, Scene
from curate.evaluate.detection import Detections, average_precision
from curate.settings import DetectionSettings, ImageSettings
from tests.evaluate import scenes

CPU = torch.device("cpu")


def truth_of(*images: list[tuple[int, list[float]]], classes: int = 2) -> Boxes:
    """Boxes of an image each: class and corners; a negative class is a crowd of ~class."""
    found = []
    for image in images:
        labels = np.array([label if label >= 0 else ~label for label, _ in image], np.int64)
        ignored = np.array([label < 0 for label, _ in image], bool)
        boxes = np.array([box for _, box in image], np.float64).reshape(-1, 4)
        found.append(Scene("", boxes, labels, ignored, None))
    return Boxes([str(number) for number in range(classes)], found)


def found_in(*images: list[tuple[int, list[float], float]]) -> list[Detections]:
    return [
        Detections(
            np.array([box for _, box, _ in image], np.float64).reshape(-1, 4),
            np.array([label for label, *_ in image], np.int64),
            np.array([score for *_, score in image], np.float64),
        )
        for image in images
    ]


A, B, C = [0.0, 0, 100, 100], [200.0, 50, 260, 90], [300.0, 300, 340, 380]


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
    [
        # All found, whatever their scores
        ([[(0, A), (1, B)], []], [[(0, A, 0.3), (1, B, 0.9)], []], (1, 1)),
        # One of two: precision 1 at recalls 0 … 0.5, 51 of the 101
        ([[(0, A), (0, B)]], [[(0, A, 0.9)]], (51 / 101, 51 / 101)),
        # 20 px aside: IoU 80 / 120, over the thresholds 0.50, 0.55, 0.60, 0.65
        ([[(0, A)]], [[(0, [20, 0, 120, 100], 0.9)]], (0.4, 1)),
        # Something that is not there, scored higher, and scored lower
        ([[(0, A)]], [[(0, C, 0.9), (0, A, 0.8)]], (0.5, 0.5)),
        ([[(0, A)]], [[(0, C, 0.7), (0, A, 0.8)]], (1, 1)),
        # A box counts once
        ([[(0, A), (0, B)]], [[(0, A, 0.9), (0, A, 0.8)]], (51 / 101, 51 / 101)),
        # Another class, another image, nothing at all
        ([[(0, A)]], [[(1, A, 0.9)]], (0, 0)),
        ([[(0, A)], []], [[], [(0, A, 0.9)]], (0, 0)),
        ([[(0, A)]], [[]], (0, 0)),
        # The mean is over the classes that there are
        ([[(0, A), (1, B)]], [[(0, A, 0.9)]], (0.5, 0.5)),
        ([[(1, B)]], [[(1, B, 0.9), (0, A, 0.9)]], (1, 1)),
        # A crowd may be found or not
        ([[(0, A), (~0, B)]], [[(0, A, 0.5), (0, B, 0.9)]], (1, 1)),
        ([[(0, A), (~0, B)]], [[(0, A, 0.5)]], (1, 1)),
    ],
)
def test_average_precision_by_hand(truth: Any, found: Any, expected: Any) -> None:
    assert average_precision(truth_of(*truth), found_in(*found)) == pytest.approx(expected)


def iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    both = float(np.prod(np.clip(inner, 0, None)))
    return both / float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - both)


def precision_in_loops(
    truth: Boxes, found: list[Detections], label: int, threshold: float
) -> float:
    """Best boxes first, each takes the free box that it overlaps most."""
    taken = [np.zeros(len(scene.boxes), bool) for scene in truth.scenes]
    guesses = sorted(
        (-told.scores[i], image, i)
        for image, told in enumerate(found)
        for i in range(len(told.boxes))
        if told.labels[i] == label
    )
    there = sum(int((scene.labels == label).sum()) for scene in truth.scenes)
    hits, curve = 0, []
    for rank, (_, image, i) in enumerate(guesses, 1):
        scene = truth.scenes[image]
        free = [
            (iou(scene.boxes[j], found[image].boxes[i]), j)
            for j in range(len(scene.boxes))
            if scene.labels[j] == label and not taken[image][j]
        ]
        best, j = max(free, default=(0.0, 0))
        if best >= threshold:
            taken[image][j] = True
            hits += 1
        curve.append((hits / there, hits / rank))
    recalls = np.linspace(0, 1, 101)
    return float(np.mean([max((p for r, p in curve if r >= at), default=0) for at in recalls]))


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_against_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, told = [], []
    for _ in range(12):
        corner = rng.uniform(0, 300, (4, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(30, 90, (4, 2))], 1)
        labels = rng.integers(0, 2, 4)
        images.append([(int(k), box.tolist()) for k, box in zip(labels, boxes, strict=True)])
        told.append(
            [
                (
                    int(k) if rng.random() < 0.8 else 1 - int(k),
                    (box + rng.normal(0, 5, 4)).tolist(),
                    rng.random(),
                )
                for k, box in zip(labels, boxes, strict=True)
                if rng.random() < 0.8
            ]
        )
    truth, found = truth_of(*images), found_in(*told)
    thresholds = np.linspace(0.5, 0.95, 10)
    each = [
        np.mean([precision_in_loops(truth, found, label, t) for label in (0, 1)])
        for t in thresholds
    ]
    assert 0.1 < np.mean(each) < 0.9
    assert average_precision(truth, found) == pytest.approx((np.mean(each), each[0]))


def test_rates() -> None:
    rates = [detection.rate_at(step, 90) for step in range(90)]
    assert rates[:10] == pytest.approx([(step + 1) / 9 for step in range(9)] + [1])
    assert rates[9:60] == [1.0] * 51
    assert rates[60:80] == pytest.approx([0.1] * 20)
    assert rates[80:] == pytest.approx([0.01] * 10)
    assert detection.rate_at(999, 90_000) == 1.0 > detection.rate_at(998, 90_000)
    assert detection.rate_at(0, 1) == 1.0
    halves = [detection.rate_at(step, 90, "cosine") for step in (0, 45, 90)]
    assert halves == pytest.approx([1, 0.5, 0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("detection")
    scenes.write(root / "train", images=16, seed=0, empty=1)
    scenes.write(root / "test", images=8, seed=100, empty=1)
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrower pyramid and fewer regions, for the tests' time."""
    monkeypatch.setattr(detectors, "PYRAMID_CHANNELS", 64)
    monkeypatch.setattr(detectors, "REGIONS", 32)


def told(folder: Path, *, train: str = "boxes.json", test: str = "voc", **more: Any) -> Any:
    return DetectionSettings.model_validate(
        {
            "train": {"images": f"{folder}/train/images", "annotations": f"{folder}/train/{train}"},
            "test": {"images": f"{folder}/test/images", "annotations": f"{folder}/test/{test}"},
            "image_px": 48,
            "batch_size": 4,
            "learning_rate": 0.02,
            **more,
        }
    )


def run(settings: DetectionSettings, seed: int = 0, **more: Any) -> dict[str, float]:
    encoder = scenes.encoder(**more)
    return detection.detection(encoder, settings, ImageSettings(), seed, CPU)


def test_it_learns_to_find_rectangles(folder: Path) -> None:
    """Trained on COCO's JSON and tested on VOC's XML, at another size than the images have."""
    encoder = scenes.encoder()
    encoder.module.requires_grad_(False)  # as embedding leaves it
    before = encoders.weights_hash(encoder.module)
    figures = detection.detection(encoder, told(folder, epochs=6), ImageSettings(), 0, CPU)
    assert sorted(figures) == ["images", "mAP", "mAP50"]
    assert figures["images"] == 8
    assert figures["mAP50"] > 0.7
    assert 0.2 < figures["mAP"] < figures["mAP50"]
    assert encoders.weights_hash(encoder.module) == before
    assert not any(weight.requires_grad for weight in encoder.module.parameters())


def test_without_learning_it_finds_little(folder: Path) -> None:
    assert run(told(folder, epochs=1, learning_rate=1e-9))["mAP50"] < 0.3


def test_the_seed_decides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = []

    def look(model: Any, *_: Any) -> list[Detections]:
        hashes.append(encoders.weights_hash(model))
        return found_in(*[[]] * 8)

    monkeypatch.setattr(detection, "_detect", look)
    for seed in (0, 0, 1):
        torch.rand(len(hashes))  # what was drawn before does not matter
        state = torch.get_rng_state()
        run(told(folder, epochs=1, batch_size=8), seed)
        assert torch.equal(torch.get_rng_state(), state)
    assert hashes[0] == hashes[1] != hashes[2]


def test_all_of_the_network_is_trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its BatchNorm too, weights and statistics."""
    encoder = scenes.encoder()
    encoder.module.requires_grad_(False)
    bodies: list[dict[str, torch.Tensor]] = []

    def look(model: Any, *_: Any) -> list[Detections]:
        bodies.append(model.backbone.body.state_dict())
        return found_in(*[[]] * 8)

    monkeypatch.setattr(detection, "_detect", look)
    detection.detection(encoder, told(folder, epochs=1, batch_size=8), ImageSettings(), 0, CPU)
    before = encoder.module.state_dict()
    same = [name for name, value in bodies[0].items() if torch.equal(value, before[name])]
    assert len(bodies[0]) == len(before) and same == []


def test_as_the_authors_have_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RetinaNet learns on features that stay as they are, to the last average of BatchNorm."""
    settings = told(folder, preset="authors", epochs=20, learning_rate=0.001, image_px=64)
    assert (settings.detector, settings.optimizer, settings.crop) == ("retinanet", "adam", True)
    encoder, models = scenes.encoder(), []
    before = encoder.module.state_dict()
    detect = detection._detect

    def look(model: Any, *rest: Any) -> list[Detections]:
        models.append(model)
        return detect(model, *rest)

    monkeypatch.setattr(detection, "_detect", look)
    figures = detection.detection(encoder, settings, ImageSettings(), 0, CPU)
    assert figures["mAP50"] > 0.15
    body = models[0].backbone.body.state_dict()
    assert len(body) == len(before)
    assert all(torch.equal(value, before[name]) for name, value in body.items())


def test_a_window_holds_all_boxes() -> None:
    boxes = np.array([[30.0, 10, 60, 20], [50, 15, 80, 40]])
    scene = Scene("", boxes, np.zeros(2, np.int64), np.zeros(2, bool), (100, 50))
    rng = np.random.default_rng(0)
    windows = np.array([detection.window_around(scene, rng) for _ in range(200)]) * [
        100,
        50,
        100,
        50,
    ]
    assert (windows[:, :2] <= [30, 10]).all() and (windows[:, 2:] >= [80, 40]).all()
    assert windows.min() < 1 and windows[:, 0].max() > 29 and windows[:, 2].min() < 81
    nothing = Scene("", np.empty((0, 4)), np.empty(0, np.int64), np.empty(0, bool), (100, 50))
    assert detection.window_around(nothing, rng).tolist() == [0, 0, 1, 1]


def test_a_window_is_cut_with_its_boxes(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.png")
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[10:30, 20:60] = 255
    Image.fromarray(pixels).save(uri)
    box = np.array([[20.0, 10, 60, 30]])
    scene = Scene(uri, box, np.zeros(1, np.int64), np.zeros(1, bool), (100, 50))
    window = np.array([0.1, 0.2, 0.7, 0.8])  # 60 × 30 px from 10, 10
    found = detection._scaled(scene, 60, ImageSettings(), window)
    assert found.pixels.shape == (50, 100, 3)
    ratio = 100 / 60
    expected = [10 * ratio, 0, 50 * ratio, 20 * ratio]
    np.testing.assert_allclose(found.boxes.numpy(), [expected], atol=0.2)
    left, top, right, bottom = (round(edge) for edge in expected)
    assert (found.pixels[top + 2 : bottom - 2, left + 2 : right - 2] == 255).all()
    assert found.pixels[:, : left - 2].max() == found.pixels[bottom + 2 :].max() == 0


def test_a_sample_is_scaled_flipped_and_clipped(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.png")
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[10:30, 20:60] = 255
    Image.fromarray(pixels).save(uri)
    rows = [[20, 10, 60, 30], [90, 40, 130, 60], [120, 0, 140, 10], [1, 1, 1.4, 9], [0, 0, 9, 9]]
    ignored = np.array([False] * 4 + [True])
    scene = Scene(uri, np.array(rows, np.float64), np.arange(5), ignored, (100, 50))
    # 100 × 50 with a shorter side of 60 would be 120 wide, and 100 is the most
    plain = detection._scaled(scene, 60, ImageSettings())
    assert plain.pixels.shape == (50, 100, 3)
    plain = detection._scaled(scene, 25, ImageSettings())
    assert plain.pixels.shape == (21, 42, 3)
    turned = detection._scaled(scene, 100, ImageSettings(), flip=True)
    assert turned.pixels.shape == (84, 167, 3)
    np.testing.assert_allclose(turned.scale, [1.67, 1.68, 1.67, 1.68])
    x, y = 1.67, 1.68
    expected = [[40 * x, 10 * y, 80 * x, 30 * y], [0, 40 * y, 10 * x, 50 * y]]
    np.testing.assert_allclose(turned.boxes.numpy(), expected, atol=1e-4)
    assert turned.labels.tolist() == [1, 2]  # beyond the image, thin, and a crowd: not trained on
    left, top, right, bottom = (round(edge) for edge in expected[0])
    assert (turned.pixels[top + 2 : bottom - 2, left + 2 : right - 2] == 255).all()
    assert turned.pixels[:, : left - 2].max() == turned.pixels[:, right + 2 :].max() == 0


def test_anchors_go_by_what_the_network_sees() -> None:
    eye = scenes.encoder().preprocessing
    sizes = []
    for small_stem in (False, True):
        network = dense.resnet_of(scenes.encoder(small_stem=small_stem), "detection")
        model = detectors.faster_rcnn(network, 3, 96, eye)
        sizes.append(model.rpn.anchor_generator.sizes)
    assert sizes[0] == ((32,), (64,), (128,), (256,), (512,))  # the paper's
    assert sizes[1] == ((8,), (16,), (32,), (64,), (128,))
    network = dense.resnet_of(scenes.encoder(), "detection")
    levels = detectors.retinanet(network, 3, 96, eye).anchor_generator.sizes
    assert levels[0] == (32, 40, 50) and [level[0] for level in levels] == [32, 64, 128, 256, 512]


def test_deeper_networks_fit() -> None:
    network = dense.resnet_of(scenes.encoder("resnet50"), "detection")
    model = detectors.faster_rcnn(network, 3, 64, scenes.encoder().preprocessing).eval()
    with torch.inference_mode():
        [answer] = model([torch.zeros(3, 64, 80)])
    assert answer["boxes"].shape[1] == 4


def test_an_encoder_that_is_no_resnet(folder: Path) -> None:
    with pytest.raises(CurateError, match=r"protocols: detection needs a ResNet, .* VisionTransf"):
        run(told(folder), backbone="vit_tiny_patch16_224")


def test_without_pycocotools(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(CurateError, match=r"needs pycocotools; pip install 'curate\[eval\]'"):
        run(told(folder))


def test_a_loss_that_is_not_finite(folder: Path) -> None:
    with pytest.raises(CurateError, match=r"detection\.learning_rate=1e\+20: the loss is not fin"):
        run(told(folder, learning_rate=1e20, epochs=1, batch_size=2))


def test_annotations_that_do_not_fit(tmp_path: Path) -> None:
    for name in ("train", "test"):
        scenes.write(tmp_path / name, images=2, seed=0)
    path = tmp_path / "test" / "boxes.json"
    good = path.read_text()
    settings = told(tmp_path, test="boxes.json")

    def said(edit: Any) -> str:
        document = json.loads(good)
        edit(document)
        path.write_text(json.dumps(document))
        with pytest.raises(CurateError) as error:
            run(settings)
        assert "\n" not in str(error.value)
        return str(error.value)

    def rename(document: Any) -> None:
        document["categories"][0]["name"] = document["categories"][1]["name"] + "der"
        document["annotations"][0]["category_id"] = document["categories"][0]["id"]

    assert "detection.test.annotations: class 'blueder' is not in those of train" in said(rename)
    assert "detection.test.annotations: no box" in said(lambda d: d["annotations"].clear())
    crowds = said(lambda d: [entry.update(iscrowd=1) for entry in d["annotations"]])
    assert "detection.test.annotations: no box" in crowds
    turned = said(lambda d: d["images"][1].update(width=scenes.HEIGHT, height=scenes.WIDTH))
    assert "001.png: 80×64 px upright, and its annotations say 64×80; annotate" in turned
    path.write_text(good)
    (tmp_path / "test" / "images" / "001.png").write_bytes(b"\x89PNG")
    with pytest.raises(CurateError, match=r"test/images/001\.png: not an image .*; mend it"):
        run(settings)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    scenes.write(tmp_path / "train", images=2, seed=0, empty=2)
    scenes.write(tmp_path / "test", images=2, seed=0, empty=2)
    with pytest.raises(CurateError, match=r"detection\.train\.annotations: no box in any image"):
        run(told(tmp_path, test="boxes.json"))
