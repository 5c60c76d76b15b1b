"""What the first rank keeps of a training: records, the best encoder, the one that comes out."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from ray.actor import ActorHandle
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from curate import storage
from curate.embedding.encoders import Card, StateDict
from curate.images import Preprocessing
from curate.pretraining.adapt import plain_state
from curate.pretraining.board import Record
from curate.pretraining.job import Job
from curate.pretraining.journal import Journal
from curate.pretraining.probe import Measuring, knn_accuracy, open_probe
from curate.pretraining.quality import Quality
from curate.pretraining.trainer import Trainer

SHOW_EVERY_S = 2.0
MEASURED = 200  # times in a training, that its features are
LOWER_IS_BETTER = ("loss", "alignment", "uniformity")


def best_of(records: list[Record], name: str) -> Record | None:
    """The first of the best by a figure; None where none has it."""
    having = [record for record in records if name in record]
    sign = 1 if name in LOWER_IS_BETTER else -1
    return min(having, key=lambda record: sign * record[name], default=None)


def last_of(records: list[Record], name: str) -> float | None:
    """A figure that not every record has, as it was last found."""
    return next((record[name] for record in reversed(records) if name in record), None)


class Recorder:
    def __init__(
        self, job: Job, trainer: Trainer, board: ActorHandle, records: list[Record]
    ) -> None:
        """records: up to the checkpoint that is gone on from; is added to.

        Raises CurateError for a probe that cannot be measured.
        """
        self.job, self.trainer, self.board, self.records = job, trainer, board, records
        if job.probe:
            open_probe(job.probe)  # what is wrong with it is told now, not after so many epochs
        self.journal = Journal(job.files, records, job.trackers, job.plan.to_dict())
        self.quality = Quality()
        self.measuring = Measuring(self._knn)
        self.started = self.shown = time.monotonic()
        self.first_step = self.saved_step = trainer.step_number

    def saw(self, images: int) -> None:
        """A step was made, of so many images of this rank."""
        self.quality.add(self.trainer.seen, images)

    def add(self, record: Record, epoch_ends: bool) -> None:
        """The record is among `records` already."""
        plan, epoch = self.job.plan, record["epoch"]
        if epoch_ends and self._is_every(epoch, max(1, plan.epochs // MEASURED)):
            record |= self.quality.figures()
        self.journal.add(record)
        self._keep_best(record, self.trainer.encoder_state)
        probe = self.job.probe
        if probe is not None and epoch_ends and self._is_every(epoch, probe.every):
            self.measuring.begin(record, self.trainer.method.encoder())
        self._note()

    def show(self, latest: Tensor, rate: float, images_per_s: float) -> None:
        """latest: loss and deviation, of the step before."""
        now = time.monotonic()
        plan, step = self.job.plan, self.trainer.step_number
        if now - self.shown < SHOW_EVERY_S and step < plan.steps:
            return
        self.shown = now
        loss, deviation = latest.tolist()
        record = {
            "step": step,
            "steps": plan.steps,
            "epoch": step // plan.steps_per_epoch,
            "epochs": plan.epochs,
            "loss": loss,
            "embedding_std": deviation,
            "learning_rate": rate,
            "images_per_s": images_per_s,
            "seconds_left": (plan.steps - step)
            * (now - self.started)
            / max(1, step - self.first_step),
        }
        if (knn := last_of(self.records, "knn")) is not None:
            record["knn"] = knn
        self.board.show.remote(record)

    def close(self, dataset: str) -> None:
        """The weights, then the card, whose presence says that training is done.

        dataset: the training set's fingerprint.
        """
        self._note(wait=True)
        self.journal.close()
        plan, trainer, files = self.job.plan, self.trainer, self.job.files
        name = self.job.checkpoints.best
        best = best_of(self.records, name) if name else None
        if best is None:
            _write(files.weights, trainer.encoder_state())
        else:
            storage.write_bytes(files.weights, storage.read_bytes(files.best_at(best["step"])))
        Card(
            backbone=plan.backbone,
            small_stem=plan.small_stem,
            feature_dim=trainer.feature_dim,
            crop_fraction=self.job.crop_fraction,
            image_px=plan.image_px,
            mean=trainer.mean,
            std=trainer.std,
            channels=plan.channels,
            bits=plan.bits,
            method=plan.method,
            preset=plan.preset,
            epochs=plan.epochs,
            images=plan.images,
            dataset=dataset,
            init=self.job.init,
            best=f"{name} at step {best['step']}" if best else None,
        ).write(files)

    def _is_every(self, epoch: int, epochs: int) -> bool:
        return bool(epoch % epochs == 0 or epoch == self.job.plan.epochs)

    def _note(self, wait: bool = False) -> None:
        """What the probe has found since."""
        for record, module, accuracy in self.measuring.done(wait):
            self.journal.amend(record, {"knn": accuracy})
            self._keep_best(record, partial(plain_state, module))

    def _keep_best(self, record: Record, state: Callable[[], StateDict]) -> None:
        """The encoder, where no other was better yet; and, until a checkpoint knows of this one,
        the one that was best before."""
        name, files = self.job.checkpoints.best, self.job.files
        if name is None or name not in record or best_of(self.records, name) is not record:
            return
        earlier = sorted(storage.names_in(files.best))
        _write(files.best_at(record["step"]), state())
        newest = files.best_at(self.saved_step).rpartition("/")[2]
        known = [each for each in earlier if each <= newest]
        for each in earlier:
            if each not in known[-1:]:
                storage.remove_tree(storage.join(files.best, each))

    def _knn(self, module: nn.Module) -> float:
        trainer, job = self.trainer, self.job
        assert job.probe is not None
        return knn_accuracy(
            job.probe,
            module,
            Preprocessing(
                *(job.plan.image_px, job.crop_fraction, trainer.mean, trainer.std),
                bits=job.limits.bits,
            ),
            job.limits,
            trainer.device,
            bf16=trainer.precision.half is torch.bfloat16,
            decoders=job.loader_workers or job.threads - 1,  # no more than its CPUs
        )


def _write(uri: str, state: StateDict) -> None:
    plain = {name: x.cpu().contiguous() for name, x in state.items()}
    storage.write_bytes(uri, save_safetensors(plain))
