"""The Ray that a run uses: the cluster it was submitted to, or one embedded in this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from curate.errors import CurateError, one_line


def connect(address: str | None = None, *, verbose: bool = False) -> None:
    """Join the cluster at `address` or RAY_ADDRESS, as every submitted job does, or start a local
    Ray; do nothing where this process has one already.

    Raises CurateError where no cluster answers.
    """
    if not verbose:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        # Of tasks that fail alike, the first one's reason is told; the others' are no news
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of its C++ half, to our stderr
    level = logging.INFO if verbose else logging.ERROR
    if not ray.is_initialized():
        address = address or os.environ.get("RAY_ADDRESS")
        try:
            with _quiet_stderr(not verbose):
                _init(address, level, verbose)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"at {address}" if address else "on this machine"
            raise CurateError(f"no Ray {where}: {one_line(error)}") from error
    from ray.data import DataContext  # with pandas: a second that no task needs

    for name in ("ray", "ray.data", "ray.train"):  # imported, each has set a level of its own
        logging.getLogger(name).setLevel(level)
    context = DataContext.get_current()
    context.enable_progress_bars = verbose
    if not verbose:
        context.issue_detectors_config.detectors = []  # of memory that no task claims
    # Waiting for nodes is no failure; who follows a dataset knows better when it is stuck
    context.execution_no_progress_timeout_s = -1


def _init(address: str | None, level: int, verbose: bool) -> None:
    if address:
        ray.init(address=address, logging_level=level, log_to_driver=verbose)
        return
    ray.init(
        address="local",  # unset, Ray would join whatever `ray start` last left on this machine
        include_dashboard=False,
        # A task is one thread, as on every cluster, whatever this shell exports
        runtime_env={
            "env_vars": {
                "PYTHONPATH": _import_path(),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            }
        },
        logging_level=level,
        log_to_driver=verbose,
    )
    _awake.remote()  # the first worker starts while the driver goes on importing


@ray.remote(num_cpus=0)
def _awake() -> None:
    pass


@contextmanager
def _quiet_stderr(quiet: bool) -> Iterator[None]:
    """Ray's C++ half writes to file descriptor 2 itself, first of all that it was told to be quiet.
    What goes wrong comes as an exception."""
    if not quiet:
        yield
        return
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def alive_nodes() -> list[dict[str, float]]:
    """The resources of each node that is there now."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """For what must not be lost with some other node: it ends when its driver does."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def over_tasks(task: Any, items: Sequence[Any], at_once: int, *arguments: Any) -> list[Any]:
    """Results of `task(some of the items, *arguments)`, at_once items each, in their order.

    task: a `ray.remote` function. Arguments go into the object store once.
    """
    shared = [ray.put(one) for one in arguments] if len(items) else []
    groups = [items[start : start + at_once] for start in range(0, len(items), at_once)]
    return results([task.remote(group, *shared) for group in groups])


def results(references: list[ObjectRef]) -> list[Any]:
    """Results of tasks; a CurateError that one of them raised comes out as itself."""
    with own_errors():
        return ray.get(references)


@contextmanager
def own_errors() -> Iterator[None]:
    """Let a CurateError that a task or actor raised out as itself, and others as they come."""
    try:
        yield
    except Exception as error:
        cause = cause_of(error)
        if cause is None:
            raise
        raise cause from None


def cause_of(error: BaseException) -> CurateError | None:
    """The CurateError that a task or actor raised, from under what Ray wrapped around it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        if type(current) is CurateError:
            return current
        seen.add(id(current))
        waiting += [getattr(current, "cause", None), current.__cause__, current.__context__]
    return None


def _import_path() -> str:
    """Workers import the package from where this process did, installed or not."""
    root = str(Path(__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return f"{root}:{inherited}" if inherited else root
