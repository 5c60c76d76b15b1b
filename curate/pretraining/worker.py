"""What each worker of a training does, from its data to the exported encoder. Runs in Ray Train."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.train.torch import get_device
from safetensors.torch import load as load_safetensors
from torch import Tensor

from curate import storage
from curate.dataset.crops import CropDataset, ahead_of, batch_bytes, loader, shared_memory
from curate.dataset.decoded import SHARE, Decoded, decoded_bytes, memory_bytes, place_for
from curate.dataset.training_set import TrainingSet
from curate.dataset.wholes import WholeDataset, whole_bytes
from curate.embedding.encoders import rebuild
from curate.errors import CurateError
from curate.methods.ranks import all_processes, gather, meet, only, rank, reduced, world
from curate.pretraining import checkpoints
from curate.pretraining.board import Record
from curate.pretraining.job import Job
from curate.pretraining.order import places_of
from curate.pretraining.recorder import Recorder
from curate.pretraining.trainer import Trainer

RECORD_EVERY = 100  # steps, where an epoch has more

log = logging.getLogger(__name__)


def work(job: Job, board: ActorHandle) -> None:
    """The function that Ray Train runs on every worker."""
    if ray.get(board.failure.remote()) is not None:
        return  # restarting cannot mend what the last try said
    try:
        ranks, parts = job.shared_by(all_processes())
        if only(ranks):
            _Worker(job, board, parts).run()
    except CurateError as error:
        ray.get(board.fail.remote(str(error)))
        raise


class _Worker:
    def __init__(self, job: Job, board: ActorHandle, parts: int) -> None:
        """parts: that each step's images are worked off in."""
        self.job, self.board = job, board
        torch.set_num_threads(job.threads)
        device = get_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.backends.cudnn.benchmark = True  # all batches are of one shape
            torch.set_float32_matmul_precision("high")  # TF32, for what autocast leaves in float32
        weights = teacher = None
        if job.plan.begins is not None:
            weights = load_safetensors(storage.read_bytes(job.files.init))
        if job.teacher is not None:
            teacher = rebuild(job.teacher, job.files.teacher)
        self.trainer = Trainer(
            *(job.plan, device, job.mean, job.std, job.section, weights, teacher),
            compiled=job.compiled,
            recomputed=job.recomputed,
            parts=parts,
        )
        self.images = TrainingSet(job.data, job.cache_gb)
        # Sums since the last record: loss, deviation, steps, unreadable images in this epoch
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.pending: Tensor | None = None  # loss and deviation, still on the device
        self.records: list[Record] = []
        self.seconds_before = 0.0
        self.saver = checkpoints.Saver(job.files.checkpoints, job.checkpoints.keep)
        self._go_on()
        self.recorder = Recorder(job, self.trainer, board, self.records) if rank() == 0 else None

    def _go_on(self) -> None:
        state = checkpoints.newest(self.job.files.checkpoints)
        if state is not None:
            self.trainer.load(state)
            self.records = state["records"]
            self.seconds_before = state["seconds"]
            if rank() == 0:  # for all, of whom there may be another number now
                self.sums = state["sums"]
                self.sums[:3] *= world()
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
        self.started = time.monotonic()
        self.first_step = self.trainer.step_number
        for crops in self._batches():
            loss, deviation, rate = self.trainer.step(crops)
            step = self.trainer.step_number
            self.sums += torch.tensor([0, 0, 1, len(crops.unreadable)], dtype=torch.float64)
            self._add(loss, deviation)
            epoch_ends = step % plan.steps_per_epoch == 0 or step == plan.steps
            if self.recorder is not None:
                self.recorder.saw(len(crops.ids))
                self.recorder.show(self.latest, rate, self._rate())
            if epoch_ends or step % plan.steps_per_epoch % RECORD_EVERY == 0:
                self._record(rate, epoch_ends)
            if step % self.job.checkpoints.every == 0 or step == plan.steps:
                self._checkpoint()
        self.saver.wait()
        if self.recorder is not None:
            self.recorder.close(self.images.index.fingerprint)
        meet()

    def _batches(self) -> Any:
        job = self.job
        on_device = job.crops_on == "device"
        dataset = (WholeDataset if on_device else CropDataset)(
            self.images,
            self.trainer.shapes,
            job.limits,
            job.plan.seed,
            self.trainer.method.noise,
            self._decoded(),
        )
        places = places_of(job.plan, self.trainer.step_number, rank(), world())
        here = ray.train.get_context().get_local_world_size()
        if all_processes() < job.workers and rank() == 0:
            log.warning(
                "%s: goes on from step %d with %d of %d workers: %d train, on %d images each, in "
                "%d parts",
                *(job.section, self.trainer.step_number, all_processes(), job.workers, world()),
                *(job.plan.batch_size // world(), self.trainer.parts),
            )
        size = (whole_bytes if on_device else batch_bytes)(
            self.trainer.shapes, job.plan.batch_size // world(), job.limits
        )
        workers, ahead = ahead_of(job.loader_workers, size, shared_memory() / here)
        if workers < job.loader_workers and rank() == 0:
            log.warning(
                "%s: shared memory has room for %d batches of %.0f MB: %d processes decode, not %d",
                *(job.section, workers * ahead, size / 1e6, workers, job.loader_workers),
            )
        return loader(dataset, places, workers, self.trainer.device.type == "cuda", ahead)

    def _decoded(self) -> Decoded | None:
        """Where the machines of all ranks have room: what is cropped of a whole image is not, to
        the last bit, what is cropped of one that was decoded smaller."""
        job, machine = self.job, memory_bytes()
        if job.decoded_gb is not None and job.decoded_gb * 1e9 > machine:
            raise CurateError(
                f"{job.section}.resources.decoded_gb={job.decoded_gb:g}: a machine has "
                f"{machine / 1e9:.0f} GB; lower it"
            )
        room = decoded_bytes(self.images, job.limits)
        most = SHARE * machine if job.decoded_gb is None else job.decoded_gb * 1e9
        fits = torch.tensor([sys.platform == "linux" and 0 < room <= most])
        if not bool(gather(fits.to(self.trainer.device)).all()):
            return None
        path = place_for(f"curate-decoded-{job.token}", room)
        decoded = Decoded(path, len(self.images), room, job.limits)
        meet()
        path.unlink(missing_ok=True)
        if rank() == 0:
            log.info("%s: decoded images are kept, in %.1f GB", job.section, room / 1e9)
        return decoded

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
        total = reduced(self.sums.to(self.trainer.device)).cpu()
        total[:3] /= world()
        if not torch.isfinite(total[0]):
            rate = self.job.plan.recipe.optimizer.learning_rate
            raise CurateError(
                f"{self.job.section}.optimizer.learning_rate={rate:g}: the loss is no longer "
                f"finite at step {self.trainer.step_number}; lower it, or warm up longer"
            )
        return total

    def _record(self, rate: float, epoch_ends: bool) -> None:
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
        if self.job.elastic:
            record["workers"] = world()
        self.records.append(record)
        if self.recorder is not None:
            self.recorder.add(record, epoch_ends)
        self.sums[:3] = 0
        if epoch_ends:
            self.sums[3] = 0

    def _rate(self) -> float:
        """Images/s over all workers, since this start."""
        done = self.trainer.step_number - self.first_step
        return done * self.job.plan.batch_size / max(time.monotonic() - self.started, 1e-9)

    def _checkpoint(self) -> None:
        total = self._over_ranks()  # all ranks meet; then one writes
        if self.recorder is not None:
            state = self.trainer.state() | {
                "sums": total,
                "records": self.records,
                "seconds": self.seconds_before + time.monotonic() - self.started,
            }
            self.saver.save(self.trainer.step_number, state)
            self.recorder.saved_step = self.trainer.step_number
