"""python -m tests.faults.grow_a_cluster: a pool on a cluster whose GPUs come late, and go.

What nodes claim to be GPUs are none: the actors only say where they are.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster
from ray.data import ActorPoolStrategy

from curate import cluster as own
from curate.embedding import flow, stage
from curate.progress import Progress
from curate.settings import EmbedSettings

UNITS = 240


class Here:
    """Says on which node it was asked."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        time.sleep(0.15)
        node = ray.get_runtime_context().get_node_id()
        return pa.table({"unit": rows["id"], "node": [node] * len(rows)})


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    own.connect(cluster.address)
    pool = stage.pool_of(EmbedSettings(device="gpu"), "gpu", ray.cluster_resources())
    dataset = ray.data.range(UNITS, override_num_blocks=UNITS).map_batches(
        Here,
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=pool.min_size, max_size=pool.max_size, initial_size=pool.initial_size
        ),
        num_cpus=stage.ACTOR_CPUS,
        num_gpus=pool.num_gpus,
    )
    flow.LOOK_EVERY_S = 0.5
    flow.STUCK_AFTER_S = 5.0  # shorter than the wait for the first node
    came: list[str] = []
    awaited: list[str] = []

    class Told(Progress):
        def awaits(self, what: str | None) -> None:
            if what:
                awaited.append(what)

    units: Counter[int] = Counter()
    failed: list[BaseException] = []

    def follow() -> None:
        try:
            with Told("embed", UNITS) as progress:
                for row in flow.rows_of(dataset, progress, True):
                    units[row["unit"]] += 1
                    came.append(row["node"])
        except BaseException as error:
            failed.append(error)

    def wait_until(enough: Callable[[], bool]) -> None:
        while not enough() and follower.is_alive():
            time.sleep(0.1)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    time.sleep(8)
    cluster.add_node(num_cpus=2, num_gpus=1)  # nodes come from the main thread alone
    wait_until(lambda: len(came) > 20)
    second = cluster.add_node(num_cpus=2, num_gpus=2)
    wait_until(lambda: len(set(came)) > 1)
    flow.STUCK_AFTER_S = 120.0  # longer than Ray needs to see that a node is gone
    cluster.remove_node(second, allow_graceful=False)
    left = UNITS - len(came)
    follower.join()
    assert not failed, failed
    assert units == Counter(range(UNITS)), "a row was lost, or came twice"
    assert awaited and set(awaited) == {"waiting for a node with a GPU"}, awaited
    assert len(set(came)) == 2 and left > 0, "the pool did not follow the cluster"
    print("followed", len(came), "rows")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
