"""python -m tests.lose_a_node CONFIG: run it on a head and two nodes, and remove one of them.

The head has no CPU, so that actors and readers live on the two nodes.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from curate.pipeline import run
from curate.settings import load as config


def main(config_path: str) -> None:
    settings = config.load(config_path)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=3) for _ in range(2)]
    cluster.wait_for_nodes()
    cluster.connect(cluster.address)
    folder = Path(settings.output) / "embeddings"

    def lose() -> None:
        while len(list(folder.rglob("[!.]*.arrow"))) < 3:
            time.sleep(0.02)
        cluster.remove_node(nodes[0], allow_graceful=False)
        left = not (Path(settings.output) / "coreset.parquet").exists()
        print("lost a node with units left" if left else "lost a node too late", flush=True)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    summary = run(settings)
    thread.join(60)
    print(summary.outcome.selected, "selected")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
