"""What each worker of a training does, from its data to the exported encoder. Runs in Ray Train."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.train.torch import get_device
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from curate import storage
from curate.dataset.crops import CropDataset, loader
from curate.dataset.training_set import TrainingSet
from curate.embedding.encoders import Card, rebuild
from curate.errors import CurateError
from curate.images import Preprocessing
from curate.methods.ranks import gather, rank, world
from curate.pretraining import checkpoints
from curate.pretraining.board import Record
from curate.pretraining.journal import Journal
from curate.pretraining.order import places_of
from curate.pretraining.plan import TrainingPlan
from curate.pretraining.probe import Probe, knn_accuracy, open_probe
from curate.pretraining.trainer import Trainer
from curate.runfiles.files import TrainingFiles
from curate.settings import CheckpointSettings, EncoderSettings, ImageSettings

RECORD_EVERY = 100  # steps, where an epoch has more
SHOW_EVERY_S = 2.0


@dataclass(frozen=True)
class Job:
    """All that a worker is told."""

    section: str  # of the config, named in errors
    plan: TrainingPlan
    files: TrainingFiles
    data: str  # folder of the training set
    cache_gb: float | None  # of it, on each machine
    limits: ImageSettings
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    crop_fraction: float  # of the probe's images
    probe: Probe | None
    threads: int
    loader_workers: int
    checkpoints: CheckpointSettings
    max_unreadable_fraction: float
    init: str | None = None  # the name of what it begins from
    teacher: EncoderSettings | None = None


def work(job: Job, board: ActorHandle) -> None:
    """The function that Ray Train runs on every worker."""
    if ray.get(board.failure.remote()) is not None:
        return  # restarting cannot mend what the last try said
    try:
        _Worker(job, board).run()
    except CurateError as error:
        ray.get(board.fail.remote(str(error)))
        raise


class _Worker:
    def __init__(self, job: Job, board: ActorHandle) -> None:
        self.job, self.board = job, board
        torch.set_num_threads(job.threads)
        device = get_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.backends.cudnn.benchmark = True  # all batches are of one shape
        weights = teacher = None
        if job.plan.begins is not None:
            weights = load_safetensors(storage.read_bytes(job.files.init))
        if job.teacher is not None:
            teacher = rebuild(job.teacher, job.files.teacher)
        self.trainer = Trainer(job.plan, device, job.mean, job.std, job.section, weights, teacher)
        self.images = TrainingSet(job.data, job.cache_gb)
        if job.probe and rank() == 0:
            open_probe(job.probe)  # what is wrong with it is told now, not after so many epochs
        # Sums since the last record: loss, deviation, steps, unreadable images in this epoch
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.pending: Tensor | None = None  # loss and deviation, still on the device
        self.records: list[Record] = []
        self.seconds_before = 0.0
        self._go_on()

    def _go_on(self) -> None:
        state = checkpoints.newest(self.job.files.checkpoints)
        if state is not None:
            self.trainer.load(state)
            self.records = state["records"]
            self.seconds_before = state["seconds"]
            if rank() == 0:
                self.sums = state["sums"]
        self._agree()

    def _agree(self) -> None:
        """Ranks that begin at different steps would wait for each other for ever."""
        steps = gather(torch.tensor([self.trainer.step_number], device=self.trainer.device))
        if len(set(steps.tolist())) > 1:
            raise CurateError(
                f"{self.job.files.checkpoints}: workers see different checkpoints there (steps "
                f"{steps.tolist()}); output must be one place for all machines"
            )

    def run(self) -> None:
        plan = self.job.plan
        journal = Journal(self.job.files, self.records) if rank() == 0 else None
        self.started = self.shown = time.monotonic()
        self.first_step = self.trainer.step_number
        for crops in self._batches():
            loss, deviation, rate = self.trainer.step(crops)
            step = self.trainer.step_number
            self.sums += torch.tensor([0, 0, 1, len(crops.unreadable)], dtype=torch.float64)
            self._add(loss, deviation)
            epoch_ends = step % plan.steps_per_epoch == 0 or step == plan.steps
            if rank() == 0:
                self._show(rate)
            if epoch_ends or step % plan.steps_per_epoch % RECORD_EVERY == 0:
                self._record(rate, journal, epoch_ends)
            if step % self.job.checkpoints.every == 0 or step == plan.steps:
                self._checkpoint()
        if journal is not None:
            journal.close()
            self._export()
        if world() > 1:
            dist.barrier()

    def _batches(self) -> Any:
        job = self.job
        dataset = CropDataset(
            self.images,
            self.trainer.shapes,
            job.limits,
            job.plan.seed,
            self.trainer.method.noise,
        )
        places = places_of(job.plan, self.trainer.step_number, rank(), world())
        return loader(dataset, places, job.loader_workers, self.trainer.device.type == "cuda")

    def _add(self, loss: Tensor, deviation: Tensor) -> None:
        """Kept on the device: to read them at once would mean to wait for each step."""
        both = torch.stack([loss.float(), deviation.float()])
        self.pending = both if self.pending is None else self.pending + both
        self.latest = both

    def _settle(self) -> None:
        """What was kept on the device, into the sums."""
        if self.pending is not None:
            self.sums[:2] += self.pending.double().cpu()
            self.pending = None

    def _over_ranks(self) -> Tensor:
        """The sums of all ranks; loss, deviation and steps as means over them.

        Raises CurateError where training has diverged: no record or checkpoint is made of that.
        """
        self._settle()
        total = self.sums.clone()
        if world() > 1:
            on_device = total.to(self.trainer.device, torch.float64)
            dist.all_reduce(on_device)
            total = on_device.cpu()
        total[:3] /= world()
        if not torch.isfinite(total[0]):
            rate = self.job.plan.recipe.optimizer.learning_rate
            raise CurateError(
                f"{self.job.section}.optimizer.learning_rate={rate:g}: the loss is no longer "
                f"finite at step {self.trainer.step_number}; lower it, or warm up longer"
            )
        return total

    def _record(self, rate: float, journal: Journal | None, epoch_ends: bool) -> None:
        """All ranks meet here; rank 0 writes down what came out."""
        plan, step = self.job.plan, self.trainer.step_number
        loss, deviation, steps, unreadable = self._over_ranks().tolist()
        if unreadable > self.job.max_unreadable_fraction * plan.images:
            raise CurateError(
                f"{self.job.section}.max_unreadable_fraction={self.job.max_unreadable_fraction}: "
                f"{unreadable:.0f} of {plan.images} images cannot be decoded"
            )
        record: Record = {
            "step": step,
            "epoch": plan.epochs if step == plan.steps else step // plan.steps_per_epoch,
            "loss": loss / steps,
            "learning_rate": rate,
            "embedding_std": deviation / steps,
            "images_per_s": self._rate(),
            "seconds": self.seconds_before + time.monotonic() - self.started,
            "unreadable": int(unreadable),
        }
        probe = self.job.probe
        if probe is not None and epoch_ends and self._is_probed(record["epoch"], probe):
            if rank() == 0:
                record["knn"] = self._knn(probe)
            if world() > 1:
                dist.barrier()
        self.records.append(record)
        if journal is not None:
            journal.add(record)
        self.sums[:3] = 0
        if epoch_ends:
            self.sums[3] = 0

    def _is_probed(self, epoch: int, probe: Probe) -> bool:
        return epoch % probe.every == 0 or epoch == self.job.plan.epochs

    def _rate(self) -> float:
        """Images/s over all workers, since this start."""
        done = self.trainer.step_number - self.first_step
        return done * self.job.plan.batch_size / max(time.monotonic() - self.started, 1e-9)

    def _show(self, rate: float) -> None:
        now = time.monotonic()
        plan, step = self.job.plan, self.trainer.step_number
        if now - self.shown < SHOW_EVERY_S and step < plan.steps:
            return
        self.shown = now
        loss, deviation = self.latest.tolist()
        record = {
            "step": step,
            "steps": plan.steps,
            "epoch": step // plan.steps_per_epoch,
            "epochs": plan.epochs,
            "loss": loss,
            "embedding_std": deviation,
            "learning_rate": rate,
            "images_per_s": self._rate(),
            "seconds_left": (plan.steps - step)
            * (now - self.started)
            / max(1, step - self.first_step),
        }
        probed = [earlier["knn"] for earlier in self.records if "knn" in earlier]
        if probed:
            record["knn"] = probed[-1]
        self.board.show.remote(record)

    def _checkpoint(self) -> None:
        total = self._over_ranks()  # all ranks meet; then one writes
        total[:3] *= world()
        if rank() == 0:
            state = self.trainer.state() | {
                "sums": total,
                "records": self.records,
                "seconds": self.seconds_before + time.monotonic() - self.started,
            }
            folder, keep = self.job.files.checkpoints, self.job.checkpoints.keep
            checkpoints.save(folder, self.trainer.step_number, state, keep)

    def _export(self) -> None:
        """The weights, then the card, whose presence says that training is done."""
        plan, trainer = self.job.plan, self.trainer
        state = {name: x.cpu().contiguous() for name, x in trainer.encoder_state().items()}
        storage.write_bytes(self.job.files.weights, save_safetensors(state))
        Card(
            backbone=plan.backbone,
            small_stem=plan.small_stem,
            feature_dim=trainer.feature_dim,
            crop_fraction=self.job.crop_fraction,
            image_px=plan.image_px,
            mean=trainer.mean,
            std=trainer.std,
            method=plan.method,
            preset=plan.preset,
            epochs=plan.epochs,
            images=plan.images,
            dataset=self.images.index.fingerprint,
            init=self.job.init,
        ).write(self.job.files)

    def _knn(self, probe: Probe) -> float:
        trainer, job = self.trainer, self.job
        px, mean, std = job.plan.image_px, trainer.mean, trainer.std
        return knn_accuracy(
            probe,
            trainer.method.encoder(),
            Preprocessing(px, job.crop_fraction, mean, std),
            job.limits,
            trainer.device,
            bf16=trainer.bf16,
            decoders=job.loader_workers or job.threads - 1,  # no more than its CPUs
        )
