"""The plan of a long list of URLs, the ledger of many units: seconds, and what the driver holds.

    python benchmarks/bench_plan.py [--urls 100000 1000000 10000000] [--units 10000 100000 1000000]

A list has one URL of about 60 bytes a line; its plan is checked to cover every line. The ledger is
of units that are all done, of one shard each, whose files are there: what is timed is a run gone
on with that finds nothing to do, from the plan file to the counts. Shards are empty files, of the
size 0 that the ledger says, so that a million of them can be made.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from peak import Peak

from curate import cluster
from curate.runfiles import accounts, plan
from curate.runfiles import ledger as ledgers
from curate.runfiles.files import EmbeddingFiles, PlanFiles
from curate.runfiles.ledger import Ledger
from curate.runfiles.plan import Plan
from curate.settings import UrlListSettings
from curate.sources import plan_source


def of_urls(urls: int, folder: Path) -> float:
    """→ seconds."""
    path = folder / "list.txt"
    with open(path, "w") as file:
        for start in range(0, urls, 100_000):
            lines = range(start, min(start + 100_000, urls))
            file.writelines(
                f"https://images.example.org/{n // 977:06x}/{n:010d}.jpg\n" for n in lines
            )
    source = UrlListSettings(name="list", kind="url_list", path=[str(path)])
    with Peak() as peak:
        start = time.monotonic()
        units = plan_source(source, 1000, str(folder / "units"))
        seconds = time.monotonic() - start
    assert sum(unit.images or 0 for unit in units) == urls
    print(
        f"plan of {urls:,} URLs: {len(units):,} units, {seconds:.1f} s, "
        f"driver's peak {peak.most[0]:.0f} MB above its start",
        flush=True,
    )
    return seconds


def of_units(units: int, folder: Path) -> float:
    """→ seconds."""
    digests = [hashlib.sha256(b"%d" % n).hexdigest()[:32] for n in range(units)]
    made = PlanFiles(str(folder / "plan"))
    files = EmbeddingFiles(str(folder / "store"))
    images = np.full(units, 1000)
    table = pa.table(
        {
            "set": ["open"] * units,
            "source": ["tars"] * units,
            "uri": [f"s3://bucket/images/{n:07d}.tar" for n in range(units)],
            "digest": digests,
            "start": np.zeros(units, np.int64),
            "stop": pa.nulls(units, pa.int64()),
            "images": images,
            "size": images * 100_000,
            "stamp": digests,
        },
        plan.SCHEMA,
    )
    plan.write(Plan(made, table))
    shards_type = ledgers.SCHEMA.field("shards").type
    records = pa.table(
        {
            "unit": digests,
            "seen": images,
            "embedded": images,
            "rejected": np.zeros(units, np.int64),
            "seconds": np.ones(units),
            "shards": pa.array([[{"rows": 1000, "bytes": 0}]] * units, shards_type),
            "failed": pa.nulls(units, pa.string()),
        },
        ledgers.SCHEMA,
    )
    ledgers.shards.write_parquet(f"{files.ledger}/all.parquet", records)
    for digest in digests:
        path = Path(files.shard(digest, 0))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    del table, records, digests
    with Peak() as peak:
        start = time.monotonic()
        found = plan.read(made)
        ledger = Ledger.verified(files, found.digests)
        counts = accounts.by_source(found, ledger)
        seconds = time.monotonic() - start
    assert counts.total("open", "embedded") == 1000 * units and not ledger.added
    print(
        f"resume with {units:,} units done: {seconds:.1f} s, "
        f"driver's peak {peak.most[0]:.0f} MB above its start",
        flush=True,
    )
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--urls", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--units", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    cluster.connect()
    for sizes, measure in ((options.urls, of_urls), (options.units, of_units)):
        for size in sizes:
            folder = Path(tempfile.mkdtemp(prefix="bench-plan-"))
            try:
                measure(size, folder)
            finally:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
