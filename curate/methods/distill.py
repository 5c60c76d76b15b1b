"""SEED: a student learns how like earlier images its teacher finds each image to be.

Fang et al. 2021, arXiv:2101.04731. The teacher, any frozen network, sees the student's own view.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curate.methods.base import (
    Batch,
    Context,
    Embedded,
    Method,
    Teacher,
    by_image,
    enqueue,
    mlp,
    unit,
)
from curate.methods.ranks import gather


def similarity_distillation(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Equations 3 to 5: the cross-entropy between the two's similarities to the teacher's
    embeddings of the image itself and of the queue.

    student, teacher (n, d) of the same images, queue (K, d), all unit rows.
    """

    def logits(rows: Tensor) -> Tensor:
        itself = (rows * teacher).sum(1, keepdim=True)  # (n, 1)
        return torch.cat([itself, rows @ queue.T], dim=1)  # (n, 1 + K)

    wanted = F.softmax(logits(teacher) / teacher_temperature, dim=1)
    given = F.log_softmax(logits(student) / student_temperature, dim=1)
    return -(wanted * given).sum(1).mean()


class Distill(Method):
    needs_teacher = True
    queue: Tensor
    queue_end: Tensor

    def __init__(self, backbone: nn.Module, context: Context) -> None:
        super().__init__(backbone, context)
        if context.teacher is None:
            raise ValueError("distill needs a teacher")
        if context.count("queue") < 1:
            raise ValueError("queue=0: distill needs embeddings to compare with")
        # Not a part of this module: neither trained, nor in its checkpoints
        self.teacher: tuple[Teacher] = (context.teacher,)
        dim, out = context.feature_dim, context.teacher.feature_dim
        self.projector = mlp(dim, dim, out, batch_norm=False)
        self.register_buffer("queue", F.normalize(torch.randn(context.count("queue"), out), dim=1))
        self.register_buffer("queue_end", torch.zeros((), dtype=torch.long))

    def embed(self, batch: Batch) -> Embedded:
        images = batch.views[0]
        features = self.backbone(images)
        return {
            "student": unit(self.projector(features)),
            "teacher": unit(self.teacher[0].features(images)),
            "features": by_image(features, 1).detach(),
        }

    def compare(self, embedded: Embedded, batch: Batch) -> Tensor:
        # A copy: the queue moves on before the gradient is taken
        taught, queue, number = embedded["teacher"], self.queue.clone(), self.context.number
        enqueue(self.queue, self.queue_end, gather(taught))
        return similarity_distillation(
            embedded["student"],
            taught,
            queue,
            number("student_temperature"),
            number("teacher_temperature"),
        )
