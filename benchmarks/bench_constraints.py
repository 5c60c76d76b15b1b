"""What constraints cost a selection: quotas, where, drop and add, exact copies, beside none.

    python benchmarks/bench_constraints.py [--rows 10000000] [--dim 32] [--rounds 2] [--data FOLDER]

Unit rows about 1,000 centres, in files of 500,000 rows that also say of each image its key, label,
width and digest; three in ten are byte for byte another. SimCore, k = 100, a budget of 1 %. The
cases take turns; the median of each and its ratio to the case without are printed. Each selection
is checked: no quota is exceeded, nothing is in it that may not be, all that was added is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate import cluster
from curate.coreset import stage
from curate.coreset.constraints import NOT_WHERE
from curate.coreset.rounds import Selection
from curate.runfiles import shards
from curate.runfiles.run import Embedded
from curate.runfiles.shards import Shard
from curate.settings import CoresetSettings

FILE_ROWS = 500_000
CENTRES = 1000
LABELS = 50
NARROW = 0.2  # of the images are under WIDTH
WIDTH = 224
COPIES = 0.3
BUDGET = 0.01
SOURCES = ("crawl", "archive")


def unit(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def about(first: int, rows: int) -> tuple[pa.Table, NDArray[np.int64]]:
    """What is known of images, and of which image each is a copy, itself if of none."""
    rng = np.random.default_rng([1, first])
    place = np.arange(first, first + rows)
    original = np.where(rng.random(rows) < COPIES, rng.integers(first, first + rows, rows), place)
    label = rng.zipf(1.5, rows) % LABELS
    width = np.where(rng.random(rows) < NARROW, 100, 300).astype(np.int32)
    digest = [f"{one:032x}" * 2 for one in original.tolist()]
    table = {"key": [f"k{one}" for one in place.tolist()], "label": label.astype(str)}
    return pa.table({**table, "width": width, "sha256": digest}), original


def write(folder: Path, rows: int, dim: int) -> tuple[Embedded, dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(0)
    centres = unit(rng.standard_normal((CENTRES, dim)))
    open_set: list[Shard] = []
    known: dict[str, list[Any]] = {"label": [], "width": [], "sha256": []}
    for first in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - first)
        table, original = about(first, count)
        path = folder / f"{rows}x{dim}-{first}.arrow"
        if not path.exists():
            own = np.random.default_rng([2, first])
            noise = own.standard_normal((count, dim), np.float32) * 0.7 / np.sqrt(dim)
            made = unit(centres[own.integers(0, CENTRES, count)] + noise).astype(np.float16)
            shards.write_arrow(str(path), shards.table_of(table, made[original - first]))
        open_set.append(Shard(str(path), 0, count, first))
        for name in known:
            known[name].append(table[name].to_numpy())
    target = unit(centres[:20].repeat(100, 0) + rng.standard_normal((2000, dim)) * 0.7 / dim**0.5)
    shards.write_arrow(
        str(folder / "target.arrow"),
        shards.table_of(
            pa.table({"sha256": ["f" * 64] * 2000, "key": ["t"] * 2000}), target.astype(np.float16)
        ),
    )
    sources = [SOURCES[number % 2] for number in range(len(open_set))]
    found = Embedded([Shard(str(folder / "target.arrow"), 0, 2000, 0)], open_set, sources, "")
    return found, {name: np.concatenate(parts) for name, parts in known.items()}


def place_of(position: int) -> str:
    return f"{SOURCES[position // FILE_ROWS % 2]}/k{position}"


def cases_of(rows: int) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(3)
    some = np.unique(rng.integers(0, rows, 2000)).tolist()
    by_hand = {"drop": [place_of(p) for p in some[::2]], "add": [place_of(p) for p in some[1::2]]}
    quotas = [{"by": "source", "most": 0.6}, {"by": "label", "most": 0.05}]
    where = {"where": f"width >= {WIDTH} and label is not null"}
    return {
        "none": {},
        "quotas": {"quotas": quotas},
        "where": where,
        "drop and add": by_hand,
        "dedup: exact": {"dedup": "exact"},
        "all of these": {"quotas": quotas, **where, **by_hand, "dedup": "exact"},
    }


def wrong(
    settings: dict[str, Any], found: Selection, known: dict[str, NDArray[Any]], budget: int
) -> str:
    """What of a selection is not as it must be."""
    position = found.position
    added = {int(one.rpartition("k")[2]) for one in settings.get("add", [])}
    dropped = {int(one.rpartition("k")[2]) for one in settings.get("drop", [])}
    others = np.setdiff1d(position, [*added])
    taken = set(position.tolist())
    if len(taken) != budget or len(position) != budget:
        return f"{len(taken)} images of {budget}"
    if not added <= taken or taken & dropped:
        return "by hand"
    if "where" in settings and (known["width"][others] < WIDTH).any():
        return "where"
    if "where" in settings and not found.left_out[NOT_WHERE]:
        return "where: not counted"
    if "quotas" in settings:
        source = np.bincount(position // FILE_ROWS % 2)
        label = np.unique(known["label"][position], return_counts=True)[1]
        if source.max() > round(0.6 * budget) or label.max() > round(0.05 * budget):
            return "quotas"
    if "dedup" in settings and len(np.unique(known["sha256"][others])) < len(others):
        return "copies"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data", type=Path, help="a folder to keep the shards in")
    options = parser.parse_args()
    budget = round(BUDGET * options.rows)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.data or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found, known = write(folder, options.rows, options.dim)
        cluster.connect()
        cases = cases_of(options.rows)
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        said: dict[str, str] = {}
        for number in range(options.rounds + 1):
            for name, settings in cases.items():
                asked: dict[str, Any] = {"budget": budget, "tau": None, **settings}
                coreset = CoresetSettings(**asked)
                begun = time.perf_counter()
                guide = stage.guide_of(found, coreset)
                selection = stage.choose(coreset, found, guide)
                if number:  # the first warms the page cache
                    seconds[name].append(time.perf_counter() - begun)
                else:
                    said[name] = wrong(settings, selection, known, budget)
        for name, took in seconds.items():
            ratio = median(took) / median(seconds["none"])
            state = f"WRONG: {said[name]}" if said[name] else "as it must be"
            print(f"{name:<14} {median(took):6.2f} s, {ratio:.2f} × without, {state}", flush=True)
    return int(any(said.values()))


if __name__ == "__main__":
    sys.exit(main())
