"""DeepLab's heads on the feature maps of a timm ResNet.

V3: Chen et al. 2017, arXiv:1706.05587, on the last map, an eighth of the image's size by dilation.
V3+: Chen et al. 2018, arXiv:1802.02611, on the last map, a sixteenth of it, and the first stage's.
"""

from __future__ import annotations

from typing import cast

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabHead

from curate.evaluate.dense import STAGES, dilated, strides_of
from curate.images import Preprocessing

RATES = (6, 12, 18)  # of the pyramid's dilation at stride 16; twice that at stride 8
WIDTH, NARROW = 256, 48  # channels, of the head and of what it takes from the first stage
DROPOUTS = (0.5, 0.1)


class DeepLab(nn.Module):
    """(N, H, W, 3) uint8 → (N, classes, h, w) logits, h and w a part of the image's."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: ResNet, classes: int, preprocessing: Preprocessing, *, plus: bool = False
    ) -> None:
        """network: may become a part of this, or its weights do. plus: V3+, not V3."""
        super().__init__()
        self.network = dilated(network, 16 if plus else 8)
        self.plus = plus
        features = int(self.network.num_features)
        self.head: nn.Module
        if plus:
            first = cast("int", self.network.feature_info[1]["num_chs"])
            self.head = PlusHead(first, features, classes, strides_of(self.network)[-1])
        else:
            self.head = DeepLabHead(features, classes)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        stages = [1, len(STAGES)] if self.plus else [len(STAGES)]
        maps = self.network.forward_intermediates(images, indices=stages, intermediates_only=True)
        logits: Tensor = self.head(*maps)
        return logits


class PlusHead(nn.Module):
    """Maps of the first stage (N, F, h, w) and the last (N, L, h', w') → (N, classes, h, w)."""

    def __init__(self, first: int, last: int, classes: int, stride: int) -> None:
        """stride: of the last map."""
        super().__init__()
        self.pyramid = ASPP(last, [rate * max(1, 16 // stride) for rate in RATES], WIDTH)
        self.edges = nn.Sequential(*_convolved(first, NARROW, 1))
        layers: list[nn.Module] = []
        for channels, dropout in zip((WIDTH + NARROW, WIDTH), DROPOUTS, strict=True):
            layers += [*_convolved(channels, WIDTH, 3), nn.Dropout(dropout)]
        self.classify = nn.Sequential(*layers, nn.Conv2d(WIDTH, classes, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, first: Tensor, last: Tensor) -> Tensor:
        edges = self.edges(first)
        seen = nn.functional.interpolate(self.pyramid(last), edges.shape[-2:], mode="bilinear")
        logits: Tensor = self.classify(torch.cat([seen, edges], 1))
        return logits


def _convolved(before: int, after: int, px: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, px, padding=px // 2, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]
