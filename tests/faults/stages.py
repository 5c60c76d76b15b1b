"""python -m tests.faults.stages CONFIG FAULT: a run of it for each stage, and the fault in there.

On a cluster in this process: a head without CPUs, which the driver shares, and two nodes. Whatever
first enters a stage is struck; nothing is afterwards. Each run's output is a folder beside that of
CONFIG, by the fault and the stage. Prints a line of JSON for each: {stage, struck, error, seconds},
where error is what the run ended with, before it was run again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import reduce, wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster

from tests.faults.alone import ROOT

if TYPE_CHECKING:
    from curate.settings import RunSettings

# Who enters, by module and name
STAGES = {
    "read": ("curate.embedding.parts", "_parts_of"),
    "embed": ("curate.embedding.actors", "EmbedParts._embed"),
    "plan": ("curate.sources.url_list", "_unit"),
    "centroids": ("curate.coreset.stage", "save_guide"),
    "select": ("curate.coreset.passes", "_checked"),
    "manifest": ("curate.coreset.manifest_rows", "_rows"),
    "copy": ("curate.dataset.copying", "_items"),
}
STRUCK = {  # fault: in which; centroids are of the driver alone
    "worker": ("read", "embed", "plan", "select", "manifest", "copy"),
    "node": ("read", "embed", "plan", "select", "manifest", "copy"),
    "memory": ("read", "embed", "select"),
    "disk": tuple(STAGES),
}
ARMED = "CURATE_TEST_ARMED"  # a file that names fault, stage and folder; struck, it is gone
STEP = 64 << 20  # bytes taken at a time, of the memory
SPARE = 6 << 30  # what cluster and driver and their workers need is less
MOST = 10 << 30


def arm() -> None:
    """Ray calls it in every worker as it starts."""
    sys.meta_path.insert(0, _Armed())


class _Armed(MetaPathFinder):
    """Puts the faults into modules as they are imported: a worker that needs none of them, nor
    torch, is to start as fast as ever."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        stages = {stage: at[1] for stage, at in STAGES.items() if at[0] == name}
        spec = PathFinder.find_spec(name, path) if stages else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_armed(module: ModuleType) -> None:
            load(module)
            for stage, function in stages.items():
                *owners, last = function.split(".")
                owner = reduce(getattr, owners, module)
                setattr(owner, last, _with_fault(stage, getattr(owner, last)))

        spec.loader.exec_module = load_armed  # type: ignore[method-assign]
        return spec


def _with_fault(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def struck_first(*args: Any, **kwargs: Any) -> Any:
        _strike(stage)
        return function(*args, **kwargs)

    return struck_first


def _strike(stage: str) -> None:
    armed = Path(os.environ[ARMED])
    try:
        order = json.loads(armed.read_text())
        if order["stage"] != stage:
            return
        struck = armed.with_suffix(".struck")
        armed.rename(struck)  # of several at once, one can
    except FileNotFoundError:
        return
    if order["fault"] == "worker":
        os.kill(os.getpid(), signal.SIGKILL)
    if order["fault"] == "node":
        (armed.parent / "node").write_text(ray.get_runtime_context().get_node_id())
        time.sleep(120)  # it is removed long before
    if order["fault"] == "memory":
        taken: list[Any] = []
        while len(taken) * STEP < MOST:
            taken.append(np.ones(STEP, np.uint8))
            time.sleep(0.05)
        time.sleep(60)
        struck.unlink()  # nobody minded
    if order["fault"] == "disk":
        with open(Path(order["output"]).parent / "ballast", "wb", buffering=0) as ballast:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while ballast.write(b"\0" * size) == size:
                        pass
                except OSError:
                    continue


class Nodes:
    """Two nodes with CPUs beside the head. One that is named in a file is taken away."""

    def __init__(self, named: Path) -> None:
        self.named = named
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.nodes: list[Node] = []
        self.be_two()

    def be_two(self) -> None:
        while len(self.nodes) < 2:
            self.nodes.append(self.cluster.add_node(num_cpus=2))
        self.cluster.wait_for_nodes()

    def take_the_named(self) -> None:
        while True:
            time.sleep(0.05)
            if self.named.exists() and (name := self.named.read_text()):
                self.named.unlink()
                (lost,) = [node for node in self.nodes if node.node_id == name]
                self.cluster.remove_node(lost, allow_graceful=False)
                self.nodes.remove(lost)


def main(config_path: str, fault: str) -> None:
    if fault == "disk":
        arm()  # what the driver writes is to meet it as well
    from curate import cluster
    from curate.settings import load as config

    settings = config.load(config_path)
    armed = Path(settings.output).parent / "armed"
    os.environ[ARMED] = str(armed)
    if fault == "memory":
        limit_memory(SPARE)
    nodes = Nodes(armed.parent / "node")
    ray.init(
        address=nodes.cluster.address,
        runtime_env={
            "worker_process_setup_hook": "tests.faults.stages.arm",
            "env_vars": {"PYTHONPATH": str(ROOT), ARMED: str(armed), "OMP_NUM_THREADS": "1"},
        },
        log_to_driver=False,
    )
    cluster.connect()
    if fault == "node":
        threading.Thread(target=nodes.take_the_named, daemon=True).start()
    for stage in STRUCK[fault]:
        output = armed.parent / f"{fault}-{stage}"
        armed.write_text(json.dumps({"fault": fault, "stage": stage, "output": str(output)}))
        start = time.monotonic()
        # What reads or embeds begins with an empty store; the others find all in one of these
        store = armed.parent / f"{fault}-store-{'read' if stage == 'read' else 'embed'}"
        paths = {"output": str(output), "store": str(store)}
        error = outcome(settings.model_copy(update=paths))
        record = {"stage": stage, "struck": armed.with_suffix(".struck").exists(), "error": error}
        record["seconds"] = round(time.monotonic() - start, 1)
        print(json.dumps(record), flush=True)
        nodes.be_two()
        for path in (armed, armed.with_suffix(".struck")):
            path.unlink(missing_ok=True)
    ray.shutdown()
    nodes.cluster.shutdown()


def outcome(settings: RunSettings) -> str | None:
    """What ended a run, if anything did; then the room that the fault took is free again, and the
    same is done a second time."""
    from curate.errors import CurateError
    from tests.faults.work import work

    try:
        work(settings)
    except CurateError as error:
        (Path(settings.output).parent / "ballast").unlink(missing_ok=True)
        work(settings)
        return str(error)
    return None


def limit_memory(spare: int) -> None:
    """Let Ray end workers once so many bytes more than now are in use."""
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + spare) / memory.total
    os.environ["RAY_memory_usage_threshold"] = str(limit)  # noqa: SIM112
    os.environ["RAY_memory_monitor_refresh_ms"] = "100"  # noqa: SIM112


if __name__ == "__main__":
    main(*sys.argv[1:])
