"""Where a training's curves are looked at: TensorBoard, Weights & Biases, MLflow.

The last two are told where to write by environment variables of their own (WANDB_MODE,
WANDB_PROJECT, MLFLOW_TRACKING_URI …), which workers have from whoever starts the training.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tensorboardX import SummaryWriter

from curate import storage
from curate.errors import CurateError, one_line
from curate.runfiles.files import TrainingFiles
from curate.storage import Document

VARIABLES = ("WANDB_", "MLFLOW_")  # how those that are handed on begin
PROJECT = "curate"  # where the environment names none


class Tracker(Protocol):
    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of a step, which may be an earlier one than the last."""

    def flush(self) -> None:
        """What is there can be looked at."""

    def close(self) -> None:
        """The training is done."""


def tracker_of(name: str, files: TrainingFiles, first_step: int, about: Document) -> Tracker:
    """first_step: where the training goes on: what it had from there on is no more. about: the
    training, for whoever compares some.

    Raises CurateError where a library is not installed, or does not start.
    """
    kinds: dict[str, Callable[[TrainingFiles, int, Document], Tracker]]
    kinds = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}
    try:
        return kinds[name](files, first_step, about)
    except ImportError as error:
        raise CurateError(
            f"trackers: {name}: {one_line(error)}; install it with pip install 'curate[{name}]'"
        ) from error
    except CurateError:
        raise
    except Exception as error:  # these libraries have exceptions of their own
        raise CurateError(f"trackers: {name}: {type(error).__name__}: {one_line(error)}") from error


class TensorBoard:
    """Event files beside the training."""

    def __init__(self, files: TrainingFiles, first_step: int, about: Document) -> None:
        self.files, self.remote = files, not storage.is_local(files.folder)
        # Event files grow, which object stores' do not: made here, copied there
        self.local = (
            tempfile.mkdtemp(prefix="curate-events-")
            if self.remote
            else storage.filesystem(files.events)[1]
        )
        # Files are named by the second, and a restart may be quicker
        suffix = f".{first_step}"
        self.writer = SummaryWriter(self.local, purge_step=first_step, filename_suffix=suffix)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self.writer.flush()
        self._copy()

    def close(self) -> None:
        self.writer.close()  # first, since a flush alone leaves out what is still in its queue
        self._copy()
        if self.remote:
            shutil.rmtree(self.local)

    def _copy(self) -> None:
        for name in os.listdir(self.local) if self.remote else ():
            with open(os.path.join(self.local, name), "rb") as file:
                storage.write_bytes(storage.join(self.files.events, name), file.read())


class Wandb:
    """A run of Weights & Biases, the same one after a restart."""

    def __init__(self, files: TrainingFiles, first_step: int, about: Document) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identity(files),
            name=name_of(files),
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or tempfile.mkdtemp(prefix="curate-wandb-"),
            config=about,
        )
        # Its own steps only go on, and what a probe finds is of an earlier one
        self.run.define_metric("*", step_metric="step")

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log({"step": step, **figures})

    def flush(self) -> None:
        """It writes by itself."""

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow, the same one after a restart."""

    def __init__(self, files: TrainingFiles, first_step: int, about: Document) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self.metric = Metric
        self.client = MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self.client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else self.client.create_experiment(experiment)
        tag = identity(files)
        there = self.client.search_runs([number], f"tags.curate = '{tag}'", max_results=1)
        if there:
            self.run = there[0].info.run_id
            return
        run = self.client.create_run(number, tags={"curate": tag}, run_name=name_of(files))
        self.run = run.info.run_id
        said = {"output": files.folder, **_flat(about)}
        params = [Param(name, str(value)[:500]) for name, value in said.items()]
        self.client.log_batch(self.run, params=params[:100])

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self.metric(name, float(value), now, step) for name, value in figures.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def flush(self) -> None:
        """It writes at once."""

    def close(self) -> None:
        self.client.set_terminated(self.run)


def identity(files: TrainingFiles) -> str:
    """Of a training, by its place: a restart goes on with the same curves."""
    return hashlib.sha256(files.folder.encode()).hexdigest()[:16]


def name_of(files: TrainingFiles) -> str:
    """The end of its place, which tells it from others: `pets/pretrain`."""
    return "/".join(files.folder.rstrip("/").split("/")[-2:])


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    inner = [_flat(one, f"{prefix}.{key}".lstrip(".")) for key, one in value.items()]
    return {name: one for each in inner for name, one in each.items()}
