"""`curate export-encoder`: a trained encoder for tools that know nothing of this project.

What is written is loaded again and compared with the encoder, before it is put in its place.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.models import save_for_hf
from torch import Tensor, nn

from curate import storage
from curate.embedding import encoders
from curate.embedding.encoders import Card, Encoder
from curate.errors import CurateError, one_line
from curate.runfiles.files import EncoderFiles
from curate.settings import EncoderSettings

FORMATS = ("timm", "onnx")
BOUND = 1e-4  # by which an entry of unit features may differ
ONNX_NAME = "encoder.onnx"

Features = Callable[[Tensor], NDArray[np.float32]]  # (N, C, px, px) of 0…1 → (N, D)


@dataclass(frozen=True)
class Exported:
    folder: str
    names: list[str]
    difference: float  # the largest of unit features
    use: str

    def __str__(self) -> str:
        names, most = ", ".join(self.names), f"{self.difference:.1g}"
        return f"{names} in {self.folder}; features differ by {most} at most\n{self.use}"


def export_encoder(place: str, form: str, to: str) -> Exported:
    """place: the folder of an encoder made here, or of a run that has pretrained one.

    Raises CurateError for another format, a place without an encoder, one that the format cannot
    say, libraries that are not installed, and features that are not the encoder's.
    """
    if form not in FORMATS:
        raise CurateError(f"--format {form}: must be {' or '.join(FORMATS)}")
    folder = encoders.folder_of(place)
    card = Card.read(EncoderFiles(folder))
    if card is None:
        raise CurateError(
            f"{place}: no encoder that was trained here: give a run's output after `curate "
            "pretrain`, or a folder with encoder.json"
        )
    settings = encoders.described(folder, EncoderSettings())
    encoder = encoders.build(settings)
    with tempfile.TemporaryDirectory(prefix="curate-export-") as scratch:
        if form == "timm":
            again = _as_timm(encoder, card, Path(scratch))
            use = f'timm.create_model("local-dir:{to}", pretrained=True)'
        else:
            again = _as_onnx(encoder, Path(scratch))
            size = ", ".join(map(str, _size_of(encoder)))
            use = f'{ONNX_NAME}: "images" (N, {size}), of 0…1 → "features"'
        difference = _difference(encoder, again)
        if not difference <= BOUND:
            raise CurateError(
                f"{place}: what was exported gives other features: by {difference:.2g}, over "
                f"{BOUND:g}; nothing is written"
            )
        files = sorted(Path(scratch).iterdir())
        for file in files:
            storage.write_bytes(storage.join(to, file.name), file.read_bytes())
    return Exported(to, [file.name for file in files], difference, use)


def _as_timm(encoder: Encoder, card: Card, folder: Path) -> Features:
    """model.safetensors and config.json, as timm and Hugging Face's hub have them."""
    if card.small_stem:
        raise CurateError(
            "--format timm: timm has no network with a small stem; take --format onnx, or "
            "curate.embedding.backbones.with_small_stem on timm's"
        )
    seen = encoder.preprocessing
    pixels = {
        "input_size": (len(seen.mean), seen.image_px, seen.image_px),
        "mean": seen.mean,
        "std": seen.std,
        "crop_pct": card.crop_fraction or seen.crop_fraction,
        "interpolation": "bicubic",
    }
    save_for_hf(encoder.module, str(folder), safe_serialization=True, data_config=pixels)
    module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return _by(_Normalised(module, encoder))


def _as_onnx(encoder: Encoder, folder: Path) -> Features:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # what torch exports by
    except ImportError as error:
        raise CurateError(
            f"--format onnx: {one_line(error)}; install them with pip install 'curate[onnx]'"
        ) from error
    path = folder / ONNX_NAME
    images = torch.rand(2, *_size_of(encoder))
    torch.onnx.export(
        _Normalised(encoder.module, encoder).eval(),
        (images,),
        str(path),
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes={"images": {0: torch.export.Dim("N")}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: np.asarray(session.run(["features"], {"images": x.numpy()})[0])


class _Normalised(nn.Module):
    """An encoder that takes pixels of 0…1."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, encoder: Encoder) -> None:
        super().__init__()
        self.module = module
        seen = encoder.preprocessing
        self.register_buffer("mean", torch.tensor(seen.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(seen.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.module((images - self.mean) / self.std)
        return features


def _by(module: nn.Module) -> Features:
    def features(images: Tensor) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = module.eval()(images).numpy()
        return found

    return features


def _difference(encoder: Encoder, again: Features) -> float:
    """On noise, of one image and of several."""
    own = _by(_Normalised(encoder.module, encoder))
    most = 0.0
    for n in (1, 5):
        images = torch.rand(n, *_size_of(encoder), generator=torch.Generator().manual_seed(n))
        a, b = (_unit(features(images)) for features in (own, again))
        most = max(most, float(np.abs(a - b).max()))
    return most


def _size_of(encoder: Encoder) -> tuple[int, int, int]:
    px = encoder.preprocessing.image_px
    return len(encoder.preprocessing.mean), px, px


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    return features / np.linalg.norm(features, axis=1, keepdims=True)
