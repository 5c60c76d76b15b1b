"""What each stage that is not embedding takes at three sizes, the line through them, and at 1e9.

    python benchmarks/bench_scale.py                      # all, an hour on 2 cores, 25 GB of disk
    python benchmarks/bench_scale.py --only selection --up-to 1e7

    planning      a list of so many URLs → plan
    ledger        so many units that are done, gone on with → nothing to do
    selection     so many rows of width 32, k = 100, a budget of a hundredth, no τ
    recut         of that, to a tenth of the budget, and to a τ that stops about half way; the
                  shards are out of reach meanwhile: whatever read an embedding would fail
    rounds        so many picks of k = 1,000 centroids, from lists in files
    manifest      so many selected rows
    materialise   so many images of 2 kB, in files of 100,000, copied to train on

Each in a process of its own. Seconds; the most memory that the driver ever held, and any worker.
The plan is checked to cover every line, the manifest and the images against what they were made of.
Rounds, at the smallest size, and the selection, at a tenth of the largest, against brute force:
Algorithm 1 with queues, on float64 similarities. Recuts against rounds that start anew.

The line is the least squares fit of seconds = a + b · size, for which the largest size counts most.
What it says at 1e9 was not measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_manifest
import bench_plan
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from bench_selection import CLASSES, _classes, _unit
from numpy.typing import NDArray
from peak import PeakOfAll

from curate import cluster
from curate.coreset import manifest, on_ray
from curate.coreset.candidates import Floor
from curate.coreset.kept import Kept
from curate.coreset.lists import ENTRY, Lists, Piece
from curate.coreset.rounds import Limits, Rounds, Selection
from curate.coreset.stored import Stored, write_entries
from curate.dataset import materialise
from curate.dataset.training_set import TrainingSet
from curate.runfiles import shards
from curate.runfiles.files import CandidateFiles
from curate.runfiles.run import Embedded
from curate.runfiles.shards import Shard
from curate.settings import load

WIDTH, K = 32, 100
SHARD_ROWS = 250_000
MANY = 1_000  # centroids of the rounds
IMAGE_BYTES = 2_000
IMAGES_A_FILE = 100_000
AT = 10**9

Found = dict[str, Any]  # seconds, peaks, and what else is to be said


# --- the selection --------------------------------------------------------------------------------


def centroids_of() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    near = np.repeat(_classes(WIDTH, 0), K // CLASSES, axis=0)
    spread = _unit(rng.standard_normal((K, WIDTH)))
    return _unit(near + 0.5 * spread).astype(np.float16).astype(np.float32)


@ray.remote
def make_shard(folder: str, number: int, rows: int) -> None:
    """A tenth of the images lie around the target's classes, all others anywhere."""
    rng = np.random.default_rng([1, number])
    images = rng.standard_normal((rows, WIDTH), dtype=np.float32)
    near = _classes(WIDTH, 0)[rng.integers(0, CLASSES, rows)].astype(np.float32)
    weight = np.where(rng.random(rows) < 0.1, rng.uniform(1, 2, rows), 0).astype(np.float32)
    images = _unit(_unit(images) + weight[:, None] * near).astype(np.float16)
    row = pa.table({"row": np.arange(rows, dtype=np.int64)})
    uri = f"{folder}/part-{number:06d}.arrow"
    shards.write_arrow(uri, shards.table_of(row, images))


def open_set(size: int, folder: Path) -> list[Shard]:
    rows = min(size, SHARD_ROWS)
    numbers = range(size // rows)
    (folder / "shards").mkdir()
    cluster.results([make_shard.remote(str(folder / "shards"), n, rows) for n in numbers])
    return [Shard(f"{folder}/shards/part-{n:06d}.arrow", 0, rows, n * rows) for n in numbers]


def of_selection(size: int, folder: Path, *, brute_force: bool) -> list[Found]:
    """The selection, and its recuts."""
    cluster.connect()
    parts, centroids = open_set(size, folder), centroids_of()
    budget = size // 100
    kept = Kept(CandidateFiles(str(folder / "candidates")), "benchmark", centroids)
    passes: list[int] = []
    one_pass = on_ray.one_pass

    def counted(*arguments: Any) -> Any:
        passes.append(1)
        return one_pass(*arguments)

    on_ray.one_pass = counted
    with PeakOfAll() as peak:
        start = time.monotonic()
        chosen = on_ray.select(parts, centroids, Limits(None, 1, budget), kept=kept)
        seconds = time.monotonic() - start
    assert len(chosen.position) == budget
    entries = sum(path.stat().st_size for path in (folder / "candidates").glob("*.npy"))
    found = [
        _found(seconds, peak, passes=len(passes), rounds=len(chosen.rounds), stored=entries / 1e6)
    ]
    if brute_force:
        _check_brute_force(parts, centroids, chosen, budget)
        found[0]["checked"] = "rows equal those of a brute force"
    (folder / "shards").rename(folder / "away")
    half = chosen.rounds[len(chosen.rounds) // 2].objective / chosen.rounds[0].objective
    for limits in (Limits(None, 1, budget // 10), Limits(half, 1, budget)):
        with PeakOfAll() as peak:
            start = time.monotonic()
            again = on_ray.select(parts, centroids, limits, kept=replace(kept))
            seconds = time.monotonic() - start
        _check_prefix(again, chosen)
        found.append(_found(seconds, peak, images=len(again.position), why=again.stopped_because))
    (folder / "away").rename(folder / "shards")
    start = time.monotonic()
    found = Embedded([], parts, ["open"] * len(parts), "")
    manifest.write(str(folder / "recut.parquet"), found, again, {})
    found[-1]["seconds to write its rows"] = round(time.monotonic() - start, 1)
    return found


def _check_prefix(again: Selection, whole: Selection) -> None:
    """Fewer rounds of the same; the last of them cut by a budget."""
    full = again.rounds[-2].total
    for name in ("position", "centroid", "round", "similarity"):
        assert np.array_equal(getattr(again, name)[:full], getattr(whole, name)[:full]), name
    assert set(again.position.tolist()) <= set(whole.position.tolist())


def _check_brute_force(
    parts: list[Shard], centroids: NDArray[np.float32], chosen: Selection, budget: int
) -> None:
    """Algorithm 1 on the float64 similarities of all rows; of each list the first so many, which is
    checked to be enough."""
    assert chosen.round is not None and chosen.centroid is not None
    length = 16 * len(chosen.rounds)
    held = [np.empty(0, np.int64)] * K
    values = [np.empty(0)] * K
    for part in parts:
        table = shards.read_arrow(part.uri)
        flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        near = centroids.astype(np.float64) @ flat.reshape(-1, WIDTH).T.astype(np.float64)
        for q, row in enumerate(near):
            value = np.concatenate([values[q], row])
            image = np.concatenate([held[q], part.first + np.arange(part.rows)])
            best = np.argpartition(-value, min(length, len(value) - 1))[:length]
            held[q], values[q] = image[best], value[best]
    queues = []
    for q in range(K):
        order = np.lexsort((held[q], -values[q]))
        queues.append(deque(zip(held[q][order].tolist(), values[q][order].tolist(), strict=True)))
    rows = _popped(queues, budget)
    columns = (chosen.position, chosen.centroid, chosen.round)
    assert rows == list(zip(*(column.tolist() for column in columns), strict=True))


def _popped(queues: list[deque[tuple[int, float]]], budget: int) -> list[tuple[int, int, int]]:
    """(position, centroid, round) of each pick. Fails where a queue is too short."""
    taken: set[int] = set()
    rows: list[tuple[int, int, int]] = []
    number = 0
    while len(rows) < budget:
        number += 1
        owners: dict[int, tuple[float, int]] = {}
        for q, queue in enumerate(queues):
            while queue[0][0] in taken:
                queue.popleft()
            image, value = queue[0]
            if image not in owners or value > owners[image][0]:
                owners[image] = (value, q)
        best = sorted(owners, key=lambda image: (-owners[image][0], image))[: budget - len(rows)]
        rows += [
            (image, owners[image][1], number) for image in sorted(best, key=lambda i: owners[i][1])
        ]
        taken.update(owners)
    return rows


# --- the others -----------------------------------------------------------------------------------


def of_rounds(picks: int, folder: Path, *, brute_force: bool) -> list[Found]:
    """Lists of six entries a pick, each image in three neighbouring ones."""
    rng = np.random.default_rng(0)
    stride = 2 * picks // MANY
    lists = Lists(MANY)
    queues = []
    for low in range(0, MANY, 50):
        piece = []
        for q in range(low, low + 50):
            entries = np.empty(3 * stride, ENTRY)
            entries["position"] = q * stride + rng.permutation(3 * stride)
            entries["similarity"] = np.sort(rng.random(3 * stride))[::-1]
            piece.append(entries)
            if brute_force:
                pairs = zip(*(entries[n].tolist() for n in ("position", "similarity")), strict=True)
                queues.append(deque(pairs))
        uri = str(folder / f"{low}.npy")
        write_entries(uri, np.concatenate(piece))
        which, lengths = np.arange(low, low + 50), np.full(50, 3 * stride)
        lists.add(Piece(which, lengths, Floor.at(np.zeros(50)), Stored(uri)))
    del piece, entries
    with PeakOfAll() as peak:
        start = time.monotonic()
        chosen = Rounds(lists, stride * (MANY + 2), Limits(None, 1, picks)).run()
        seconds = time.monotonic() - start
    assert isinstance(chosen, Selection) and len(chosen.position) == picks
    found = _found(seconds, peak, rounds=len(chosen.rounds))
    if brute_force:
        columns = (chosen.position, chosen.centroid, chosen.round)
        rows = list(zip(*(c.tolist() for c in columns if c is not None), strict=True))
        assert rows == _popped(queues, picks)
        found["checked"] = "rows equal those of a brute force"
    return [found]


def of_planning(size: int, folder: Path) -> list[Found]:
    cluster.connect()
    with PeakOfAll() as peak:
        return [_found(bench_plan.of_urls(size, folder), peak)]


def of_ledger(size: int, folder: Path) -> list[Found]:
    cluster.connect()
    with PeakOfAll() as peak:
        return [_found(bench_plan.of_units(size, folder), peak)]


def of_manifest(size: int, folder: Path) -> list[Found]:
    cluster.connect()
    with PeakOfAll() as peak:
        return [_found(bench_manifest.measure(size, folder), peak)]


def of_materialise(size: int, folder: Path) -> list[Found]:
    cluster.connect()
    rows = min(size, IMAGES_A_FILE)
    tables = []
    for number in range(size // rows):
        path = folder / f"{number:04d}.bin"
        with open(path, "wb") as file:
            for place in range(rows):
                file.write(_image(number * rows + place))
        names = range(number * rows, (number + 1) * rows)
        tables.append(
            pa.table(
                {
                    "source": ["open"] * rows,
                    "key": [f"{name:09d}" for name in names],
                    "uri": [str(path)] * rows,
                    "offset": np.arange(rows, dtype=np.int64) * IMAGE_BYTES,
                    "size": np.full(rows, IMAGE_BYTES),
                    "row": pa.nulls(rows, pa.int64()),
                    "label": pa.nulls(rows, pa.string()),
                    "sha256": [hashlib.sha256(_image(name)).hexdigest() for name in names],
                }
            )
        )
    pq.write_table(pa.concat_tables(tables), folder / "m.parquet")
    del tables
    folders = {"kind": "image_folder", "path": str(folder)}
    document = {"target": folders, "open": [folders | {"name": "open"}], "output": str(folder)}
    with PeakOfAll() as peak:
        start = time.monotonic()
        uri = str(folder / "images")
        materialise.training_images(
            load.parse(document, "benchmark"), [str(folder / "m.parquet")], uri
        )
        seconds = time.monotonic() - start
    made = TrainingSet(uri)
    assert len(made) == size
    for place in range(0, size, 997):
        assert made.image(place) == _image(place)
    return [_found(seconds, peak)]


def _image(number: int) -> bytes:
    return (hashlib.sha256(b"%d" % number).digest() * (IMAGE_BYTES // 32 + 1))[:IMAGE_BYTES]


# --- the table ------------------------------------------------------------------------------------


def _found(seconds: float, peak: PeakOfAll, **more: Any) -> Found:
    return {"seconds": seconds, "peak": peak, **more}


STAGES: dict[str, tuple[Callable[..., list[Found]], str, list[int]]] = {
    "planning": (of_planning, "URLs", [10**5, 10**6, 10**7]),
    "ledger": (of_ledger, "units", [10**4, 10**5, 10**6]),
    "selection": (of_selection, "rows", [10**6, 10**7, 10**8]),
    "rounds": (of_rounds, "picks", [10**5, 10**6, 10**7]),
    "manifest": (of_manifest, "rows", [10**5, 10**6, 10**7]),
    "materialise": (of_materialise, "images", [10**4, 10**5, 10**6]),
}
NAMES = {"selection": ["selection", "recut to a tenth", "recut by τ"]}


def one(stage: str, size: int, scratch: str | None, brute_force: bool) -> None:
    """In a process of its own: a line of JSON."""
    folder = Path(tempfile.mkdtemp(prefix="bench-scale-", dir=scratch))
    checks = {"brute_force": brute_force} if stage in ("selection", "rounds") else {}
    try:
        found = STAGES[stage][0](size, folder, **checks)
    finally:
        shutil.rmtree(folder)
    print(json.dumps([{**f, "peak": f["peak"].megabytes} for f in found]), flush=True)


def measured(stage: str, sizes: list[int], scratch: str | None) -> list[list[Found]]:
    results = []
    for size in sizes:
        checked = size == sizes[0] if stage == "rounds" else size == sizes[-2:][0]
        command = [sys.executable, __file__, "--one", stage, str(size)]
        command += ["--scratch", scratch] if scratch else []
        command += ["--brute-force"] if checked else []
        lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        results.append(json.loads(lines.splitlines()[-1]))
        for name, found in zip(NAMES.get(stage, [stage]), results[-1], strict=True):
            print(f"{name} of {size:,} {STAGES[stage][1]}: {_told(found)}", flush=True)
    return results


def _told(found: Found) -> str:
    peak = ", ".join(f"{who} {size:,.0f} MB" for who, size in found["peak"].items())
    others = {k: v for k, v in found.items() if k not in ("seconds", "peak")}
    more = "".join(
        f"; {name} {value:,.0f}" if isinstance(value, int | float) else f"; {name}: {value}"
        for name, value in others.items()
    )
    return f"{found['seconds']:.1f} s, peak {peak}{more}"


def line(name: str, unit: str, sizes: list[int], seconds: list[float]) -> str:
    slope, start = np.polyfit(np.array(sizes, float), seconds, 1)
    figures = ", ".join(f"{one:.1f}" for one in seconds)
    return (
        f"| {name} | {', '.join(f'{size:.0e}' for size in sizes)} {unit} | {figures} | "
        f"{start:.1f} s + {slope * 1e6:.3f} s a million | {(start + slope * AT) / 60:,.0f} min |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--up-to", type=float, default=np.inf, help="leave out larger sizes")
    parser.add_argument("--scratch", help="a folder for what is made, and removed")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--brute-force", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one[0], int(options.one[1]), options.scratch, options.brute_force)
        return
    lines = []
    for stage in options.only:
        sizes = [size for size in STAGES[stage][2] if size <= options.up_to]
        results = measured(stage, sizes, options.scratch)
        for number, name in enumerate(NAMES.get(stage, [stage])):
            seconds = [found[number]["seconds"] for found in results]
            lines.append(line(name, STAGES[stage][1], sizes, seconds))
    print("\n| stage | sizes | seconds | line | at 1e9 |\n" + "| --- " * 5 + "|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
