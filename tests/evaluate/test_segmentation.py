"""Semantic segmentation: IoU by hand, dilation, crops, and a head that learns rectangles."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from curate.embedding import encoders
from curate.errors import CurateError
from curate.evaluate import dense, descent, segmentation
from curate.evaluate.deeplab import DeepLab
from curate.evaluate.masks import Masked
from curate.evaluate.segmentation import VOID, confusion_of, intersection_over_union
from curate.settings import ImageSettings, SegmentationSettings
from tests.evaluate import scenes

CPU = torch.device("cpu")


def test_iou_by_hand() -> None:
    truth = np.array([[0, 0, 0, 1], [1, 1, VOID, 2]], np.uint8)
    predicted = np.array([[0, 0, 1, 1], [1, 0, 2, 2]], np.uint8)
    confusion = confusion_of(truth, predicted, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    by_class = intersection_over_union(confusion)
    np.testing.assert_allclose(by_class, [2 / 4, 2 / 4, 1, np.nan])  # the last one is nowhere


def test_a_class_that_is_only_predicted_or_only_there_counts_as_missed() -> None:
    there = intersection_over_union(np.array([[3, 0, 0], [2, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(there, [3 / 5, 0, np.nan])
    predicted = intersection_over_union(np.array([[3, 2, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(predicted, [3 / 5, 0, np.nan])


def test_prediction_is_that_of_all_classes_at_once() -> None:
    logits = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(logits[None], (31, 45), mode="bilinear")[0]
    np.testing.assert_array_equal(segmentation.predict(logits, (31, 45)), whole.argmax(0))


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_dilation_sees_what_strides_saw(backbone: str) -> None:
    """At every fourth px the dilated network has, with the same weights, the features of the plain
    one; the px between are new."""
    network = dense.resnet_of(scenes.encoder(backbone), "segmentation").eval()
    finer = dense.dilated(network).eval()
    assert dense.strides_of(network) == [4, 8, 16, 32]
    assert dense.strides_of(finer) == [4, 8, 8, 8]
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        coarse, fine = network.forward_features(images), finer.forward_features(images)
    assert coarse.shape[2:] == (2, 3) and fine.shape[2:] == (8, 12)
    torch.testing.assert_close(fine[:, :, ::4, ::4], coarse, rtol=1e-4, atol=1e-4)


def test_a_small_stem_needs_no_dilation() -> None:
    network = dense.resnet_of(scenes.encoder(small_stem=True), "segmentation")
    assert dense.strides_of(network) == [1, 2, 4, 8]
    assert dense.dilated(network) is network


def test_crops_keep_image_and_mask_together(tmp_path: Path) -> None:
    """Each px of an image shows what its mask says, before and after; smaller ones are filled."""
    values = np.zeros((60, 90), np.uint8)
    values[:, 40:] = 3
    values[30:, :60] = 7
    Image.fromarray(values).save(tmp_path / "mask.png")
    Image.fromarray(np.repeat(values[..., None] * 30, 3, axis=2)).save(tmp_path / "image.png")
    pair = Masked(str(tmp_path / "image.png"), str(tmp_path / "mask.png"))
    table = np.full(256, -1, np.int64)
    table[[0, 3, 7]] = [0, 1, 2]
    legend = segmentation.Legend(["ground", "a", "b"], table)
    settings = told(tmp_path)
    seen, shares, corners = set(), [], set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sample = segmentation._crop(pair, legend, settings, ImageSettings(), (11, 12, 13), rng)
        assert sample.pixels.shape == (48, 48, 3) and sample.truth.shape == (48, 48)
        counted = sample.truth != VOID
        assert (sample.pixels[~counted] == (11, 12, 13)).all()
        shown = np.rint(sample.pixels[..., 0] / 30)
        alike = shown[counted] == np.array([0, 3, 7])[sample.truth[counted]]
        assert alike.mean() > 0.9  # all but at edges
        seen |= set(np.unique(sample.truth).tolist())
        shares.append(counted.mean())
        corners.add(int(sample.truth[0, 0]))
    assert seen == {0, 1, 2, VOID}
    assert min(shares) < 0.6 and max(shares) == 1  # half the size, and up to twice
    assert corners >= {0, 1, VOID}  # flipped, the filling is on the left


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("segmentation")
    scenes.write(root / "train", images=16, seed=0)
    scenes.write(root / "test", images=8, seed=100)
    return root


def told(folder: Path, **more: Any) -> SegmentationSettings:
    places = {
        name: {"images": f"{folder}/{name}/images", "annotations": f"{folder}/{name}/masks"}
        for name in ("train", "test")
    }
    small = {"image_px": 48, "batch_size": 4, "learning_rate": 0.02}
    return SegmentationSettings.model_validate({**places, **small, **more})


def run(settings: SegmentationSettings, seed: int = 0, **more: Any) -> dict[str, float]:
    encoder = scenes.encoder(**more)
    return segmentation.segmentation(encoder, settings, ImageSettings(), seed, CPU)


def test_it_learns_to_tell_rectangles_apart(folder: Path) -> None:
    encoder = scenes.encoder()
    encoder.module.requires_grad_(False)  # as embedding leaves it
    before = encoders.weights_hash(encoder.module)
    settings = told(folder, epochs=7, classes=["ground", "red", "blue", "unicorn"])
    figures = segmentation.segmentation(encoder, settings, ImageSettings(), 0, CPU)
    assert list(figures) == [
        *("mean IoU", "IoU ground", "IoU red", "IoU blue", "IoU unicorn", "images")
    ]
    assert figures["images"] == 8
    # To call everything ground has 0.9 of that class, and 0.3 on average
    assert figures["mean IoU"] > 0.5 and figures["IoU ground"] > 0.8
    counted = [figures[f"IoU {name}"] for name in ("ground", "red", "blue")]
    if math.isnan(figures["IoU unicorn"]):
        assert figures["mean IoU"] == pytest.approx(np.mean(counted))
    assert encoders.weights_hash(encoder.module) == before
    assert not any(weight.requires_grad for weight in encoder.module.parameters())


def test_as_the_authors_have_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepLabV3+ learns on weights that stay as they are; BatchNorm's averages alone move."""
    settings = told(folder, preset="authors", epochs=7, learning_rate=0.1, image_px=64)
    assert (settings.head, settings.nesterov, settings.weight_decay) == ("deeplabv3+", True, 1e-4)
    assert settings.scales == (128 / 224, 512 / 224)
    encoder, models = scenes.encoder(), []
    before = {name: value.clone() for name, value in encoder.module.state_dict().items()}
    confuse = segmentation._confusion

    def look(model: Any, *rest: Any) -> Any:
        models.append(model)
        return confuse(model, *rest)

    monkeypatch.setattr(segmentation, "_confusion", look)
    figures = segmentation.segmentation(encoder, settings, ImageSettings(), 0, CPU)
    assert figures["mean IoU"] > 0.4
    after = models[0].network.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert moved == {n for n in before if n.endswith(("mean", "var", "tracked"))}


@pytest.mark.parametrize("small_stem", [False, True])
def test_the_plus_head_sees_two_stages(small_stem: bool) -> None:
    """The last map at a sixteenth, where it is not finer as it is; the first one's size comes out,
    and both count."""
    network = dense.resnet_of(scenes.encoder(small_stem=small_stem), "segmentation")
    model = DeepLab(network, 3, scenes.encoder().preprocessing, plus=True).eval()
    strides = [1, 2, 4, 8] if small_stem else [4, 8, 16, 16]
    assert dense.strides_of(model.network) == strides
    pixels = torch.randint(0, 256, (1, 64, 96, 3), generator=torch.Generator().manual_seed(0))
    maps = []
    model.head.register_forward_pre_hook(lambda _, given: maps.append(given))
    with torch.inference_mode():
        logits = model(pixels.to(torch.uint8))
        assert logits.shape == (1, 3, 64 // strides[0], 96 // strides[0])
        first, last = maps[0]
        for changed in ((first * 2, last), (first, last * 2)):
            assert not torch.equal(model.head(*changed), logits)
    dilations = [m.dilation[0] for m in model.head.pyramid.modules() if hasattr(m, "dilation")]
    wide = [12, 24, 36] if small_stem else [6, 12, 18]
    assert [d for d in dilations if d > 1] == wide


def test_without_learning_it_tells_nothing_apart(folder: Path) -> None:
    figures = run(told(folder, epochs=1, learning_rate=1e-9))
    assert list(figures) == ["mean IoU", "IoU 0", "IoU 1", "IoU 2", "images"]  # values found
    assert figures["mean IoU"] < 0.4


def test_the_seed_decides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = []

    def look(model: Any, *_: Any) -> Any:
        hashes.append(encoders.weights_hash(model))
        return np.eye(3, dtype=np.int64)

    monkeypatch.setattr(segmentation, "_confusion", look)
    for seed in (0, 0, 1):
        torch.rand(len(hashes))  # what was drawn before does not matter
        state = torch.get_rng_state()
        run(told(folder, epochs=1, batch_size=16), seed)
        assert torch.equal(torch.get_rng_state(), state)
    assert hashes[0] == hashes[1] != hashes[2]


def test_ignored_pixels_count_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when tested nor when trained, and the value is no class, named or not."""
    for name in ("train", "test"):
        scenes.write(tmp_path / name, images=2, seed=4)  # one blue, one red
    settings = told(tmp_path, ignore=0, epochs=1, classes=["ground", "red", "blue"])
    seen = []
    descend = descent.descend

    def look(optimizer: Any, loss_of: Any, batches: Any, *rest: Any) -> None:
        batches = list(batches)
        seen.extend(batches)
        blank = [
            segmentation.MaskedPixels(one.pixels, np.full_like(one.truth, VOID))
            for one in batches[0]
        ]
        assert loss_of(blank).item() == 0
        descend(optimizer, loss_of, batches, *rest)

    monkeypatch.setattr(segmentation, "descend", look)
    figures = run(settings)
    assert list(figures) == ["mean IoU", "IoU red", "IoU blue", "images"]
    values = {int(v) for batch in seen for one in batch for v in np.unique(one.truth)}
    assert values <= {0, 1, VOID}
    assert list(run(told(tmp_path, ignore=0, epochs=1))) == ["mean IoU", "IoU 1", "IoU 2", "images"]


def spoil(path: str, values: Any, kind: str = "L") -> None:
    Image.fromarray(np.asarray(values, np.uint8)).convert(kind).save(path)


@pytest.mark.parametrize(
    ("spoiled", "more", "said"),
    [
        (
            {"test/masks/001.png": np.full((64, 80), 9)},
            {"classes": ["a", "b", "c"]},
            r"test/masks/001\.png: value 9 is none of the 3 classes; set evaluate\.segment",
        ),
        (
            {"test/masks/001.png": np.full((64, 80), 9)},
            {},
            r"test/masks/001\.png: value 9 is none of the 3 classes",
        ),
        (
            {"train/masks/001.png": np.full((64, 80), 9)},
            {"classes": ["a", "b", "c"]},
            r"train/masks/001\.png: value 9 is none of the 3 classes",
        ),
        (
            {"train/masks/001.png": np.zeros((8, 9))},
            {},
            r"train/masks/001\.png: 9×8 px, and its image is 80×64 px",
        ),
        (
            {"test/masks/000.png": np.zeros((80, 64))},
            {},
            r"test/masks/000\.png: 64×80 px, and its image is 80×64 px; make them alike",
        ),
        (
            {f"train/masks/00{i}.png": np.zeros((64, 80)) for i in range(3)},
            {},
            r"segmentation\.train: 1 class in all its masks \(0\), and two are the least",
        ),
        (
            {f"test/masks/00{i}.png": np.full((64, 80), 255) for i in range(3)},
            {},
            r"segmentation\.test: every pixel is of value 255",
        ),
        ({}, {"classes": ["a", "a", "b"]}, r"segmentation\.classes: at most 255 names, each once"),
        ({}, {"classes": ["a", "b"], "ignore": 1}, r"segmentation\.train: 1 class in all"),
        ({}, {"learning_rate": 1e20}, r"segmentation\.learning_rate=1e\+20: the loss is not fini"),
    ],
)
def test_sets_that_do_not_fit(tmp_path: Path, spoiled: Any, more: Any, said: str) -> None:
    for name in ("train", "test"):
        scenes.write(tmp_path / name, images=3, seed=0)
    Image.fromarray(np.ones((64, 80), np.uint8)).save(tmp_path / "train" / "masks" / "000.png")
    Image.fromarray(np.full((64, 80), 2, np.uint8)).save(tmp_path / "train" / "masks" / "001.png")
    for path, values in spoiled.items():
        spoil(str(tmp_path / path), values)
    settings = told(tmp_path, **{"epochs": 3, "batch_size": 2, **more})
    with pytest.raises(CurateError, match=said) as error:
        run(settings)
    assert "\n" not in str(error.value)


def test_one_image_to_train_on(tmp_path: Path) -> None:
    for name in ("train", "test"):
        scenes.write(tmp_path / name, images=1, seed=0)
    with pytest.raises(CurateError, match=r"segmentation\.train: one image, and BatchNorm needs"):
        run(told(tmp_path))


def test_an_encoder_that_is_no_resnet(folder: Path) -> None:
    with pytest.raises(CurateError, match=r"protocols: segmentation needs a ResNet, .* VisionTr"):
        run(told(folder), backbone="vit_tiny_patch16_224")
