"""Every method on a tiny backbone, and batches for it."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from curate.methods import METHODS, Batch, Context, Method, Teacher
from curate.settings.recipe import Option
from curate.settings.recipes import RECIPES

SIDE = 16  # px, of a view of full size
PATCH = 4  # px
IMAGES = 24  # in the training set

# Upper limits of the recipes' sizes, for tests to be quick
SMALL: dict[str, int] = {
    "projection_dim": 12,
    "hidden_dim": 16,
    "bottleneck_dim": 8,
    "queue": 12,
    "prototypes": 6,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
}


def tiny_cnn(dim: int = 8) -> nn.Module:
    """Two convolutions that take images of any size."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, dim, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def tiny_vit(dim: int = 16, drop_path: float = 0.0) -> VisionTransformer:
    return VisionTransformer(
        img_size=SIDE,
        patch_size=PATCH,
        embed_dim=dim,
        depth=2,
        num_heads=2,
        num_classes=0,
        dynamic_img_size=True,
        drop_path_rate=drop_path,
    )


def tiny_teacher(dim: int = 5) -> Teacher:
    """It wants smaller images, of another normalisation."""
    with torch.random.fork_rng():
        torch.manual_seed(99)
        module = tiny_cnn(dim).eval().requires_grad_(False)
    scale, shift = torch.full((1, 3, 1, 1), 1.5), torch.full((1, 3, 1, 1), 0.25)
    return Teacher(module, dim, SIDE - 4, scale, shift)


def small_options(name: str, preset: str | None = None) -> dict[str, Option]:
    """The recipe's, shrunk."""
    presets = RECIPES[name]
    recipe = presets[preset or next(iter(presets))]
    return {
        key: min(value, SMALL[key]) if key in SMALL else value
        for key, value in recipe.options.items()
    }


def build(
    name: str,
    preset: str | None = None,
    *,
    seed: int = 0,
    backbone: nn.Module | None = None,
    global_views: int = 2,
    **options: Option,
) -> Method:
    """A method of random weights by the seed, in the recipe's own options but those given."""
    torch.manual_seed(seed)
    if backbone is None:
        backbone = tiny_vit() if METHODS[name].needs_vit else tiny_cnn()
    with torch.no_grad():
        dim = backbone.eval()(torch.zeros(1, 3, SIDE, SIDE)).shape[1]
    backbone.train()
    chosen = small_options(name, preset) | options
    teacher = tiny_teacher() if METHODS[name].needs_teacher else None
    context = Context(dim, IMAGES, SIDE, global_views, chosen, teacher=teacher)
    method = METHODS[name](backbone, context)
    if name in ("dino", "dinov2"):
        # The std of 0.02 is meant for wide layers; of narrow ones next to nothing comes out
        with torch.no_grad():
            for parameter_name, weight in method.named_parameters():
                if "head.mlp" in parameter_name:
                    weight *= 12
    return method


def random_batch(
    n: int, sides: tuple[int, ...] = (SIDE, SIDE), seed: int = 0, noise: int = 0
) -> Batch:
    """n images in a view of each of the sides; no two images are the same one."""
    rng = torch.Generator().manual_seed(seed)
    # Each image and view has a colour of its own, lest the features of noise all be the same
    colour = torch.randn(n, 3, 1, 1, generator=rng)
    views = [
        colour + torch.randn(n, 3, 1, 1, generator=rng) + torch.randn(n, 3, px, px, generator=rng)
        for px in sides
    ]
    ids = torch.randperm(IMAGES, generator=rng)[:n]
    labels = torch.randint(-1, 3, (n,), generator=rng)
    return Batch(views, ids, labels, torch.rand(n, noise, generator=rng))


def part(batch: Batch, rows: slice) -> Batch:
    """What one rank sees of a batch."""
    views = [view[rows] for view in batch.views]
    return Batch(views, batch.ids[rows], batch.labels[rows], batch.noise[rows])


def unit_rows(n: int, dim: int, seed: int = 0) -> Tensor:
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)
