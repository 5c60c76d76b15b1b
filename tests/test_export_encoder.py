"""Encoders for other tools: opened by these, on a photograph, with the features that they had."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_model_data_config

from curate import storage
from curate.cli import main
from curate.embedding import encoders
from curate.embedding.encoders import Card
from curate.errors import CurateError
from curate.export import encoder as module
from curate.export.encoder import BOUND, export_encoder
from curate.images import EncodedImage
from curate.runfiles.files import EncoderFiles, RunFiles
from curate.settings import EncoderSettings, ImageSettings

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def trained(folder: Path, backbone: str, image_px: int = 32, **more: Any) -> EncoderSettings:
    """An encoder as a training leaves it."""
    files = EncoderFiles(str(folder))
    settings = EncoderSettings(
        backbone=backbone, image_px=image_px, mean=MEAN, std=STD, seed=7, crop_fraction=0.9, **more
    )
    encoders.build(settings).save(files.weights)
    Card(
        *(backbone, settings.small_stem, image_px),
        crop_fraction=0.9,
        mean=MEAN,
        std=STD,
    ).write(files)
    return settings


def photograph() -> bytes:
    file = io.BytesIO()
    Image.fromarray(load_sample_image("flower.jpg")).save(file, "JPEG", quality=95)
    return file.getvalue()


def unit(features: Any) -> NDArray[np.float32]:
    rows = np.asarray(features, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def own_pixels(settings: EncoderSettings) -> NDArray[np.uint8]:
    seen = encoders.build(settings).preprocessing
    return seen.pixels(EncodedImage(photograph(), ImageSettings()))


@torch.inference_mode()
def own_features(settings: EncoderSettings) -> NDArray[np.float32]:
    found = encoders.build(settings)
    pixels = torch.from_numpy(own_pixels(settings)).permute(2, 0, 1).unsqueeze(0) / 255
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
    return unit(found.module((pixels - mean) / std))


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet", "efficientnet_b0"])
def test_timm_opens_it(tmp_path: Path, backbone: str) -> None:
    """With the pixels that it was trained on: timm's own transform gives much the same features."""
    settings = trained(tmp_path / "own", backbone, 64)
    to = tmp_path / "timm"
    made = export_encoder(str(tmp_path / "own"), "timm", str(to))
    assert {file.name for file in to.iterdir()} == {"config.json", "model.safetensors"}
    assert made.difference <= BOUND and f"local-dir:{to}" in str(made)
    found = timm.create_model(f"local-dir:{to}", pretrained=True).eval()
    told = resolve_model_data_config(found)
    assert told["input_size"] == (3, 64, 64)
    assert (tuple(told["mean"]), tuple(told["std"])) == (MEAN, STD)
    assert (told["crop_pct"], told["interpolation"]) == (0.9, "bicubic")
    image = create_transform(**told)(Image.open(io.BytesIO(photograph())))
    with torch.inference_mode():
        features = unit(found(image.unsqueeze(0)))
    assert float((features * own_features(settings)).sum()) > 0.99


@pytest.mark.parametrize(
    ("backbone", "more"), [("test_vit", {}), ("resnet18", {"small_stem": True})]
)
def test_onnxruntime_runs_it(tmp_path: Path, backbone: str, more: dict[str, Any]) -> None:
    """In batches of any size, on pixels of 0…1."""
    settings = trained(tmp_path / "own", backbone, **more)
    to = tmp_path / "onnx"
    made = export_encoder(str(tmp_path / "own"), "onnx", str(to))
    assert made.names == ["encoder.onnx"] and made.difference <= BOUND
    session = onnxruntime.InferenceSession(str(to / "encoder.onnx"))
    pixels = own_pixels(settings).transpose(2, 0, 1)[None].astype(np.float32) / 255
    for n in (1, 7):
        (features,) = session.run(["features"], {"images": np.repeat(pixels, n, 0)})
        assert np.abs(unit(features) - own_features(settings)).max() <= BOUND


def test_of_a_run_to_any_filesystem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(Path(RunFiles(str(tmp_path / "run")).pretrain.folder), "test_vit")
    to = "memory://exported/timm"
    assert main(["export-encoder", str(tmp_path / "run"), "--format", "timm", "--to", to]) == 0
    assert storage.names_in(to) == {"config.json", "model.safetensors"}
    assert "config.json, model.safetensors in memory://" in capsys.readouterr().out


def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    trained(own, "resnet18", small_stem=True)
    for place, form, said in (
        (own, "timm", "--format timm: timm has no network with a small stem; take --format onnx"),
        (own, "jax", "--format jax: must be timm or onnx"),
        (tmp_path, "timm", f"{tmp_path}: no encoder that was trained here: give a run's output"),
    ):
        with pytest.raises(CurateError) as refused:
            export_encoder(str(place), form, str(tmp_path / "to"))
        assert str(refused.value).startswith(said) and "\n" not in str(refused.value)
    trained(own, "test_vit")
    timms = module._as_timm
    monkeypatch.setattr(
        module, "_as_timm", lambda *given: lambda images: timms(*given)(images.flip(1))
    )
    with pytest.raises(CurateError, match=r"gives other features: by .* nothing is written"):
        export_encoder(str(own), "timm", str(tmp_path / "to"))
    assert not (tmp_path / "to").exists()
