"""python -m tests.faults.shrink_a_training FOLDER WORKERS: a training whose machines go and come,
or of one worker, undisturbed. Prints what it has recorded, as JSON; goes on until a group of
several has lost a worker and found another, and one alone for as many steps as FOLDER has of such
a group.

By MAE, which has no BatchNorm: its losses are the same for any number of workers.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from curate import cluster as own
from curate.pretraining import checkpoints, launch
from curate.pretraining.stage import pretrain
from curate.runfiles.files import RunFiles
from curate.settings import RunSettings
from curate.settings import load as config
from tests.datasets import write_folder

STEPS, EVERY = 2000, 5  # more than are made


def settings_for(folder: Path, workers: int) -> RunSettings:
    source = {"kind": "image_folder", "path": str(folder / "images")}
    return config.parse(
        {
            "target": source,
            "open": [{"name": "none", **source}],
            "encoder": {"backbone": "vit_tiny_patch16_224", "image_px": 32},
            "output": str(folder / str(workers)),
            "pretrain": {
                **{"method": "mae", "data": ["target"], "steps": STEPS, "batch_size": 12},
                "checkpoints": {"every": EVERY},
                "resources": {"use_gpu": False, "workers": workers, "min_workers": 1},
            },
        },
        "test",
    )


def recorded(settings: RunSettings) -> list[dict[str, Any]]:
    state = checkpoints.newest(RunFiles(settings.output).pretrain.checkpoints)
    return state["records"] if state else []


def main(folder: Path, workers: int) -> None:
    settings = settings_for(folder, workers)
    launch.GROWS_EVERY_S = 2.0
    write_folder(folder / "images", range(30))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(workers - 1):
        cluster.add_node(num_cpus=1)
    own.connect(cluster.address)
    trainer = threading.Thread(target=pretrain, args=(settings,), daemon=True)
    trainer.start()

    def wait_until(enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        while not enough(found := recorded(settings)):
            assert trainer.is_alive(), "it has ended"
            time.sleep(0.3)
        return found

    if workers == 1:
        steps = len(json.loads((folder / "group.json").read_text()))
        found = wait_until(lambda records: len(records) >= steps)[:steps]
    else:
        wait_until(lambda records: len(records) > EVERY)
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        wait_until(lambda records: records[-1]["workers"] < workers)
        cluster.add_node(num_cpus=1)
        found = wait_until(
            lambda records: (
                records[-1]["workers"] == workers
                and any(one["workers"] < workers for one in records)
            )
        )
        (folder / "group.json").write_text(json.dumps(found))
    print(json.dumps(found), flush=True)
    # The training cannot end any more, and asks for its board while there is a Ray to ask
    for node in cluster.list_all_nodes():
        node.kill_all_processes(check_alive=False, allow_graceful=False)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
