"""DINOv2: DINO's and iBOT's losses on one student, and KoLeo, which spreads what it finds.

Oquab et al. 2023, arXiv:2304.07193, section 4. The student sees some patches masked; its teacher,
who follows it slowly, sees all of the views of full size. A vision transformer's registers and
positions are kept as they are.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from curate.methods.base import (
    Batch,
    Context,
    Embedded,
    Method,
    by_image,
    by_view,
    cosine,
    follow,
    momentum_copy,
    of_one_size,
    through_blocks,
)
from curate.methods.dino import Head, teacher_temperature, without_drop_path
from curate.methods.ranks import gather, own_rows, reduced, world

LEAST_BLOCK = 4  # patches that are masked together
BLOCK_ASPECT = 0.3  # of a block's sides, and its inverse


def cross_entropy(given: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """(n, K) scores of the student, (n, K) probabilities of the teacher → (n,)."""
    return -(wanted * F.log_softmax(given.float() / temperature, dim=1)).sum(1)


@torch.no_grad()
def balanced(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """scores (n, K) → (n, K): rows sum to 1, columns to the same over all ranks, whose n may
    differ. Sinkhorn-Knopp, as Caron et al. 2020 have it."""
    most = scores.float().max() if len(scores) else scores.new_full((), -torch.inf).float()
    most = reduced(most, dist.ReduceOp.MAX)
    rows = reduced(scores.new_tensor(len(scores), dtype=torch.float32))
    q = torch.exp((scores.float() - most) / temperature)
    for _ in range(iterations):
        q = q / reduced(q.sum(0, keepdim=True)).clamp_min(1e-30) / q.shape[1]
        q = q / q.sum(1, keepdim=True).clamp_min(1e-30) / rows
    return q * rows


def koleo(features: Tensor) -> Tensor:
    """features (n, D), this rank's → the mean of -log of each one's distance to the nearest other
    one of the global batch, as unit rows. Section 4, after Sablayrolles et al. 2019."""
    own = F.normalize(features.float(), dim=1, eps=1e-8)
    everyone = gather(own)
    with torch.no_grad():
        alike = own @ everyone.T
        alike[:, own_rows(len(own))].fill_diagonal_(-2)
        nearest = alike.argmax(1)
    distances = F.pairwise_distance(own, everyone[nearest], eps=1e-8)
    return -torch.log(distances + 1e-8).mean()


def block_mask(rng: np.random.Generator, side: int, patches: int) -> NDArray[np.bool_]:
    """(side · side,) of which about so many are masked, at most: in blocks, as Bao et al. 2022
    (arXiv:2106.08254), algorithm 1; one at least."""
    mask = np.zeros((side, side), bool)
    while (left := patches - int(mask.sum())) > 0 and _add_block(rng, mask, left):
        pass
    if not mask.any():
        mask[tuple(rng.integers(side, size=2))] = True
    return mask.ravel()


def _add_block(rng: np.random.Generator, mask: NDArray[np.bool_], most: int) -> bool:
    """Whether a block was found that masks something new, and no more than `most`."""
    side = len(mask)
    for _ in range(10):
        area = rng.uniform(min(LEAST_BLOCK, most), most)
        aspect = math.exp(rng.uniform(math.log(BLOCK_ASPECT), -math.log(BLOCK_ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height <= side and 0 < width <= side):
            continue
        top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
        block = mask[top : top + height, left : left + width]
        if 0 < block.size - int(block.sum()) <= most:
            block[...] = True
            return True
    return False


class DINOv2(Method):
    needs_vit = True
    teacher_temperature: float

    def __init__(self, backbone: nn.Module, context: Context) -> None:
        super().__init__(backbone, context)
        vit = cast("Any", backbone)
        if getattr(vit, "cls_token", None) is None:
            raise ValueError("dinov2 needs a vision transformer with a class token")
        if context.global_views < 2:
            raise ValueError("dinov2 needs two views of full size")
        self.side = context.view_px // vit.patch_embed.patch_size[0]
        self.noise = context.global_views
        self.mask_token = nn.Parameter(torch.zeros(1, context.feature_dim))
        sizes = (context.count(k) for k in ("hidden_dim", "bottleneck_dim", "projection_dim"))
        hidden, bottleneck, out = sizes
        dims = (context.feature_dim, hidden, bottleneck, out)
        # Of its own for each loss: section 4, «untying head weights»
        self.head, self.patch_head = Head(*dims, normed=True), Head(*dims, normed=True)
        self.teacher_backbone = momentum_copy(backbone)
        without_drop_path(self.teacher_backbone)
        self.teacher_head = momentum_copy(self.head)
        self.teacher_patch_head = momentum_copy(self.patch_head)
        self.teacher_temperature = context.number("teacher_temperature")

    def before_step(self, clock) -> None:  # type: ignore[no-untyped-def]
        super().before_step(clock)
        self.teacher_temperature = teacher_temperature(self.context, clock)

    def embed(self, batch: Batch) -> Embedded:
        full, views = self.context.global_views, len(batch.views)
        masks = self._masks(batch.noise)  # (F·n, L)
        taught, taught_patches = self._taught(torch.cat(batch.views[:full]), masks)
        classes, patches = self._student(batch, masks)  # (V·n, D), (masked, D)
        seen = by_image(classes, views)[:, :full]
        return {
            "classes": seen,
            "student": by_image(self.head(classes), views),
            "teacher": by_image(taught, full),
            # A row a masked patch, with its share of its view's loss
            "patches": self.patch_head(patches),
            "teacher_patches": taught_patches,
            "shares": (1 / masks.sum(1).clamp_min(1)).unsqueeze(1).expand_as(masks)[masks],
            "features": seen.detach(),
        }

    def compare(self, embedded: Embedded, batch: Batch) -> Tensor:
        full, number = self.context.global_views, self.context.number
        wanted = self._balanced(by_view(embedded["teacher"])).chunk(full)
        loss = self._dino([*embedded["student"].unbind(1)], [*wanted])
        masked = self._ibot(embedded) / (full * len(batch.ids))
        loss = loss + number("ibot_weight") * masked
        if world() * len(batch.ids) > 1:
            spread = torch.stack([koleo(view) for view in embedded["classes"].unbind(1)]).sum()
            loss = loss + number("koleo_weight") * spread
        return loss

    def _masks(self, noise: Tensor) -> Tensor:
        """noise (n, F) → (F·n, L): of some views, by lot, some patches; the same on any number of
        ranks, since the noise is each image's own."""
        number = self.context.number
        low, high = number("mask_ratio_min"), number("mask_ratio_max")
        masks = np.zeros((noise.numel(), self.side**2), bool)
        for row, lot in enumerate(noise.T.reshape(-1).tolist()):
            rng = np.random.default_rng(int(lot * 2**32))
            if rng.random() < number("mask_probability"):
                patches = max(1, int(rng.uniform(low, high) * self.side**2))
                masks[row] = block_mask(rng, self.side, patches)
        return torch.from_numpy(masks).to(noise.device)

    @torch.no_grad()
    def _taught(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's scores: (F·n, K) of the views, (masked, K) of the masked patches. On a GPU
        in bf16, whatever the student is in."""
        device = images.device.type
        bf16 = device == "cuda" or torch.is_autocast_enabled(device)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            classes, patches = tokens_of(self.teacher_backbone, images)
            return self.teacher_head(classes), self.teacher_patch_head(patches[masks])

    def _balanced(self, scores: Tensor) -> Tensor:
        iterations = self.context.count("sinkhorn_iterations")
        return balanced(scores, self.teacher_temperature, iterations)

    def _student(self, batch: Batch, masks: Tensor) -> tuple[Tensor, Tensor]:
        """→ the class tokens (V·n, D) of all views, and (masked, D) of the masked patches."""
        classes, masked = [], masks.new_zeros((0,))
        for run in of_one_size(batch.views):
            images = torch.cat(batch.views[run])
            if run.start == 0:  # those of full size
                found, patches = tokens_of(self.backbone, images, masks, self.mask_token)
                masked = patches[masks]
            else:
                found, _ = tokens_of(self.backbone, images)
            classes.append(found)
        return torch.cat(classes), masked

    def _dino(self, views: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """Each of the student's views learns from each of the teacher's but its own."""
        temperature = self.context.number("student_temperature")
        terms = [
            cross_entropy(view, target, temperature).mean()
            for t, target in enumerate(wanted)
            for v, view in enumerate(views)
            if v != t
        ]
        return torch.stack(terms).mean()

    def _ibot(self, embedded: Embedded) -> Tensor:
        """The sum over views of the mean over their masked patches."""
        wanted = self._balanced(embedded["teacher_patches"])
        temperature = self.context.number("student_temperature")
        losses = cross_entropy(embedded["patches"], wanted, temperature)
        return (losses * embedded["shares"]).sum()

    def after_backward(self) -> None:
        if self.clock.epoch < self.context.number("freeze_last_layer_epochs"):
            for head in (self.head, self.patch_head):
                for weight in head.last.parameters():
                    weight.grad = None

    def after_step(self) -> None:
        momentum = cosine(self.context.number("momentum"), 1.0, self.clock.progress)
        for slow, fast in (
            (self.teacher_backbone, self.backbone),
            (self.teacher_head, self.head),
            (self.teacher_patch_head, self.patch_head),
        ):
            follow(slow, fast, momentum)

    def encoder(self) -> nn.Module:
        return self.teacher_backbone


def tokens_of(
    backbone: nn.Module,
    images: Tensor,
    masks: Tensor | None = None,
    mask_token: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """→ the class tokens (N, D), and the patches (N, L, D), normed; registers are left out.

    masks (N, L): patches in whose place the transformer sees mask_token (1, D).
    """
    vit = cast("Any", backbone)
    x = vit.patch_embed(images)  # (N, L, D), or a grid of them
    if masks is not None and mask_token is not None:
        hidden = masks.reshape(x.shape[:-1]).unsqueeze(-1)
        x = torch.where(hidden, mask_token.to(x.dtype), x)
    x, rope = vit._pos_embed(x), None
    if isinstance(x, tuple):  # of DINOv3's: rotations in place of added positions
        x, rope = x
    x = through_blocks(vit, vit.norm_pre(x), **({} if rope is None else {"rope": rope}))
    x = vit.norm(x)
    return x[:, 0], x[:, vit.num_prefix_tokens :]
