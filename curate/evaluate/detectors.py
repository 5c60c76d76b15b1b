"""torchvision's detectors on a timm ResNet, which becomes a part of them.

Anchors go by the strides of the feature maps, so that an encoder with a small stem, which sees four
times as finely, has them four times as small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models.resnet import ResNet
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from curate.evaluate.annotated import LONGEST
from curate.evaluate.dense import STAGES, strides_of
from curate.images import Preprocessing

Detector = FasterRCNN | RetinaNet

PYRAMID_CHANNELS = 256
ASPECTS = (0.5, 1.0, 2.0)
# Faster R-CNN
ANCHOR_CELLS = 8  # an anchor's side in px of its level: 32 px at stride 4
REGIONS = 512  # of an image, that the box head is trained on
SCALES = (0.8, 0.84, 0.88, 0.92, 0.96, 1.0)  # of image_px, while training: COCO's 640 … 800
# RetinaNet: three anchors a third of an octave apart, from 32 px at stride 8
OCTAVE_CELLS = (4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))


def faster_rcnn(
    network: ResNet, classes: int, image_px: int, preprocessing: Preprocessing
) -> FasterRCNN:
    """Ren et al. 2015, arXiv:1506.01497, with the pyramid of Lin et al. 2017, arXiv:1612.03144.

    classes: without the background.
    """
    strides = strides_of(network)
    pyramid = _pyramid(network, STAGES, norm_layer=nn.BatchNorm2d)
    levels = [*strides, 2 * strides[-1]]  # the pyramid pools its last level once more
    anchors = AnchorGenerator(tuple((ANCHOR_CELLS * s,) for s in levels), (ASPECTS,) * len(levels))
    return FasterRCNN(
        pyramid,
        classes + 1,
        min_size=[round(scale * image_px) for scale in SCALES],  # the last one when tested
        max_size=round(LONGEST * image_px),
        image_mean=list(preprocessing.mean),
        image_std=list(preprocessing.std),
        rpn_anchor_generator=anchors,
        box_batch_size_per_image=REGIONS,
    )


def retinanet(
    network: ResNet, classes: int, image_px: int, preprocessing: Preprocessing
) -> RetinaNet:
    """Lin et al. 2017, arXiv:1708.02002: one stage, focal loss; on the last three stages, and two
    levels above them. All images at image_px, while training too.

    classes: without the background.
    """
    stages = STAGES[1:]
    strides = strides_of(network)[1:]
    above = LastLevelP6P7(PYRAMID_CHANNELS, PYRAMID_CHANNELS)
    pyramid = _pyramid(network, stages, extra_blocks=above)
    levels = [*strides, 2 * strides[-1], 4 * strides[-1]]
    sizes = tuple(tuple(int(cells * stride) for cells in OCTAVE_CELLS) for stride in levels)
    return RetinaNet(
        pyramid,
        classes + 1,
        min_size=image_px,
        max_size=round(LONGEST * image_px),
        image_mean=list(preprocessing.mean),
        image_std=list(preprocessing.std),
        anchor_generator=AnchorGenerator(sizes, (ASPECTS,) * len(levels)),
    )


def _pyramid(network: ResNet, stages: Sequence[str], **more: Any) -> BackboneWithFPN:
    """Of the network, on the maps of some stages."""
    return BackboneWithFPN(
        network,
        return_layers={name: str(level) for level, name in enumerate(stages)},
        in_channels_list=[s["num_chs"] for s in network.feature_info if s["module"] in stages],
        out_channels=PYRAMID_CHANNELS,
        **more,
    )
