"""Self-supervised methods, one a file; how each is trained is in curate/settings/recipes.py."""

from __future__ import annotations

from curate.methods.base import Batch, Clock, Context, Method, Teacher
from curate.methods.byol import BYOL
from curate.methods.dino import DINO
from curate.methods.dinov2 import DINOv2
from curate.methods.distill import Distill
from curate.methods.drlim import DrLIM
from curate.methods.exemplar import ExemplarCNN
from curate.methods.mae import MAE
from curate.methods.moco import MoCo
from curate.methods.simclr import SimCLR
from curate.methods.simsiam import SimSiam
from curate.methods.swav import SwAV

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "simsiam": SimSiam,
    "swav": SwAV,
    "dino": DINO,
    "dinov2": DINOv2,
    "mae": MAE,
    "distill": Distill,
    "drlim": DrLIM,
    "exemplar": ExemplarCNN,
}

__all__ = ["METHODS", "Batch", "Clock", "Context", "Method", "Teacher"]
