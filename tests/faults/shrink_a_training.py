"""python -m tests.faults.shrink_a_training FOLDER [METHOD BACKBONE]: a training whose machines go
and come, beside an undisturbed one. Prints how far their losses are apart.

Without a method it is MAE, which has no BatchNorm: its losses are the same for any number of
workers.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from curate import cluster as own
from curate.pretraining import launch
from curate.pretraining.stage import pretrain
from curate.settings import RunSettings
from curate.settings import load as config
from tests.datasets import write_folder

STEPS, EVERY = 60, 5
GROUP = 3


def settings_for(folder: Path, name: str, model: tuple[str, str], **resources: Any) -> RunSettings:
    source = {"kind": "image_folder", "path": str(folder / "images")}
    method, backbone = model
    return config.parse(
        {
            "target": source,
            "open": [{"name": "none", **source}],
            "encoder": {"backbone": backbone, "image_px": 32},
            "output": str(folder / name),
            "pretrain": {
                **{"method": method, "data": ["target"], "steps": STEPS, "batch_size": 12},
                "checkpoints": {"every": EVERY},
                "resources": {"use_gpu": False, **resources},
            },
        },
        "test",
    )


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    try:
        lines = (folder / name / "pretrain" / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def disturbed(cluster: Cluster, folder: Path, settings: RunSettings) -> None:
    """Loses a machine once it has trained for a while, and has another one later."""
    failed: list[BaseException] = []

    def train() -> None:
        try:
            pretrain(settings)
        except BaseException as error:
            failed.append(error)

    trainer = threading.Thread(target=train)
    trainer.start()

    def wait_until(enough: Callable[[], bool]) -> None:
        while not enough() and trainer.is_alive():
            time.sleep(0.2)

    def steps() -> int:
        names = (folder / "elastic" / "pretrain" / "checkpoints").glob("step-*.pt")
        return max((int(path.stem.removeprefix("step-")) for path in names), default=0)

    wait_until(lambda: steps() >= 2 * EVERY)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    lost = steps()
    wait_until(lambda: steps() >= lost + 2 * EVERY)
    cluster.add_node(num_cpus=1)
    trainer.join()
    assert not failed, failed


def main(folder: Path, method: str = "mae", backbone: str = "vit_tiny_patch16_224") -> None:
    write_folder(folder / "images", range(30))
    launch.GROWS_EVERY_S = 5.0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(GROUP - 1):
        cluster.add_node(num_cpus=1)
    own.connect(cluster.address)
    pretrain(settings_for(folder, "fixed", (method, backbone), workers=1))
    elastic = settings_for(folder, "elastic", (method, backbone), workers=GROUP, min_workers=1)
    disturbed(cluster, folder, elastic)
    fixed, found = records(folder, "fixed"), records(folder, "elastic")
    assert [one["step"] for one in fixed] == [one["step"] for one in found]
    workers = [one["workers"] for one in found]
    apart = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(fixed, found, strict=True))
    print("workers", *workers)
    print("apart", apart)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
