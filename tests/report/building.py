"""Finished runs of any size, written by the project's own writers, without an encoder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate import storage
from curate.coreset import manifest, stage
from curate.coreset.figures_on_ray import figures_of
from curate.runfiles import plan, rejected, shards, store
from curate.runfiles.files import RunFiles
from curate.runfiles.ledger import Ledger, PartRecord, unit_of
from curate.runfiles.memo import Memo
from curate.runfiles.plan import Plan
from curate.runfiles.run import Run
from curate.runfiles.shards import Reject
from curate.runfiles.summary import Summary
from curate.settings import load as config
from curate.sources.units import digest_of
from tests.datasets import picture

EVIL = "<script>window.owned = 1</script>"
EVIL_ATTRIBUTE = "\"><img src=x onerror='window.owned=1'>"
WIDTH = 16


def write_run(
    root: Path,
    *,
    targets: int = 30,
    opened: int = 300,
    coreset: dict[str, Any] | None = None,
    labels: list[str | None] | None = None,
    key: str = "image-{}",
    reason: str | None = None,
    pictures: int = 40,
    per_unit: int = 100,
) -> Path:
    """A run under `root`/run; returns its folder. Needs Ray, for the selection.

    Every image is one of a few pictures in a file beside the run. reason: of three rejected images.
    """
    output = root / "run"
    places = _write_pictures(root / "pictures.bin", pictures)
    document = {
        "target": {"kind": "webdataset", "path": str(root / "pictures.bin")},
        "open": [
            {"name": name, "kind": "webdataset", "path": str(root / "pictures.bin")}
            for name in ("left", "right")
        ],
        "encoder": {"backbone": "resnet18", "image_px": 32},
        "coreset": {"clusters": 5, "tau": 0.9, "budget": 60, **(coreset or {})},
        "output": str(output),
    }
    settings = config.parse(document, "test")
    rng = np.random.default_rng(0)
    files, made_by = RunFiles(str(output)), {"of": "a test"}
    embeddings = store.enter(settings, made_by)
    rows, records = [], []
    for set_name, source, images in (
        ("target", "target", targets),
        ("open", "left", opened - opened // 3),
        ("open", "right", opened // 3),
    ):
        for start in range(0, images, per_unit):
            digest = digest_of(source, start)
            n = min(per_unit, images - start)
            table = _images(places, range(start, start + n), labels, key, source)
            rejects = 3 if reason and set_name == "open" and start == 0 else 0
            refused = _rejects(source, key, reason or "", rejects)
            embedded = shards.table_of(table, _unit_rows(rng, n, source))
            noted = shards.with_note(embedded, refused)
            size = shards.write_arrow(embeddings.shard(digest, 0), noted)
            rows.append({"set": set_name, "source": source, "uri": "/t.tar", "digest": digest})
            records.append(unit_of([PartRecord(digest, 0, True, n + rejects, n, rejects, size)]))
    blank = dict.fromkeys(plan.SCHEMA.names)
    units = pa.Table.from_pylist([blank | {"start": 0, **row} for row in rows], plan.SCHEMA)
    plan.write(Plan(files.plan(0), units))
    with Ledger.read(embeddings) as ledger:
        for record in records:
            ledger.add(record)
    about = {"settings": settings.model_dump(mode="json"), "versions": {"curate": "0.2.0"}}
    Memo(files.memo).write(made_by, **about)
    rejected.write(Run.open(str(output)))
    _select(Run.open(str(output)))
    return output


def _select(run: Run) -> None:
    coreset, files = run.settings.coreset, run.files
    found = stage.embedded(run)
    guide = stage.guide_of(found, coreset)
    stage.save_guide(files, guide)
    selection = stage.choose(coreset, found, guide)
    selected = stage.write_manifest(files.manifest, coreset, found, selection)
    manifest.write_rounds(files.rounds, selection.rounds)
    counts = run.counts().selecting(selected)
    seconds = {"embed": 1.5, "select": 0.5}
    figures = asdict(figures_of(found, selection.position))
    summary = Summary(counts, stage.outcome(coreset, selection), seconds, figures=figures)
    storage.write_json(files.summary, summary.to_json())


def _write_pictures(path: Path, pictures: int) -> list[tuple[str, int, int, str]]:
    """uri, offset, size and sha256 of each."""
    places, data = [], b""
    for seed in range(pictures):
        one = picture(seed)
        places.append((str(path), len(data), len(one), hashlib.sha256(one).hexdigest()))
        data += one
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return places


def _images(places, numbers: range, labels, key: str, source: str) -> pa.Table:
    which = [places[n % len(places)] for n in numbers]
    label = [labels[n % len(labels)] if labels else None for n in numbers]
    uri, offset, size, sha256 = zip(*which, strict=True)
    return pa.table(
        {
            "key": [f"{source}/{key.format(n)}" for n in numbers],
            "uri": uri,
            "offset": offset,
            "size": size,
            "row": pa.nulls(len(which), pa.int64()),
            "label": pa.array(label, pa.string()),
            "width": pa.array([24] * len(which), pa.int32()),
            "height": pa.array([24] * len(which), pa.int32()),
            "sha256": sha256,
        },
        schema=shards.IMAGE_SCHEMA,
    )


def _unit_rows(rng: np.random.Generator, n: int, source: str) -> np.ndarray:
    """Around a direction of the source's own, so that the sets are not one cloud."""
    centre = np.zeros(WIDTH)
    centre[{"target": 0, "left": 1, "right": 2}[source]] = 1.5
    rows = rng.standard_normal((n, WIDTH)) * 0.5 + centre
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def _rejects(source: str, key: str, reason: str, rejects: int) -> list[Reject]:
    url = "https://user:secret@example.org/{}.jpg?signature=secret"
    return [
        Reject(source, f"broken/{key.format(i)}", url.format(i), "decode", reason)
        for i in range(rejects)
    ]


def write_results(output: Path, planted: str = "") -> None:
    """What an evaluation and a comparison leave; `planted` goes into every name."""
    rows = [
        {
            "metric": f"linear probe, top1{planted}",
            "value": 0.333,
            "std": 0.005,
            "seeds": 3,
            "n": 450,
            "seconds": 3.2,
            "config": {},
        },
        {
            "metric": f"selected classes{planted}",
            "value": 3.25,
            "std": 0.0,
            "seeds": 1,
            "n": 60,
            "seconds": 0.1,
            "config": {},
            "unit": "bits",
        },
    ]
    storage.write_json(
        str(output / "evaluate" / "results.json"), {"encoder": "pretrain", "results": rows}
    )
    arms, targets = (
        [f"{a}{planted}" for a in ("x", "random", "simcore")],
        [f"pets{planted}", "cars"],
    )
    metrics = [f"linear probe, top1{planted}", "kNN, k = 20"]
    cells = [
        {
            "arm": arm,
            "target": target,
            "metric": metric,
            "mean": 0.3 + 0.04 * i + 0.02 * j,
            "std": 0.012 if i else None,
            "seeds": 3 if i else 1,
            "images": 1800 + 1650 * (i > 0),
            "best": i == 2,
        }
        for metric in metrics
        for i, arm in enumerate(arms)
        for j, target in enumerate(targets)
    ]
    selections = [
        {
            "arm": arm,
            "target": targets[0],
            "seed": i,
            "selected": 1650,
            "oracle_share": 0.055 + 0.02 * i,
            "base_share": 0.055,
            "lift": 1 + 0.36 * i,
        }
        for i, arm in enumerate(arms[1:])
    ]
    document = {
        "arms": arms,
        "targets": targets,
        "metrics": metrics,
        "cells": cells,
        "selections": selections,
        "steps": 3360,
    }
    storage.write_bytes(str(output / "comparison.json"), json.dumps(document).encode())
