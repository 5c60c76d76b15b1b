"""DINOv2's masks and tokens; its losses are tested with the others."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from curate.methods.dinov2 import block_mask, tokens_of
from tests.methods.building import PATCH, SIDE, build, random_batch, tiny_vit


@pytest.mark.parametrize(
    "backbone",
    [
        tiny_vit(),
        VisionTransformer(img_size=SIDE, patch_size=4, embed_dim=16, depth=2, num_heads=2,
                          num_classes=0, reg_tokens=4, no_embed_class=True, init_values=0.1),
        Eva(img_size=SIDE, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0,
            num_reg_tokens=4, use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type="dinov3"),
    ],
    ids=["plain", "registers", "rotations"],
)  # fmt: skip
@torch.no_grad()
def test_tokens_are_the_transformers_own(backbone: nn.Module) -> None:
    """Without masks; and a masked patch's pixels make no difference."""
    vit, images = cast("Any", backbone.eval()), random_batch(3).views[0]
    classes, patches = tokens_of(vit, images)
    expected = vit.forward_features(images)
    torch.testing.assert_close(classes, expected[:, 0])
    torch.testing.assert_close(patches, expected[:, vit.num_prefix_tokens :])
    assert patches.shape == (3, 16, 16)
    masks = torch.zeros(3, 16, dtype=torch.bool)
    masks[:, 5] = True  # the second row's second
    token = torch.randn(1, 16)
    seen = tokens_of(vit, images, masks, token)
    changed = images.clone()
    changed[:, :, PATCH : 2 * PATCH, PATCH : 2 * PATCH] += 1
    again = tokens_of(vit, changed, masks, token)
    for a, b in zip(seen, again, strict=True):
        assert torch.equal(a, b)
    assert not torch.allclose(seen[0], classes)


@given(st.integers(1, 16), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_masks_are_no_more_than_asked(side: int, share: float, seed: int) -> None:
    wanted = max(1, int(share * side**2))
    mask = block_mask(np.random.default_rng(seed), side, wanted)
    assert mask.shape == (side**2,) and 1 <= mask.sum() <= wanted


def test_masks_lie_in_blocks() -> None:
    """Most masked patches have a masked neighbour, as of as many by lot they would not."""
    rng = np.random.default_rng(0)
    beside = []
    for _ in range(50):
        mask = block_mask(rng, 14, 30).reshape(14, 14)
        assert mask.sum() >= 20
        padded = np.pad(mask, 1)
        around = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        beside.append(around[mask].mean())
    assert np.mean(beside) > 0.9


def test_masks_are_of_the_share_of_views_that_the_recipe_says() -> None:
    method = cast("Any", build("dinov2"))
    noise = torch.rand(600, 2, generator=torch.Generator().manual_seed(0))
    masks = method._masks(noise)
    hidden = masks.float().mean(1)
    assert (hidden > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert hidden.max() <= 0.5
    # A view's mask is of its own noise: the first views of all images, then the second ones
    assert torch.equal(method._masks(noise[100:200])[:100], masks[100:200])
    assert torch.equal(method._masks(noise[100:200])[100:], masks[700:800])
