"""How good an encoder becomes, without a label, by the features that its training sees anyway."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 2048  # of features, that RankMe is of


@torch.no_grad()
def rankme(features: Tensor) -> float:
    """(N, D) → how many directions they use: the exponential of the entropy of their singular
    values. Garrido et al. 2023, arXiv:2210.02885, equation 1. At most min(N, D)."""
    values = torch.linalg.svdvals(features.float())
    shares = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


@torch.no_grad()
def alignment(a: Tensor, b: Tensor) -> float:
    """Two views' features (n, D) of the same images → the mean squared distance of an image's, as
    unit rows: 0 where views make no difference. Wang & Isola 2020, arXiv:2005.10242, section 4."""
    return float((F.normalize(a.float()) - F.normalize(b.float())).square().sum(1).mean())


@torch.no_grad()
def uniformity(features: Tensor) -> float:
    """(n, D) → the logarithm of the mean of exp(-2 d²) over pairs of unit rows: 0 where all are
    one, about -4 where they fill the sphere. The same paper, section 4."""
    return float(torch.pdist(F.normalize(features.float())).square().mul(-2).exp().mean().log())


class Quality:
    """Of the newest images of one rank, in one view."""

    def __init__(self) -> None:
        self.views: deque[Tensor] = deque()  # the newest last, each (n, D)
        self.last: list[Tensor] = []  # views of the newest images

    def add(self, features: Tensor, images: int) -> None:
        """features (V·n, D) of n images, view by view."""
        self.last = [*features.detach().split(images)]
        self.views.append(self.last[0])
        while sum(map(len, self.views)) - len(self.views[0]) >= ROWS:
            self.views.popleft()

    def figures(self) -> dict[str, float]:
        """rankme, uniformity, and, of methods with two views, alignment."""
        seen = torch.cat([*self.views])
        found = {"rankme": rankme(seen[-ROWS:])}
        if len(self.last[0]) > 1:
            found["uniformity"] = uniformity(self.last[0])
        if len(self.last) > 1:
            found["alignment"] = alignment(*self.last[:2])
        return found
