"""MAE: the pixels of three quarters of an image from the other quarter.

He et al. 2022, arXiv:2111.06377. The backbone is one of timm's plain vision transformers.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from curate.methods.base import Batch, Context, Embedded, Method, by_image, through_blocks


def patchify(images: Tensor, patch_px: int) -> Tensor:
    """(N, C, H, W) → (N, L, patch_px² · C), patches row by row."""
    n, c, h, w = images.shape
    grid = images.reshape(n, c, h // patch_px, patch_px, w // patch_px, patch_px)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, patch_px * patch_px * c)


def patch_errors(predicted: Tensor, patches: Tensor, normalise: bool) -> Tensor:
    """(N, L): each patch's mean squared error; with `normalise`, of its pixels less their mean and
    over their deviation (section 3, "Reconstruction target").

    predicted, patches (N, L, P).
    """
    if normalise:
        mean = patches.mean(2, keepdim=True)
        patches = (patches - mean) / (patches.var(2, keepdim=True) + 1e-6).sqrt()
    return (predicted.float() - patches).square().mean(2)


def mean_of_hidden(errors: Tensor, hidden: Tensor) -> Tensor:
    """errors (N, L), hidden (N, L) of 0 and 1 → the mean over hidden patches alone."""
    return (errors * hidden).sum() / hidden.sum()


class MAE(Method):
    needs_vit = True
    decoder_positions: Tensor

    def __init__(self, backbone: nn.Module, context: Context) -> None:
        super().__init__(backbone, context)
        vit = cast("Any", backbone)
        self.patch_px = vit.patch_embed.patch_size[0]
        side = context.view_px // self.patch_px
        self.noise = side * side
        self.kept = max(1, round(self.noise * (1 - context.number("mask_ratio"))))
        if self.kept >= self.noise:
            ratio = context.options["mask_ratio"]
            raise ValueError(f"mask_ratio={ratio} hides none of {self.noise} patches")
        if getattr(vit, "cls_token", None) is None or getattr(vit, "num_prefix_tokens", 1) != 1:
            raise ValueError("mae needs a plain vision transformer with one class token")
        dim, width = context.feature_dim, context.count("decoder_dim")
        if not context.begun:
            vit.pos_embed.data.copy_(sincos(dim, side))
            _initialise(vit)
        vit.pos_embed.requires_grad_(False)
        self.into_decoder = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("decoder_positions", sincos(width, side), persistent=False)
        self.decoder = nn.Sequential(
            *(
                Block(width, context.count("decoder_heads"), qkv_bias=True)
                for _ in range(context.count("decoder_depth"))
            ),
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, self.patch_px**2 * vit.patch_embed.proj.in_channels),
        )
        for module in (self.into_decoder, self.decoder):
            module.apply(_xavier)

    def embed(self, batch: Batch) -> Embedded:
        images = batch.views[0]
        order = batch.noise.argsort(1)  # (N, L): the first ones are kept
        latent = self._encode(images, order[:, : self.kept])  # (N, 1 + kept, D)
        predicted = self._decode(latent, order)
        hidden = torch.ones_like(batch.noise).scatter_(1, order[:, : self.kept], 0)
        patches = patchify(images, self.patch_px)
        errors = patch_errors(predicted, patches, self.context.flag("normalise_pixels"))
        seen = latent[:, 1:].mean(1)
        return {"errors": errors, "hidden": hidden, "features": by_image(seen, 1).detach()}

    def compare(self, embedded: Embedded, batch: Batch) -> Tensor:
        return mean_of_hidden(embedded["errors"], embedded["hidden"])

    def _encode(self, images: Tensor, kept: Tensor) -> Tensor:
        vit = cast("Any", self.backbone)
        tokens = vit.patch_embed(images).flatten(1, -2)  # (N, L, D), also of a grid
        tokens = tokens + vit.pos_embed[:, 1:]
        tokens = tokens.gather(1, kept.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        first = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        encoded: Tensor = vit.norm(through_blocks(vit, vit.norm_pre(torch.cat([first, tokens], 1))))
        return encoded

    def _decode(self, latent: Tensor, order: Tensor) -> Tensor:
        """→ (N, L, P), every patch in its place."""
        tokens = self.into_decoder(latent)
        n, length, width = len(order), order.shape[1], tokens.shape[2]
        masked = self.mask_token.to(tokens.dtype).expand(n, length - self.kept, -1)
        shuffled = torch.cat([tokens[:, 1:], masked], 1)
        back = order.argsort(1).unsqueeze(2).expand(-1, -1, width)
        placed = torch.cat([tokens[:, :1], shuffled.gather(1, back)], 1) + self.decoder_positions
        decoded: Tensor = self.decoder(placed)
        return decoded[:, 1:]


def _initialise(vit: Any) -> None:
    """As their code does, the patches' weights as those of a linear layer."""
    vit.blocks.apply(_xavier)
    weights = vit.patch_embed.proj.weight
    nn.init.xavier_uniform_(weights.data.view(len(weights), -1))
    nn.init.normal_(vit.cls_token, std=0.02)


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sincos(dim: int, side: int) -> Tensor:
    """(1, 1 + side², dim): fixed positions in two dimensions, zeros for the class token."""
    frequencies = 1 / 10_000 ** (np.arange(dim // 4) / (dim // 4))
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    parts = [
        wave(place.reshape(-1, 1) * frequencies)
        for place in (columns, rows)
        for wave in (np.sin, np.cos)
    ]
    table = np.concatenate([np.zeros((1, dim)), np.concatenate(parts, 1)])
    return torch.from_numpy(table).float().unsqueeze(0)
