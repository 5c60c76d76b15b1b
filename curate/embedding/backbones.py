"""timm's networks by name, without their classifiers: images → features (N, D)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from timm.models import is_model_in_modules
from torch import nn

from curate.errors import CurateError, one_line

# Trained by the project's own tests; any other of timm's that gives one vector an image may do
TESTED = (
    *("resnet18", "resnet50", "resnet101", "resnext50_32x4d", "efficientnet_b0"),
    *("vit_tiny_patch16_224", "vit_base_patch16_224"),
)


@dataclass(frozen=True)
class Backbone:
    module: nn.Module  # (N, channels, px, px) → (N, feature_dim)
    feature_dim: int
    patch_px: int  # of a vision transformer; 1 for others
    mean: tuple[float, ...]  # of each channel, of 0…1
    std: tuple[float, ...]


def build_backbone(
    name: str,
    image_px: int,
    *,
    seed: int = 0,
    pretrained: bool = False,
    small_stem: bool = False,
    drop_path: float = 0.0,
    any_px: bool = False,
    pool: str | None = None,
    channels: int = 3,
    section: str = "encoder",
    pretrained_key: str = "pretrained=true",
) -> Backbone:
    """A backbone with random weights by the seed, or timm's pretrained ones.

    small_stem: see `with_small_stem`; drop_path: the rate of stochastic depth; any_px: a vision
    transformer interpolates its positions for images of other sizes; pool: its features are those
    of the class token, `token`, or the mean of its `patches`, and the model's own choice where
    None; channels: of images; for 1, pretrained weights of colours are summed up; section,
    pretrained_key: of the config, named in errors.

    Raises CurateError for an unknown name, an image size that it cannot take, or weights that
    cannot be had.
    """
    _check_name(name, section)
    more = _sized(name, image_px, any_px)
    if pool is not None:
        if not is_model_in_modules(name.split(".")[0], ["vision_transformer"]):
            raise CurateError(f"{section}.pool={pool}: for vision transformers only; leave it out")
        # Without a norm of its own, so that the weights are the same
        more |= {"global_pool": {"token": "token", "patches": "avg"}[pool], "fc_norm": False}
    if channels != 3:
        more["in_chans"] = channels
    if drop_path:
        more["drop_path_rate"] = drop_path
    try:
        with torch.random.fork_rng(devices=[]):  # the caller's own random numbers stay its own
            torch.manual_seed(seed)
            module = timm.create_model(name, pretrained=pretrained, num_classes=0, **more)
            if small_stem:
                with_small_stem(module)
        patch_px = _patch_px(module)
        if image_px % patch_px:
            raise AssertionError(f"not a multiple of its patches of {patch_px} px")
        feature_dim = _feature_dim(module, image_px, channels)
    except AssertionError as error:
        raise CurateError(
            f"{section}.image_px={image_px}: {name} cannot take it: {one_line(error)}"
        ) from error
    except CurateError as error:
        raise CurateError(f"{section}.{error}") from None
    except Exception as error:  # a model hub's client has many ways to fail
        what = f"{pretrained_key}: no weights" if pretrained else f"backbone={name}: not built"
        raise CurateError(
            f"{section}.{what}: {type(error).__name__}: {one_line(error, 200)}"
        ) from error
    config = cast("dict[str, Any]", module.pretrained_cfg)
    mean, std = (_of_channels(config[name], channels) for name in ("mean", "std"))
    return Backbone(module, feature_dim, patch_px, mean, std)


def _of_channels(colours: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Of grey images their mean, as timm has it."""
    return colours if channels == len(colours) else (sum(colours) / len(colours),) * channels


def _sized(name: str, image_px: int, any_px: bool) -> dict[str, Any]:
    """What a network of one size of image is told."""
    defaults = timm.get_pretrained_cfg(name)
    if not (defaults and defaults.fixed_input_size):
        return {}
    return {"img_size": image_px} | ({"dynamic_img_size": True} if any_px else {})


def _check_name(name: str, section: str) -> None:
    if timm.is_model(name.split(".")[0]):
        return
    close = difflib.get_close_matches(name, timm.list_models(), n=2, cutoff=0.5)
    likely = f"did you mean {' or '.join(close)}? " if close else ""
    raise CurateError(
        f"{section}.backbone={name}: timm knows no such model; {likely}"
        f"Tested here: {', '.join(TESTED)}"
    )


def with_small_stem(module: nn.Module) -> nn.Module:
    """Change a network's first layers to what images of 64 px and less want, as for CIFAR in the
    SimCLR paper (appendix B.9): a 3×3 convolution of stride 1, no pooling.

    Applied to a plain timm model, it makes it take an encoder that was trained with small_stem.
    """
    stem = getattr(module, "conv_stem", None)
    if isinstance(stem, nn.Conv2d):  # of an EfficientNet, 3×3 already
        stem.stride = (1, 1)
        return module
    first = getattr(module, "conv1", None)
    if not isinstance(first, nn.Conv2d) or not hasattr(module, "maxpool"):
        raise CurateError("small_stem=true: for ResNets and EfficientNets only; leave it out")
    conv = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    module.conv1 = conv
    module.maxpool = nn.Identity()
    return module


def _patch_px(module: nn.Module) -> int:
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    return int(patch[0]) if patch else 1


@torch.inference_mode()
def _feature_dim(module: nn.Module, px: int, channels: int) -> int:
    training = module.training
    features = module.eval()(torch.zeros(1, channels, px, px))
    module.train(training)
    if features.ndim != 2:
        raise AssertionError(f"its features have shape {tuple(features.shape)}, not (N, D)")
    return int(features.shape[1])
