"""Backbones by name, checkpoints in and refused, and the arithmetic of an embedding."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from curate import storage
from curate.embedding import encoders
from curate.embedding.embedder import Embedder
from curate.embedding.encoders import Encoder, build, rebuild, weights_hash
from curate.errors import CurateError
from curate.images import Preprocessing
from curate.settings import EncoderSettings


def settings(backbone: str = "resnet18", image_px: int = 32, **more: Any) -> EncoderSettings:
    return EncoderSettings(backbone=backbone, image_px=image_px, **more)


def images(n: int, image_px: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, image_px, image_px, 3), dtype=np.uint8)


def error_of(settings: EncoderSettings) -> str:
    with pytest.raises(CurateError) as error:
        build(settings)
    message = str(error.value)
    assert message.startswith("encoder.") and "\n" not in message
    return message


# Architectures


@pytest.mark.parametrize(
    ("backbone", "feature_dim"),
    [
        ("resnet18", 512),
        pytest.param("efficientnet_b0", 1280, marks=pytest.mark.slow),
        ("vit_tiny_patch16_224", 192),
        pytest.param("resnet50", 2048, marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", 2048, marks=pytest.mark.slow),
        pytest.param("resnet101", 2048, marks=pytest.mark.slow),
        pytest.param("vit_base_patch16_224", 768, marks=pytest.mark.slow),
    ],
)
def test_backbones(backbone: str, feature_dim: int) -> None:
    encoder = build(settings(backbone))
    assert encoder.feature_dim == feature_dim
    first = Embedder(encoder, "cpu", 8)(images(3))
    again = Embedder(build(settings(backbone)), "cpu", 8)(images(3))
    assert first.shape == (3, feature_dim) and first.dtype == np.float16
    assert np.allclose(np.linalg.norm(first.astype(np.float32), axis=1), 1, atol=2e-3)
    assert (first == again).all(), "one seed, one encoder"
    assert not (first[0] == first[1]).all()


def test_seeds_and_the_callers_own_random_numbers() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    hashes = [weights_hash(build(settings(seed=seed)).module) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert (torch.rand(3) == expected).all()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (settings("resnet51"), "encoder.backbone=resnet51: timm knows no such model; did you mean"),
        (settings("resnet_18"), "resnet18"),
        (settings("vit_tiny_patch16_224", image_px=40), "not a multiple of its patches of 16 px"),
        (settings("vit_tiny_patch16_224", image_px=8), "encoder.image_px=8: vit_tiny_patch16_224"),
    ],
)
def test_refused_architectures(chosen: EncoderSettings, message: str) -> None:
    assert message in error_of(chosen)


@pytest.mark.parametrize("image_px", [48, 224])
def test_vits_take_any_multiple_of_their_patch(image_px: int) -> None:
    assert build(settings("vit_tiny_patch16_224", image_px)).feature_dim == 192


def test_preprocessing_is_the_backbones_unless_it_is_set() -> None:
    vit = build(settings("vit_tiny_patch16_224", crop_fraction=0.9)).preprocessing
    assert vit == Preprocessing(32, 0.9, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    own = build(settings(mean=(0.1, 0.2, 0.3), std=(1, 2, 3))).preprocessing
    assert (own.mean, own.std) == ((0.1, 0.2, 0.3), (1, 2, 3))


def test_rebuilt_on_another_machine(tmp_path: Path) -> None:
    encoder = build(settings(seed=5))
    for uri in (str(tmp_path / "e.safetensors"), "memory://rebuilt/e.safetensors"):
        encoder.save(uri)
        assert weights_hash(rebuild(settings(), uri).module) == weights_hash(encoder.module)


# Checkpoints

SOURCE = settings(seed=99)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return build(SOURCE).module.state_dict()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@cache
def blank() -> nn.Module:
    """One for all: making it takes longer than filling it."""
    return build(settings()).module


def load(settings: EncoderSettings) -> dict[str, Tensor]:
    """What a checkpoint makes of a module of zeros."""
    for value in blank().state_dict().values():
        value.zero_()
    encoders._load_checkpoint(blank(), settings, encoders.KEYS)
    return blank().state_dict()


def test_built_from_a_checkpoint(state: dict[str, Tensor]) -> None:
    save("memory://built/e.pt", state)
    built = build(settings(checkpoint="memory://built/e.pt")).module
    assert weights_hash(built) == weights_hash(build(SOURCE).module) != weights_hash(blank())


HEADS = {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}

WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 7, "optimizer": {"lr": 0.1, "state": {}}},
    "model": lambda s: {"model": s},
    "data parallel": lambda s: {"state_dict": prefixed(s, "module.")},
    "moco": lambda s: {"state_dict": prefixed(s | HEADS, "module.encoder_q.")},
    "lightning": lambda s: {
        "state_dict": prefixed(s, "backbone.") | {"projector.0.weight": torch.zeros(3, 3)},
        "hyper_parameters": {"lr": 1},
    },
    "classifier": lambda s: s | HEADS,
    "no counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "half": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    "nested": lambda s: {"encoder": s, "step": 3},
    "beside a momentum encoder": lambda s: s | prefixed(s, "momentum."),
}


@pytest.mark.parametrize("wrapping", sorted(WRAPPINGS))
def test_pt_files(state: dict[str, Tensor], wrapping: str) -> None:
    uri = f"memory://{wrapping}/e.pt"
    save(uri, WRAPPINGS[wrapping](state))
    loaded = load(settings(checkpoint=uri))
    tolerance = 1e-3 if wrapping == "half" else 0
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.allclose(loaded[key], value, atol=tolerance, rtol=tolerance), key


@pytest.mark.parametrize("protocol", ["local", "memory"])
@pytest.mark.parametrize("layout", ["file", "folder", "folder/", "no card"])
def test_safetensors(state: dict[str, Tensor], tmp_path: Path, layout: str, protocol: str) -> None:
    root = str(tmp_path) if protocol == "local" else f"memory://safe-{layout.strip('/')}"
    storage.write_bytes(f"{root}/encoder.safetensors", safetensors.torch.save(state))
    if layout.startswith("folder"):
        storage.write_bytes(f"{root}/encoder.json", json.dumps({"backbone": "resnet18"}).encode())
    path = {"file": f"{root}/encoder.safetensors", "folder/": f"{root}/"}.get(layout, root)
    loaded = load(settings(checkpoint=path))
    assert all((loaded[key] == value).all() for key, value in state.items())


def test_vit_checkpoints(tmp_path: Path) -> None:
    vit = build(settings("vit_tiny_patch16_224", seed=3))
    save(f"{tmp_path}/vit.pt", vit.module.state_dict() | {"head.weight": torch.zeros(9, 192)})
    again = build(settings("vit_tiny_patch16_224", checkpoint=f"{tmp_path}/vit.pt"))
    assert weights_hash(again.module) == weights_hash(vit.module)
    message = error_of(settings("vit_tiny_patch16_224", 48, checkpoint=f"{tmp_path}/vit.pt"))
    assert "pos_embed" in message and "at 48 px" in message


class _Code:
    """What runs on its own when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def refused_checkpoints(folder: Path, state: dict[str, Tensor]) -> dict[str, tuple[str, str]]:
    """Name → (path, what the error says)."""
    with torch.device("meta"):  # only their names and shapes matter
        others = [timm.create_model(n) for n in ("resnet34", "resnet50", "vit_tiny_patch16_224")]
    deeper, wider, vit = (
        {name: torch.zeros(()).expand(value.shape) for name, value in other.state_dict().items()}
        for other in others
    )
    whole = safetensors.torch.save(state)
    files: dict[str, tuple[Any, str]] = {
        "deeper.pt": (deeper, "not a resnet18: has layer1.2"),
        "wider.pt": (prefixed(wider, "module."), "encoder.backbone"),
        "vit.pt": (vit, "lacks"),
        "two.pt": (prefixed(state, "student.") | prefixed(state, "teacher."), "several encoders"),
        "half.pt": (dict(list(state.items())[:40]), "lacks"),
        "empty.pt": ({}, "lacks"),
        "number.pt": (7, "lacks"),
        "code.pt": ({"w": _Code(str(folder / "ran"))}, "not a checkpoint of weights alone"),
    }
    for name, (content, _) in files.items():
        save(str(folder / name), content)
    raw: dict[str, tuple[bytes, str]] = {
        "cut.pt": ((folder / "half.pt").read_bytes()[:5000], "not a checkpoint of weights"),
        "html.pt": (b"<html>", "not a checkpoint of weights"),
        "nothing.pt": (b"", "not a checkpoint of weights"),
        "pickle.pt": (
            pickle.dumps(_Code(str(folder / "ran")), protocol=2),
            "not a checkpoint of weights",
        ),
        "cut.safetensors": (whole[:-100], "damaged"),
        "html.safetensors": (b"<html></html>", "damaged"),
    }
    for name, (data, _) in raw.items():
        (folder / name).write_bytes(data)
    cards = {"other": b'{"backbone": "resnet50"}', "broken": b"{", "list": b"[1]"}
    for name, card in cards.items():
        (folder / name).mkdir()
        (folder / name / "encoder.safetensors").write_bytes(whole)
        (folder / name / "encoder.json").write_bytes(card)
    says = {name: says for name, (_, says) in (files | raw).items()}
    says |= {"other": "says resnet50", "broken": "damaged", "list": "damaged"}
    says |= {"missing.pt": "no such file", "missing/": "no such file"}
    return {name: (f"{folder}/{name}", message) for name, message in says.items()}


def test_refused_checkpoints(state: dict[str, Tensor], tmp_path: Path) -> None:
    for name, (path, says) in refused_checkpoints(tmp_path, state).items():
        with pytest.raises(CurateError) as error:
            load(settings(checkpoint=path))
        message = str(error.value)
        assert message.startswith("encoder.") and "\n" not in message
        assert says in message and name.split(".")[0] in message, (name, message)
    assert not (tmp_path / "ran").exists(), "loading a checkpoint ran its code"
    assert not any(value.any() for value in blank().state_dict().values()), "half filled"


def save(uri: str, content: Any) -> None:
    file = io.BytesIO()
    torch.save(content, file)
    storage.write_bytes(uri, file.getvalue())


# Embeddings


class _Small(nn.Module):
    """Features that are simple to foresee; out of memory for more than `room` images at once."""

    def __init__(self, room: int = 10**6) -> None:
        super().__init__()
        self.room, self.batches = room, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(x))
        return x.flatten(1)


def embedder(module: nn.Module, batch_size: int = 64, **preprocessing: Any) -> Embedder:
    given = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)} | preprocessing
    return Embedder(Encoder(module, 48, Preprocessing(4, 1.0, **given)), "cpu", batch_size)


def test_preprocessing_is_torchvisions() -> None:
    pixels = images(5, 4)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.5, 1.0)
    normalise = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    )
    features = torch.stack([normalise(image) for image in pixels]).flatten(1)
    expected = nn.functional.normalize(features, dim=1).numpy()
    got = embedder(_Small(), mean=mean, std=std)(pixels)
    assert got.dtype == np.float16
    # float16 of a number below 1 is within 2^-12 of it; the arithmetic before it within 1e-6
    assert np.abs(got.astype(np.float32) - expected).max() <= 2**-12 + 1e-6


@pytest.mark.parametrize("room", [1, 3, 16, 40, 64])
@pytest.mark.parametrize("n", [1, 5, 64, 100])
def test_out_of_memory_halves_the_batch(room: int, n: int) -> None:
    pixels = images(n, 4)
    small = _Small(room)
    embed = embedder(small)
    assert (embed(pixels) == embedder(_Small())(pixels)).all(), "rows in order, none twice"
    assert sum(small.batches) == n and max(small.batches) <= room
    small.batches.clear()
    embed(pixels)
    assert max(small.batches) <= room and embed.batch_size >= min(room, n) // 2, "for good"


def test_one_image_out_of_memory_is_an_error() -> None:
    with pytest.raises(CurateError, match="one image does not fit"):
        embedder(_Small(room=0))(images(3, 4))


def test_dead_and_overflowing_embeddings_are_nan() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            features = torch.ones(5, 48)
            features[1] = 0
            features[2] = 1e30  # finite, and its norm is not
            features[3, 7] = torch.nan
            features[4, 7] = torch.inf
            return features

    rows = embedder(Odd())(images(5, 4))
    assert np.isfinite(rows).all(axis=1).tolist() == [True, False, False, False, False]


def test_batches_do_not_change_an_embedding() -> None:
    """To a unit in the last place of float16: sums run in another order."""
    encoder = build(settings())
    pixels = images(7)
    one, many = (Embedder(encoder, "cpu", size)(pixels).astype(float) for size in (1, 7))
    assert np.abs(one - many).max() < 2e-3
