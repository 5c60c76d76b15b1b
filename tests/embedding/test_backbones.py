"""timm's networks as the project builds them: features, weights by a seed, small stems, errors."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from curate.embedding.backbones import TESTED, build_backbone, with_small_stem
from curate.errors import CurateError

# Width of the features, by the papers
FEATURES = {
    "resnet18": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "resnext50_32x4d": 2048,
    "efficientnet_b0": 1280,
    "vit_tiny_patch16_224": 192,
    "vit_base_patch16_224": 768,
}


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in module.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    there = b.state_dict()
    return all(torch.equal(weight, there[name]) for name, weight in a.state_dict().items())


def stride_of(module: nn.Module, px: int = 64) -> int:
    """How many px of an image one place of the last feature map stands for."""
    with torch.no_grad():
        features = module.eval().forward_features(torch.zeros(1, 3, px, px))  # type: ignore[operator]
    return px // int(features.shape[-1])


def error_of(name: str, image_px: int = 32, **options: object) -> str:
    with pytest.raises(CurateError) as error:
        build_backbone(name, image_px, **options)  # type: ignore[arg-type]
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", TESTED)
def test_features_of_every_tested_one(name: str) -> None:
    found = build_backbone(name, 32)
    assert found.feature_dim == FEATURES[name]
    assert found.patch_px == (16 if name.startswith("vit") else 1)
    with torch.no_grad():
        features = found.module.eval()(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, found.feature_dim) and features.std() > 0
    assert len(found.mean) == len(found.std) == 3
    assert found.module.state_dict().keys() == (
        timm.create_model(name, num_classes=0, pretrained=False).state_dict().keys()
    )


def test_the_pixels_that_a_backbone_was_made_for() -> None:
    """ImageNet's figures for a ResNet, and a half for timm's vision transformers."""
    assert build_backbone("resnet18", 32).mean == (0.485, 0.456, 0.406)
    assert build_backbone("resnet18", 32).std == (0.229, 0.224, 0.225)
    assert build_backbone("vit_tiny_patch16_224", 32).mean == (0.5, 0.5, 0.5)


@torch.no_grad()
def test_what_is_pooled_of_a_vision_transformer() -> None:
    """Of the same weights: the class token by itself, or the mean of all that is no class token."""
    images = torch.randn(2, 3, 32, 32)
    own, token, patches = (
        build_backbone("test_vit", 32, seed=3, pool=pool).module.eval()
        for pool in (None, "token", "patches")
    )
    assert same(own, token) and same(own, patches)
    tokens = own.forward_features(images)  # type: ignore[operator]
    assert tokens.shape[1] == 1 + 2 * 2
    assert torch.equal(token(images), tokens[:, 0])
    assert torch.allclose(patches(images), tokens[:, 1:].mean(1), atol=1e-6)
    expected = "encoder.pool=patches: for vision transformers only; leave it out"
    assert error_of("resnet18", pool="patches") == expected


# Weights


def test_seed_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = build_backbone("resnet18", 32, seed=5)
    torch.manual_seed(2)
    assert same(first.module, build_backbone("resnet18", 64, seed=5).module)
    assert not same(first.module, build_backbone("resnet18", 32, seed=6).module)


def test_the_callers_random_numbers_stay_its_own() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_backbone("resnet18", 32, seed=5, small_stem=True)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_looking_at_the_features_changes_nothing(name: str) -> None:
    """Neither running averages nor the mode, and of a transformer no position."""
    found = build_backbone(name, 32)
    assert found.module.training
    for weight, value in found.module.state_dict().items():
        if weight.endswith("running_mean"):
            assert not value.any()
        if weight.endswith("num_batches_tracked"):
            assert value == 0
    assert not any(weight.is_inference() for weight in found.module.parameters())


# Small stems


@pytest.mark.parametrize(
    ("name", "plain", "small"), [("resnet18", 32, 8), ("efficientnet_b0", 32, 16)]
)
def test_small_stem_keeps_more_places(name: str, plain: int, small: int) -> None:
    """A ResNet's stem divides by 4 and its small one by none; an EfficientNet's by 2."""
    assert stride_of(build_backbone(name, 64).module) == plain
    found = build_backbone(name, 64, small_stem=True)
    assert stride_of(found.module) == small
    assert found.feature_dim == FEATURES[name]


def test_small_stem_is_simclrs() -> None:
    """Appendix B.9: 3×3 convolution of stride 1 in place of 7×7 of stride 2, no max pooling."""
    stem = build_backbone("resnet50", 32, small_stem=True).module.conv1
    assert isinstance(stem, nn.Conv2d) and stem.bias is None
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    assert stem.out_channels == 64
    module = build_backbone("resnet18", 32, small_stem=True).module
    assert not any(isinstance(part, nn.MaxPool2d) for part in module.modules())


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "efficientnet_b0"])
def test_small_stem_weights_load_into_timms_own_model(name: str) -> None:
    """What users do with an encoder: a plain timm model, its stem changed, loads it strictly."""
    trained = build_backbone(name, 32, seed=7, small_stem=True).module
    plain = timm.create_model(name, num_classes=0)
    assert with_small_stem(plain) is plain
    plain.load_state_dict(trained.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), trained.eval()(x))


def test_small_stem_is_by_the_seed() -> None:
    first, again, other = (
        build_backbone("resnet18", 32, seed=seed, small_stem=True).module for seed in (1, 1, 2)
    )
    assert same(first, again) and not torch.equal(first.conv1.weight, other.conv1.weight)


# Vision transformers


def test_transformers_take_other_sizes_where_they_may() -> None:
    fixed = build_backbone("vit_tiny_patch16_224", 64)
    assert fixed.module.pos_embed.shape[1] == 1 + 4 * 4
    with pytest.raises(AssertionError):
        fixed.module(torch.zeros(1, 3, 32, 32))
    free = build_backbone("vit_tiny_patch16_224", 64, any_px=True)
    with torch.no_grad():
        for px in (32, 64, 96):
            assert free.module(torch.zeros(1, 3, px, px)).shape == (1, 192)
    assert same(fixed.module, free.module)


def test_drop_path_is_stochastic_depth() -> None:
    """In training alone, and without it the network is the same."""
    plain = build_backbone("vit_tiny_patch16_224", 32, seed=1).module
    dropping = build_backbone("vit_tiny_patch16_224", 32, seed=1, drop_path=0.5).module
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(dropping.train()(x), dropping(x))
        assert torch.equal(plain.train()(x), plain(x))
        assert torch.equal(dropping.eval()(x), plain.eval()(x))


# What cannot be built


def test_unknown_names() -> None:
    message = error_of("resnet81")
    assert message.startswith("encoder.backbone=resnet81: timm knows no such model; did you mean ")
    assert message.endswith(f"Tested here: {', '.join(TESTED)}")
    assert "did you mean" not in error_of("qqqqqqqq")
    assert error_of("qqqqqqqq", section="pretrain").startswith("pretrain.backbone=qqqqqqqq: ")


@pytest.mark.parametrize("any_px", [False, True])
def test_sizes_that_patches_do_not_fill(any_px: bool) -> None:
    message = error_of("vit_tiny_patch16_224", 40, any_px=any_px)
    assert message.startswith("encoder.image_px=40: vit_tiny_patch16_224 cannot take it: ")
    assert "16" in message


def test_small_stem_of_a_transformer() -> None:
    assert error_of("vit_tiny_patch16_224", 32, small_stem=True) == (
        "encoder.small_stem=true: for ResNets and EfficientNets only; leave it out"
    )
