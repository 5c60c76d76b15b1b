"""How long each rule takes to select, beside SimCore: from embeddings to positions.

    python benchmarks/bench_rules.py [--rows 1000000] [--dim 512] [--rounds 3] [--data FOLDER]

The open set is bench_selection.py's; the target set are 2,000 images of its classes. Every rule
takes the same budget, and estimates what it goes by, centroids or a ratio, within its time. The
rules take turns, so that whatever else the machine does meets all alike; the median of each and its
ratio to SimCore's are printed. The images of each are checked against scores and rounds over the
whole matrix in one process, and any difference makes the run exit with status 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from bench_selection import SPREAD, classes_of, prepare_data, unit
from numpy.typing import NDArray

from curate import cluster
from curate.coreset import stage
from curate.coreset.ratio import Linear, Noisy, gate_size
from curate.coreset.rounds import Selection
from curate.coreset.rules import Guide
from curate.runfiles.columns import count_rows
from curate.runfiles.embeddings import read_embeddings
from curate.runfiles.run import Embedded
from curate.runfiles.shards import Shard
from curate.settings import CoresetSettings

BUDGET = 0.05
TARGET = 2000
RULES = {
    "simcore": {},
    "ratio, linear": {"method": "ratio"},
    "ratio, logistic": {"method": "ratio", "ratio": "logistic"},
    "ratio, kernel": {"method": "ratio", "ratio": "kernel"},
    "gate": {"method": "gate"},
    "resample": {"method": "resample"},
}


def target_file(folder: Path, dim: int, seed: int) -> Path:
    classes = classes_of(dim, seed)
    rng = np.random.default_rng([seed, 4])
    centre = np.repeat(classes, TARGET // len(classes), axis=0)
    noise = rng.standard_normal(centre.shape) / np.sqrt(dim)
    path = folder / "target.npy"
    np.save(path, unit(centre + rng.uniform(*SPREAD, (len(centre), 1)) * noise).astype(np.float16))
    return path


def shards_of(paths: list[str]) -> list[Shard]:
    shards: list[Shard] = []
    for path in paths:
        first = shards[-1].first + shards[-1].rows if shards else 0
        shards.append(Shard(path, 0, count_rows(path), first))
    return shards


def simple_rounds(
    rows: NDArray[np.float64], centroids: NDArray[np.float64], budget: int
) -> NDArray[np.int64]:
    """Positions that SimCore's rounds take of these rows, by a sorted list a centroid."""
    similarity = rows @ centroids.T
    order = np.argsort(-similarity, axis=0, kind="stable")
    taken = np.zeros(len(rows), bool)
    heads = np.zeros(len(centroids), np.int64)
    found: list[int] = []
    while len(found) < budget:
        picks: dict[int, float] = {}
        for q in range(len(centroids)):
            while taken[order[heads[q], q]]:
                heads[q] += 1
            image = int(order[heads[q], q])
            picks[image] = max(picks.get(image, -np.inf), similarity[image, q])
        best = sorted(picks, key=lambda image: (-picks[image], image))[: budget - len(found)]
        taken[list(picks)] = True
        found += best
    return np.sort(found)


def expected(
    coreset: CoresetSettings, guide: Guide, rows: NDArray[np.float32], budget: int
) -> NDArray[np.int64]:
    """The rule by its definition, on the whole matrix."""
    exact = rows.astype(np.float64)
    let_in = np.arange(len(rows))
    if guide.score is not None:
        score = Noisy(guide.score, coreset.seed) if coreset.method == "resample" else guide.score
        scores = (
            exact @ score.direction
            if isinstance(score, Linear)
            else np.concatenate([score.exact(part) for part in np.array_split(rows, 100)])
        )
        size = gate_size(coreset.gate, budget, len(rows)) if coreset.method == "gate" else budget
        let_in = np.sort(np.argsort(-scores, kind="stable")[:size])
    if guide.centroids is None:
        return let_in
    grid = np.rint(guide.centroids.astype(np.float64) * 2**24) / 2**24
    return let_in[simple_rounds(exact[let_in], grid, budget)]


def select(coreset: CoresetSettings, found: Embedded) -> tuple[float, Guide, Selection]:
    begun = time.perf_counter()
    guide = stage.guide_of(found, coreset)
    selection = stage.choose(coreset, found, guide)
    return time.perf_counter() - begun, guide, selection


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="a folder to keep the shards in")
    parser.add_argument("--unchecked", action="store_true", help="of more rows than memory holds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.data or Path(scratch)
        paths = prepare_data(folder, options.rows, options.dim, options.seed)
        target = target_file(folder, options.dim, options.seed)
        cluster.connect()
        names = [""] * len(paths)
        found = Embedded(shards_of([str(target)]), shards_of(paths), names, "")
        asked = {
            name: CoresetSettings(**{"budget": BUDGET, "tau": None} | rule)  # type: ignore[arg-type]
            for name, rule in RULES.items()
        }
        first = {name: select(coreset, found) for name, coreset in asked.items()}
        seconds: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(options.rounds):
            for name, coreset in asked.items():
                seconds[name].append(select(coreset, found)[0])
        ok = True
        rows = np.empty((0, 0), np.float32)
        if not options.unchecked:
            blocks = [block for shard in found.open for block in read_embeddings(shard)]
            rows = np.concatenate(blocks).astype(np.float32)
        for name, coreset in asked.items():
            took, guide, selection = first[name]
            said = ""
            if not options.unchecked:
                truth = expected(coreset, guide, rows, round(BUDGET * options.rows))
                equal = np.array_equal(np.sort(selection.position), np.sort(truth))
                ok &= equal
                said = ", images equal" if equal else ", IMAGES DIFFER"
            ratio = median(seconds[name]) / median(seconds["simcore"])
            print(
                f"{name:<16} first {took:.2f} s, then {median(seconds[name]):.2f} s, "
                f"{ratio:.2f} × SimCore's{said}",
                flush=True,
            )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
