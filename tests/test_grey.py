"""Grey images, of 8 and of 16 bits, kept as they are from the file to the encoder."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from curate.dataset.augment import Augment
from curate.dataset.crops import Crops
from curate.dataset.decoded import Decoded
from curate.dataset.smaller import smaller
from curate.dataset.views import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GREY,
    HUE,
    PARAMETERS,
    SATURATION,
    SOLARIZE,
    Box,
    Shape,
    crop,
)
from curate.embedding.backbones import build_backbone
from curate.embedding.embedder import Embedder
from curate.embedding.encoders import Card, Encoder, build
from curate.embedding.tensors import tensor_of
from curate.errors import CurateError
from curate.evaluate.stage import evaluate
from curate.export.encoder import export_encoder
from curate.images import EncodedImage, Preprocessing, Refused, resize_crop
from curate.methods import METHODS
from curate.pipeline import run
from curate.pretraining.begin import given
from curate.pretraining.trainer import Trainer
from curate.runfiles.files import EncoderFiles
from curate.settings import EncoderSettings, ImageSettings, TrainingSettings
from curate.settings import load as config
from curate.settings.recipe import View
from tests.datasets import shards_of
from tests.imagery import encode, every_format, picture
from tests.pretraining.test_trainer import crops_of, plan_of

FINE = ImageSettings(channels=1, bits=16)
COARSE = ImageSettings(channels=1)
CPU = torch.device("cpu")


def sixteen_bits(seed: int, height: int = 40, width: int = 56) -> NDArray[np.uint16]:
    """Smooth, all in a narrow band: 8 bits would leave four values of it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.random((5, 7)).astype(np.float32))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return (30_000 + 1000 * smooth.clip(0, 1)).astype(np.uint16)


def file_of(values: NDArray[np.uint16], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


# Files


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_what_the_file_holds(kind: str) -> None:
    values = sixteen_bits(0)
    assert values.max() - values.min() > 500
    fine = EncodedImage(file_of(values, kind), FINE).pixels()
    assert fine.dtype == np.uint16 and np.array_equal(fine[..., 0], values)
    coarse = EncodedImage(file_of(values, kind), COARSE).pixels()
    assert coarse.dtype == np.uint8 and np.array_equal(coarse[..., 0], values >> 8)


@pytest.mark.parametrize("name", sorted(every_format()))
def test_every_format_has_a_grey_picture(name: str) -> None:
    """Which is that of the colours; of 16 bits, over the whole range."""
    data = every_format()[name]
    grey, fine = (EncodedImage(data, limits).pixels() for limits in (COARSE, FINE))
    assert grey.shape == fine.shape == (32, 48, 1)
    colours = EncodedImage(data, ImageSettings()).decode()
    expected = np.asarray(colours.convert("L"), float)
    assert np.abs(grey[..., 0] - expected).mean() < 1.5  # a JPEG has a luma of its own
    assert np.abs(fine / 257 - grey).max() < 1


def test_a_jpeg_is_decoded_at_a_fraction_of_its_size() -> None:
    data = encode(picture(800, 640), "JPEG")
    assert EncodedImage(data, COARSE).pixels(80).shape == (160, 200, 1)
    with pytest.raises(Refused):
        EncodedImage(data[:2000], COARSE).pixels()


@pytest.mark.parametrize("side", [48, 200, 420])
def test_resized_by_floats(side: int) -> None:
    values = sixteen_bits(1, side, side + 13)[..., None]
    got = resize_crop(values, 32, 1.0)
    assert got.dtype == np.uint16 and got.shape == (32, 32, 1)
    coarse = resize_crop((values >> 8).astype(np.uint8), 32, 1.0)
    assert coarse.dtype == np.uint8 and np.abs(coarse - got / 256).max() < 2
    left = (values.shape[1] - side) // 2
    whole = torch.from_numpy(values[:, left : left + side].astype(np.float64))
    expected = torch.nn.functional.interpolate(
        whole.permute(2, 0, 1)[None], (32, 32), mode="bicubic", antialias=True
    )
    assert np.abs(got[..., 0] - expected[0, 0].numpy()).max() < 30  # of a band of 1,000


# Training


def test_crops_are_those_of_each_channel() -> None:
    """As of the same picture in colours, and finer."""
    box, shape = Box(3, 5, 30, 20, True, turns=1), Shape(View(1), 16)
    grey = np.asarray(picture().convert("L"))
    colours = crop(np.repeat(grey[..., None], 3, 2), box, shape)
    assert np.array_equal(crop(grey[..., None], box, shape)[..., 0], colours[..., 0])
    fine = crop(grey[..., None].astype(np.uint16) * 257, box, shape)
    assert fine.dtype == np.uint16 and np.abs(fine / 257 - colours[..., :1]).max() < 1.01


def parameters_of(**columns: float) -> torch.Tensor:
    known = {
        **{"brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION},
        **{"hue": HUE, "grey": GREY, "blur": BLUR, "solarize": SOLARIZE},
    }
    row = torch.zeros(1, PARAMETERS)
    row[:, :3] = 1
    row[:, 4:8] = torch.arange(4.0)
    for name, value in columns.items():
        row[:, known[name]] = value
    return row


@pytest.mark.parametrize(
    "change",
    [
        *({}, {"brightness": 1.3}, {"contrast": 0.6}, {"blur": 1.5}, {"solarize": 1.0}),
        *({"saturation": 0.2}, {"hue": 0.3}, {"grey": 1.0}),
    ],
)
def test_changes_are_those_of_a_grey_picture_in_colours(change: dict[str, float]) -> None:
    grey = np.asarray(picture(24, 24).convert("L"))[None, ..., None]
    one = Augment((0.5,), (0.25,), CPU, 224)(tensor_of(grey.copy()), parameters_of(**change))
    three = Augment((0.5,) * 3, (0.25,) * 3, CPU, 224)(
        tensor_of(np.repeat(grey, 3, 3)), parameters_of(**change)
    )
    assert one.shape == (1, 1, 24, 24)
    torch.testing.assert_close(one, three[:, :1], rtol=0, atol=2e-3 if change else 1e-6)


def test_16_bits_reach_the_network() -> None:
    values = sixteen_bits(2, 24, 24)[None, ..., None]
    values[0, 0, 0] = 65_535
    seen = Augment((0.0,), (1.0,), CPU, 224)(tensor_of(values), parameters_of())
    torch.testing.assert_close(
        seen[0, 0], torch.from_numpy(values[0, ..., 0].astype(np.float32) / 65_535)
    )


def test_decoded_images_keep_their_bits(tmp_path: Path) -> None:
    decoded = Decoded(tmp_path / "pixels", 3, 10_000, FINE)
    images = [sixteen_bits(n, 9 + n, 7)[..., None] for n in range(3)]
    for place, image in enumerate(images):
        decoded.put(place, image)
    for place, image in enumerate(images):
        found = decoded.get(place)
        assert found is not None and found.dtype == np.uint16 and np.array_equal(found, image)


def test_large_ones_are_made_smaller_without_a_loss_of_bits() -> None:
    values = sixteen_bits(3, 120, 200)
    fine = EncodedImage(smaller(file_of(values), 48, FINE), FINE).pixels()[..., 0]
    assert fine.dtype == np.uint16 and fine.shape == (48, 80)
    assert len(np.unique(fine)) > 200
    coarse = smaller(encode(picture(200, 120).convert("L"), "PNG"), 48, COARSE)
    with Image.open(io.BytesIO(coarse)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (80, 48))


@pytest.mark.parametrize("method", [name for name in METHODS if not METHODS[name].needs_teacher])
def test_every_method_trains_on_grey(method: str) -> None:
    vit = method in ("mae", "dinov2", "dino")
    plan = plan_of(method=method, backbone="vit_tiny_patch16_224" if vit else "resnet18")
    trainer = Trainer(replace(plan, channels=1, bits=16), CPU)
    colours = crops_of(trainer)
    fine = [view[..., :1].to(torch.int16) * 257 for view in colours.pixels]
    crops = Crops(
        fine, *(getattr(colours, n) for n in ("parameters", "ids", "labels", "noise")), []
    )
    loss, _, _ = trainer.step(crops)
    assert torch.isfinite(loss)
    assert len(trainer.mean) == 1


# Encoders


def test_an_embedder_sees_16_bits() -> None:
    """Two images that are one in 8 bits."""

    class Flat(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    seen = Preprocessing(4, 1.0, (0.5,), (0.5,), bits=16)
    embedder = Embedder(Encoder(Flat(), 16, seen), "cpu", 2)
    values = np.full((2, 4, 4, 1), 39_936, np.uint16)
    values[1, :2] += 200
    rows = embedder(values).astype(np.float64)
    assert (values >> 8).min() == (values >> 8).max()
    expected = (values.reshape(2, -1) / 65_535 - 0.5) / 0.5
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, expected, atol=5e-4)
    assert np.abs(rows[0] - rows[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_a_backbone_of_one_channel(name: str) -> None:
    built = build_backbone(name, 32, channels=1)
    assert len(built.mean) == len(built.std) == 1
    assert built.module(torch.zeros(2, 1, 32, 32)).shape == (2, built.feature_dim)
    if name == "resnet18":
        small = build_backbone(name, 32, channels=1, small_stem=True)
        assert small.module.conv1.in_channels == 1


@pytest.mark.parametrize(
    ("images", "encoder", "said"),
    [
        ({"bits": 16}, {}, "images: bits=16: of grey images alone; set channels: 1, or bits: 8"),
        ({}, {"channels": 1}, "encoder.channels=1: set images.channels"),
        (
            {"channels": 1},
            {"mean": [0.4, 0.5, 0.6]},
            "encoder.mean: of 3, and images.channels=1; set a",
        ),
        ({}, {"std": [0.5]}, "encoder.std: of 1, and images.channels=3; set a figure"),
    ],
)
def test_settings_that_do_not_fit(images: Any, encoder: Any, said: str) -> None:
    source = {"kind": "image_folder", "path": "x"}
    document = {"target": source, "open": [{"name": "u", **source}], "output": "y"}
    with pytest.raises(CurateError) as error:
        config.parse({**document, "images": images, "encoder": encoder}, "test")
    assert said in str(error.value)


def test_a_run_on_16_bits(tmp_path: Path, ray_session) -> None:
    """Curated, pretrained, evaluated, exported; embeddings are those of the files' values."""
    for name, seeds in (("target", range(16)), ("open", range(100, 130))):
        for seed in seeds:
            path = tmp_path / name / ("a", "b")[seed % 2] / f"{seed:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file_of(sixteen_bits(seed)))
    labelled = {"kind": "image_folder", "path": str(tmp_path / "target")}
    document = {
        "target": labelled,
        "open": [{"name": "u", "kind": "image_folder", "path": str(tmp_path / "open")}],
        "images": {"channels": 1, "bits": 16},
        "encoder": {"backbone": "resnet18", "image_px": 32, "crop_fraction": 1.0},
        "coreset": {"clusters": 4, "tau": None, "budget": 10},
        "output": str(tmp_path / "run"),
        "pretrain": {
            **{"method": "simclr", "preset": "simcore", "steps": 4, "batch_size": 8},
            **{"dataset": {"max_side": 36}, "resources": {"workers": 1, "use_gpu": False}},
        },
        "evaluate": {"train": labelled, "test": labelled, "k": [3], "seeds": 1},
    }
    settings = config.parse(document, "test")
    summary = run(settings)
    assert summary.outcome.selected == 10 and summary.pretrain.reduced == 26
    folder = tmp_path / "run" / "pretrain"
    card = json.loads((folder / "encoder.json").read_text())
    assert (card["channels"], card["bits"], len(card["mean"])) == (1, 16, 1)
    model = timm.create_model("resnet18", num_classes=0, in_chans=1)
    model.load_state_dict(load_file(folder / "encoder.safetensors"), strict=True)

    # The retrieval encoder has random weights by the seed
    first = build_backbone("resnet18", 32, channels=1)
    tables = [pa.ipc.open_file(path).read_all() for path in shards_of(tmp_path / "run", "target")]
    rows = [row for table in tables for row in table.select(["key", "embedding"]).to_pylist()]
    assert len(rows) == 16
    for key, embedding in (row.values() for row in rows):
        values = np.asarray(Image.open(tmp_path / "target" / key))[..., None]
        pixels = resize_crop(values, 32, 1.0).astype(np.float32) / 65_535
        x = (torch.from_numpy(pixels).permute(2, 0, 1)[None] - first.mean[0]) / first.std[0]
        with torch.no_grad():
            mine = nn.functional.normalize(first.module.eval()(x))[0].numpy()
        assert float(mine @ np.asarray(embedding, np.float32)) > 0.9999

    found = {one.metric: one.value for one in evaluate(settings)}
    assert set(found) >= {"linear probe, top1", "kNN, k = 3, top1"}
    exported = export_encoder(str(tmp_path / "run"), "onnx", str(tmp_path / "onnx"))
    assert '"images" (N, 1, 32, 32)' in exported.use and exported.difference < 1e-4
    other = config.parse({**document, "images": {}, "encoder": document["encoder"]}, "test")
    with pytest.raises(CurateError, match=r"^images\.channels=3: the encoder at .* sees 1; use"):
        evaluate(other)


def test_a_grey_teacher_is_of_grey_images(tmp_path: Path) -> None:
    folder = EncoderFiles(str(tmp_path))
    module = build_backbone("resnet18", 32, channels=1).module
    Encoder(module, 512, Preprocessing(32, 1.0, (0.5,), (0.5,))).save(folder.weights)
    Card(backbone="resnet18", image_px=32, mean=(0.5,), std=(0.5,), channels=1).write(folder)
    chosen = TrainingSettings(method="distill", teacher={"weights": str(tmp_path)})
    with pytest.raises(CurateError, match=r"^pretrain\.teacher\.weights=.*: sees grey images, and"):
        given(chosen, EncoderSettings(), "pretrain")
    grey = given(chosen, EncoderSettings(channels=1), "pretrain").teacher
    assert grey is not None and grey.preprocessing.mean == (0.5,)
    with pytest.raises(CurateError, match=r"^images\.channels=3: .*encoder\.json says 1; use that"):
        build(EncoderSettings(backbone="resnet18", image_px=32, checkpoint=str(tmp_path)))
