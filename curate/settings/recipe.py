"""What a recipe of a self-supervised method says: its views, its optimiser, its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from curate.settings.base import BelowOne, NotNegative, Positive

Option = bool | int | float


@dataclass(frozen=True)
class View:
    """One kind of random view: how many of it, which crop, and what is then done to its pixels."""

    count: int
    side: float = 1.0  # of the view, as a share of image_px
    scale: tuple[float, float] = (0.08, 1.0)  # of the crop, as a share of the image's area
    # Brightness, contrast, saturation: factors from 1 - x to 1 + x; hue: shift from -x to x turns
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # px, of images of 224
    solarize_p: float = 0.0
    flip_p: float = 0.5
    vertical_flip_p: float = 0.0
    quarter_turns: bool = False  # by none, one, two or three
    rotation: float = 0.0  # by so many degrees at most, either way
    bicubic: bool = False


@dataclass(frozen=True)
class Optimizer:
    """How the weights follow their gradients. A config's section `optimizer` has the same keys, by
    these types and limits."""

    name: Literal["sgd", "adamw", "lars"]
    learning_rate: Positive  # the peak, at the recipe's batch size
    weight_decay: NotNegative
    weight_decay_end: NotNegative | None = None  # by a cosine from weight_decay, where set
    momentum: BelowOne = 0.9  # of SGD and LARS; Adam's beta1
    adam_beta2: BelowOne = 0.999
    nesterov: bool = False  # of SGD
    warmup_epochs: NotNegative = 0
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    final_learning_rate_share: BelowOne = 0.0  # of the peak, where the cosine ends
    clip_gradient: Positive | None = None  # its norm
    clip_each: bool = False  # the norm of each weight's by itself
    adapt_all: bool = False  # of LARS: biases and norms are adapted and decayed as well


@dataclass(frozen=True)
class Recipe:
    views: tuple[View, ...]
    optimizer: Optimizer
    batch_size: int
    epochs: int
    options: dict[str, Option] = field(default_factory=dict)  # the method's own
