"""Of a backbone that begins from weights: which are trained, how fast, and in what form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import freeze_batch_norm_2d
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class Beginning:
    """As `init` of a training's settings, with what was found there."""

    weights: str  # their sha256
    layer_decay: float = 1.0
    trained_blocks: int | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None


class LowRank(nn.Module):
    """W + alpha / rank · up · down. Hu et al. 2021, arXiv:2106.09685, section 4.1: up begins at 0,
    so that the layer begins as it was."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.empty(rank, columns, device=weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down)


def prepare(backbone: nn.Module, begins: Beginning, seed: int) -> None:
    """Freeze what is not trained, with its BatchNorms' statistics, and put adapters on the rest.

    backbone: one of timm's, which say what their blocks are. seed: of the adapters.
    Raises ValueError for what this backbone cannot be.
    """
    layers = layers_of(backbone)
    first = _first_trained(layers, begins)
    for name, weight in backbone.named_parameters():
        frozen = layers[name] < first or begins.lora_rank is not None
        weight.requires_grad_(weight.requires_grad and not frozen)
    if begins.lora_rank is not None:
        scale = (begins.lora_alpha or begins.lora_rank) / begins.lora_rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _add_adapters(backbone, layers, first, begins.lora_rank, scale)
    _freeze_batch_norms(backbone)


def rate_shares(backbone: nn.Module, begins: Beginning) -> dict[int, float]:
    """id of each of the backbone's weights → its learning rate, as a share of the heads':
    layer_decay to the power of how many blocks stand behind it (Bao et al. 2022,
    arXiv:2106.08254)."""
    layers = layers_of(backbone)
    last = max(layers.values())
    return {
        id(weight): begins.layer_decay ** (last - layers[name])
        for name, weight in backbone.named_parameters()
    }


@torch.no_grad()
def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """Its weights and buffers, adapters multiplied into what they adapt: by the names of timm's own
    architecture."""
    state = dict(module.state_dict())
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part, "weight"):
            inner = f"{name}.parametrizations.weight."
            state = {key: value for key, value in state.items() if not key.startswith(inner)}
            state[f"{name}.weight"] = part.weight
    return state


def layers_of(backbone: nn.Module) -> dict[str, int]:
    """Name of each weight → its block, counted from 1, by timm; 0 is what comes before them, and
    what comes after them is of the last."""
    try:
        matcher = cast("Any", backbone).group_matcher(coarse=False)
        layers: dict[str, int] = group_parameters(backbone, matcher, reverse=True)
        return {name: layers[name] for name, _ in backbone.named_parameters()}
    except (AttributeError, KeyError, TypeError):
        raise ValueError("timm does not say what this backbone's blocks are") from None


def _first_trained(layers: dict[str, int], begins: Beginning) -> int:
    blocks = max(layers.values())
    if begins.trained_blocks is None:
        return 0
    if begins.trained_blocks > blocks:
        raise ValueError(f"trained_blocks={begins.trained_blocks}: this backbone has {blocks}")
    return blocks - begins.trained_blocks + 1


def _add_adapters(
    backbone: nn.Module, layers: dict[str, int], first: int, rank: int, scale: float
) -> None:
    chosen = [
        module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and layers[f"{name}.weight"] >= max(first, 1)
    ]
    if not chosen:
        raise ValueError(
            f"lora_rank={rank}: this backbone's blocks have no linear layers to adapt; "
            "set trained_blocks in its place"
        )
    for module in chosen:
        adapter = LowRank(module.weight, rank, scale)
        parametrize.register_parametrization(module, "weight", adapter)


def _freeze_batch_norms(backbone: nn.Module) -> None:
    """Those whose scale is not trained keep their statistics as well."""
    for parent in list(backbone.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and not child.weight.requires_grad:
                setattr(parent, name, freeze_batch_norm_2d(child))
