"""A run that selects on whitened embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.coreset.recut import Limits, recut
from curate.coreset.whitening import Moments, Whitening
from curate.errors import CurateError
from curate.pipeline import run
from curate.report.collect.report import collect
from curate.runfiles.shards import INT8
from curate.settings import load as config
from tests import datasets
from tests.datasets import shards_of
from tests.oracles import brute_force_rounds


@pytest.fixture(scope="module")
def document(tmp_path_factory, merged_run):
    document = datasets.copy_run(merged_run[0], tmp_path_factory.mktemp("run"))
    document["coreset"] = {"clusters": 5, "tau": None, "budget": 30, "whiten": 16}
    run(config.parse(document, "test"))
    return document


def table_of(paths: list[Path]) -> pa.Table:
    return pa.concat_tables(
        pa.ipc.open_file(str(path)).read_all().replace_schema_metadata() for path in paths
    )


def whitened(output: Path, paths: list[Path]) -> list[Path]:
    """The copies of shards."""
    return [output / "whitened" / path.name for path in paths]


def matrix(table: pa.Table) -> np.ndarray:
    return np.stack(table["embedding"].to_numpy())


def test_it_selects_by_the_definition_on_whitened_embeddings(document) -> None:
    output = Path(document["output"])
    paths = {name: shards_of(output, name) for name in ("target", "open")}
    raw = {name: table_of(paths[name]) for name in paths}
    made = {name: table_of(whitened(output, paths[name])) for name in paths}
    whitening = Whitening.fit(Moments.of(matrix(raw["open"])), 16)
    for name in paths:
        assert np.abs(matrix(made[name]) - whitening(matrix(raw[name]))).max() < 2e-3
        own = ["embedding", INT8]
        assert made[name].drop_columns(own) == raw[name].drop_columns(own)
    centroids = np.rint(np.load(output / "centroids.npy").astype(np.float64) * 2**24) / 2**24
    expected = brute_force_rounds(matrix(made["open"]), centroids, budget=30)
    keys = raw["open"]["key"].to_pylist()
    found = pq.read_table(output / "coreset.parquet")["key"].to_pylist()
    assert found == [keys[row[0]] for row in expected["rows"]]


def test_it_is_done_once(document) -> None:
    output = Path(document["output"])
    stamps = {path: path.stat().st_mtime_ns for path in (output / "whitened").iterdir()}
    manifest = (output / "coreset.parquet").read_bytes()
    run(config.parse(document, "test"))
    recut(document["output"], Limits(0.5))
    assert {path: path.stat().st_mtime_ns for path in (output / "whitened").iterdir()} == stamps
    assert (output / "coreset.parquet").read_bytes() == manifest


def test_other_dimensions_are_made_anew(document) -> None:
    before = np.load(f"{document['output']}/centroids.npy").shape
    other = {**document, "coreset": {**document["coreset"], "whiten": 8}}
    run(config.parse(other, "test"))
    assert (before, np.load(f"{document['output']}/centroids.npy").shape) == ((5, 16), (5, 8))


def test_more_dimensions_than_the_encoder_has(document) -> None:
    wider = {**document, "coreset": {**document["coreset"], "whiten": 513}}
    with pytest.raises(CurateError, match=r"coreset.whiten=513: embeddings have fewer: 513 of 512"):
        run(config.parse(wider, "test"))


def test_the_report_is_of_what_was_selected_from(document, tmp_path: Path) -> None:
    run(config.parse(document, "test"))
    output = Path(document["output"])
    report = collect(document["output"], str(tmp_path))
    assert report.missing == {}
    target = table_of(whitened(output, shards_of(output, "target")))
    near = np.argmax(matrix(target).astype(np.float32) @ np.load(output / "centroids.npy").T, 0)
    keys = target["key"].to_pylist()
    assert [one.nearest[0].key for one in report.centroids] == [keys[row] for row in near]
