"""A manifest of many rows: seconds, and what the driver holds.

    python benchmarks/bench_manifest.py [--rows 100000 1000000 10000000] [--scratch FOLDER]

Twice as many images as rows lie in shards of 50,000, of narrow embeddings; which are selected, and
in what order, is drawn at random. The driver's memory is read every 20 ms from before to after.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from peak import Peak

from curate import cluster
from curate.coreset import manifest
from curate.coreset.rounds import Selection
from curate.runfiles import shards
from curate.runfiles.run import Embedded
from curate.runfiles.shards import Shard

SHARD_ROWS = 50_000
WIDTH = 4


@ray.remote
def make(folder: str, number: int) -> str:
    places = np.arange(number * SHARD_ROWS, (number + 1) * SHARD_ROWS)
    table = pa.table(
        {
            "key": [f"{place:09d}" for place in places],
            "uri": [f"s3://bucket/images/{place // 10_000:06d}.tar" for place in places],
            "offset": pa.array(places * 512),
            "size": pa.array(places % 100_000),
            "row": pa.nulls(SHARD_ROWS, pa.int64()),
            "label": pa.nulls(SHARD_ROWS, pa.string()),
            "width": pa.array(np.full(SHARD_ROWS, 640, np.int32)),
            "height": pa.array(np.full(SHARD_ROWS, 480, np.int32)),
            "sha256": [sha256(b"%d" % place).hexdigest() for place in places],
        },
        shards.IMAGE_SCHEMA,
    )
    uri = f"{folder}/part-{number:06d}.arrow"
    shards.write_arrow(uri, shards.table_of(table, np.zeros((SHARD_ROWS, WIDTH), np.float16)))
    return uri


def selection_of(total: int, rows: int) -> Selection:
    rng = np.random.default_rng(0)
    position = rng.permutation(total)[:rows]
    number = np.arange(rows)
    return Selection(
        position,
        (number % 100).astype(np.int32),
        (number // 100 + 1).astype(np.int32),
        rng.random(rows),
        [],
        "budget",
    )


def measure(rows: int, scratch: Path) -> float:
    """→ seconds."""
    count = -(-2 * rows // SHARD_ROWS)
    made = cluster.results([make.remote(str(scratch), number) for number in range(count)])
    shard_list = [Shard(uri, 0, SHARD_ROWS, n * SHARD_ROWS) for n, uri in enumerate(made)]
    selection = selection_of(count * SHARD_ROWS, rows)
    uri = str(scratch / "coreset.parquet")
    with Peak() as peak:
        start = time.monotonic()
        counts = manifest.write(uri, Embedded([], shard_list, ["open"] * count, ""), selection, {})
        seconds = time.monotonic() - start
    assert counts == {"open": rows}
    found = pq.ParquetFile(uri)
    for group in range(found.num_row_groups):
        table = found.read_row_group(group, columns=["position", "key"])
        part = selection.position[group * 65_536 :][: len(table)]
        assert np.array_equal(table["position"].to_numpy(), part)
        assert table["key"].to_pylist()[::1000] == [f"{place:09d}" for place in part[::1000]]
    print(
        f"{rows:>11,} rows of {count} shards: {seconds:.1f} s, driver at most "
        f"{peak.most[0]:.0f} MB above its start, {peak.most[1]:.0f} MB without what it shares with "
        f"Ray's store; {Path(uri).stat().st_size / 1e6:,.0f} MB"
    )
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--scratch", default=None)
    arguments = parser.parse_args()
    cluster.connect()
    for rows in arguments.rows:
        scratch = Path(tempfile.mkdtemp(dir=arguments.scratch))
        try:
            measure(rows, scratch)
        finally:
            shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
