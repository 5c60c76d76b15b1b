"""The whole run, on real files and a real Ray, against the definition and its own accounts."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from curate import pipeline, storage
from curate.embedding.actors import FEED
from curate.errors import CurateError
from curate.images import Preprocessing
from curate.pipeline import run
from curate.runfiles.fingerprint import fingerprint
from curate.runfiles.run import Run
from curate.runfiles.status import Status
from curate.settings import load as config
from tests import datasets
from tests.oracles import brute_force_rounds

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def document(tmp_path_factory, merged_run):
    return datasets.copy_run(merged_run[0], tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def finished(document, merged_run):
    """One run over the merged sets, and its summary."""
    return Path(document["output"]), merged_run[1]


def settings_of(document, **changes):
    return config.parse({**document, **changes}, "test")


def embeddings_of(output: Path, set_name: str) -> pa.Table:
    files = datasets.shards_of(output, set_name)
    return pa.concat_tables(
        pa.ipc.open_file(str(file)).read_all().replace_schema_metadata() for file in files
    )


def matrix(table: pa.Table) -> np.ndarray:
    return np.stack(table["embedding"].to_numpy())


def test_every_image_is_accounted_for(finished) -> None:
    output, summary = finished
    rows = summary.sources.open
    assert {name: row.seen for name, row in rows.items()} == datasets.SEEN
    assert {name: row.rejected for name, row in rows.items()} == datasets.REJECTED
    assert sum(row.selected for row in rows.values()) == summary.outcome.selected == 40
    assert summary.to_json() == json.loads((output / "summary.json").read_text())
    rejects = pq.read_table(output / "rejected").to_pylist()
    reasons = {row["key"].rpartition("/")[2]: (row["stage"], row["reason"]) for row in rejects}
    assert reasons["empty.png"] == ("decode", "empty")
    assert reasons["page.jpg"] == ("decode", "not an image in a known format")
    assert reasons["tiny.png"] == ("decode", "3×3 is under min_px 8")
    assert reasons["missing.png"] == ("read", "no such file")
    assert reasons["cut.png"][1].startswith("damaged")


def test_the_status_ends_with_the_same_accounts(finished) -> None:
    output, summary = finished
    status = Status.read(str(output))
    assert status.state == "finished" and status.error is None
    assert status.seconds == summary.seconds
    facts = status.progress
    assert facts is not None and facts.done == facts.total
    assert facts.images == summary.embedded_now
    reasons = Counter(row["reason"] for row in pq.read_table(output / "rejected").to_pylist())
    assert facts.rejected == dict(reasons)
    assert facts.feed == summary.feed and set(summary.feed) == set(FEED)
    assert 0 < summary.feed["computed"] < summary.seconds["embed"] * os.cpu_count()


def test_embeddings_are_unit_rows_in_plan_order(finished) -> None:
    output, _ = finished
    table = embeddings_of(output, "open")
    norms = np.linalg.norm(matrix(table).astype(np.float64), axis=1)
    assert np.abs(norms - 1).max() < 1e-3
    keys = table["key"].to_pylist()
    tars = [k for k in keys if k.isdigit()]
    assert tars == [f"{seed:04d}" for seed in range(100, 140)]
    labels = dict(zip(keys, table["label"].to_pylist(), strict=True))
    assert labels["0100"] == "class1" and labels["a/deeper/0000.png"] == "a"


def test_selection_is_the_definitions(finished) -> None:
    output, summary = finished
    opened = embeddings_of(output, "open")
    centroids = np.rint(np.load(output / "centroids.npy").astype(np.float64) * 2**24) / 2**24
    expected = brute_force_rounds(matrix(opened), centroids, budget=40)
    manifest = pq.read_table(output / "coreset.parquet")
    found = zip(
        manifest["sha256"].to_pylist(),
        manifest["centroid"].to_pylist(),
        manifest["round"].to_pylist(),
        manifest["similarity"].to_pylist(),
        strict=True,
    )
    sha256 = opened["sha256"].to_pylist()
    assert list(found) == [(sha256[row], q, t, w) for row, q, t, w in expected["rows"]]
    rounds = pq.read_table(output / "rounds.parquet")
    assert rounds["objective"].to_pylist() == expected["objectives"]
    assert rounds["total"].to_pylist()[-1] == 40
    assert summary.outcome.stopped_because == expected["why"] == "budget"
    about = json.loads(manifest.schema.metadata[b"curate"])
    assert about["selected"] == 40 and about["coreset"]["clusters"] == 5


def test_manifest_leads_back_to_the_bytes(finished) -> None:
    output, _ = finished
    sources = set()
    for row in pq.read_table(output / "coreset.parquet").to_pylist():
        if row["offset"] is not None:
            data = storage.read_range(row["uri"], row["offset"], row["size"])
        elif row["row"] is not None:
            data = pq.read_table(row["uri"])["image"][row["row"]].as_py()
        else:
            data = Path(row["uri"]).read_bytes()
        assert len(data) == row["size"] and hashlib.sha256(data).hexdigest() == row["sha256"]
        sources.add(row["source"])
    assert len(sources) >= 3


def test_rerun_redoes_only_what_is_missing(document, finished) -> None:
    output, _ = finished
    manifest = (output / "coreset.parquet").read_bytes()
    lost = datasets.shards_of(output, "open")[2]
    kept = lost.read_bytes()
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.arrow")}
    again = run(settings_of(document))
    assert again.embedded_now == pa.ipc.open_file(pa.py_buffer(kept)).read_all().num_rows
    assert lost.read_bytes() == kept
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (output / "coreset.parquet").read_bytes() == manifest


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoder": {"backbone": "resnet18", "image_px": 48}}, "encoder.image_px was 32, is 48"),
        ({"encoder": {"backbone": "resnet18", "image_px": 32, "seed": 1}}, "encoder.weights was"),
        ({"images": {"min_px": 9}}, "images.min_px was 8, is 9"),
        ({"images": {"max_bytes": 9}}, "images.max_bytes was 268435456, is 9"),
    ],
)
def test_other_settings_refuse_to_resume(document, finished, change, named) -> None:
    with pytest.raises(CurateError, match=named):
        run(settings_of(document, **change))


def test_fresh_starts_over_and_leaves_other_files(document, finished, tmp_path) -> None:
    output = Path(shutil.copytree(finished[0], tmp_path / "run"))
    (output / "notes.txt").write_text("mine")
    changed = settings_of(document, output=str(output), images={"min_px": 25})
    with pytest.raises(CurateError, match="--fresh"):
        run(changed)
    again = run(settings_of(document, output=str(output)), fresh=True)
    assert again.embedded_now == sum(datasets.SEEN.values()) + 24
    assert (output / "notes.txt").read_text() == "mine"
    manifests = [path / "coreset.parquet" for path in (output, finished[0])]
    assert manifests[0].read_bytes() == manifests[1].read_bytes()


@pytest.mark.parametrize("kept", [True, False])
def test_shard_that_was_changed_is_named(document, finished, tmp_path, kept: bool) -> None:
    """By the scan, or where there is none by the manifest."""
    output = Path(shutil.copytree(finished[0], tmp_path / "run"))
    if not kept:
        shutil.rmtree(output / "candidates")
    shard = datasets.shards_of(output, "open")[1]
    table = pa.ipc.open_file(str(shard)).read_all()
    with pa.ipc.new_file(str(shard), table.schema) as writer:
        writer.write_table(table.slice(1))
    with pytest.raises(CurateError, match=rf"{shard.name}: \d+ rows where \d+ were counted"):
        run(settings_of(document, output=str(output)))
    shard.write_bytes(b"nothing")
    with pytest.raises(CurateError, match=rf"{shard.name}: not a shard of this run"):
        run(settings_of(document, output=str(output)))


def test_selection_settings_use_the_embeddings_again(document, finished, tmp_path) -> None:
    output = Path(shutil.copytree(finished[0], tmp_path / "run"))

    def select(**coreset):
        summary = run(settings_of(document, output=str(output), coreset=coreset))
        assert summary.embedded_now == 0
        return summary, pq.read_table(output / "coreset.parquet")

    summary, table = select(method="all")
    assert len(table) == sum(datasets.SEEN.values()) - sum(datasets.REJECTED.values())
    _, sample = select(method="random", budget=0.25, seed=3)
    _, same = select(method="random", budget=0.25, seed=3)
    _, other = select(method="random", budget=0.25, seed=4)
    assert len(sample) == round(0.25 * len(table)) and sample.equals(same)
    assert not sample.equals(other)
    assert sample["centroid"].null_count == len(sample)
    _, oracle = select(method="oracle", labels=["class1", "b"])
    assert set(oracle["label"].to_pylist()) == {"class1", "b"}
    assert len(oracle) == sum(x in ("class1", "b") for x in table["label"].to_pylist())
    with pytest.raises(CurateError, match="labels"):
        select(method="oracle", labels=["nobody"])
    summary, capped = select(clusters=5, tau=None, budget=1000, budget_times_target=2.0)
    assert len(capped) == 48 and summary.outcome.stopped_because == "budget"
    summary, single = select(clusters=1, tau=None, budget=7)
    assert single["round"].to_pylist() == list(range(1, 8))
    select(clusters=10_000, tau=0.5, budget=5)
    assert len(np.load(output / "centroids.npy")) == 24  # every target image its own


def test_too_many_rejects_fail_and_say_why(document, finished, tmp_path) -> None:
    output = Path(shutil.copytree(finished[0], tmp_path / "run"))
    strict = {"images": {"max_rejected_fraction": 0.01}, "output": str(output)}
    with pytest.raises(CurateError, match=r"max_rejected_fraction=0.01: 5 of 121 .* open set"):
        run(settings_of(document, **strict))
    assert pq.read_table(output / "rejected").num_rows == 5


def test_an_image_lost_between_the_files_is_noticed(document, finished, tmp_path) -> None:
    output = Path(shutil.copytree(finished[0], tmp_path / "run"))
    for ledger in (output / "embeddings").rglob("ledger/*.parquet"):
        table = pq.read_table(ledger)
        fewer = pc.subtract(table["seen"], pc.cast(pc.greater(table["rejected"], 0), "int64"))
        pq.write_table(table.set_column(1, "seen", fewer), ledger)
    with pytest.raises(CurateError, match=r"do not agree; remove .*arrow and run again"):
        run(settings_of(document, output=str(output)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"pretrain": {"method": "mae"}},
            "pretrain.backbone=resnet18: mae needs a vision transformer",
        ),
        (
            {"pretrain": {"data": ["target"], "method": "mae"}},
            "pretrain.backbone=resnet18: mae needs a vision transformer",
        ),
        (
            {"pretrain": {"batch_size": 7, "resources": {"workers": 2, "use_gpu": False}}},
            "pretrain.batch_size=7: not divisible by 2 workers",
        ),
        (
            {"encoder": {"pretrain": {"batch_size": 9, "resources": {"workers": 2}}}},
            "encoder.pretrain.batch_size=9: not divisible by 2 workers",
        ),
        (
            {"pretrain": {"data": ["target", "coreset", "nowhere.parquet"]}},
            "nowhere.parquet: no such manifest; check the path in pretrain.data",
        ),
        (
            {"coreset": {"whiten": 1000}},
            "coreset.whiten=1000: embeddings have fewer: 1000 of 512",
        ),
        (
            {"evaluate": {"protocols": ["linear"], "encoder": "nowhere.pt"}},
            r"evaluate.encoder=nowhere.pt: no such file",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_an_image_is_read(
    document, tmp_path, change, named
) -> None:
    change = copy.deepcopy(change)
    if "encoder" in change:
        change["encoder"] |= document["encoder"]
    if "evaluate" in change:
        change["evaluate"] |= {"train": document["target"], "test": document["target"]}
    with pytest.raises(CurateError, match=named):
        run(settings_of(document, output=str(tmp_path / "run"), **change))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("training", "given", "pool"),
    [
        ({"method": "mae"}, {}, "patches"),
        ({"method": "mae"}, {"pool": "token"}, "token"),
        ({"method": "dino"}, {}, None),
    ],
)
def test_an_encoder_that_mae_trained_pools_its_patches(
    document, monkeypatch, training, given, pool
) -> None:
    """And what is embedded by another pooling is another embedding."""
    monkeypatch.setattr(pipeline, "pretrain_encoder", lambda settings, fresh: "folder")
    own = {"backbone": "test_vit", "image_px": 32, "pretrain": training, **given}
    settings = pipeline._with_own_encoder(settings_of(document, encoder=own), fresh=False)
    assert (settings.encoder.pool, settings.encoder.checkpoint) == (pool, "folder")
    seen = Preprocessing(32, 1.0, (0.5,) * 3, (0.5,) * 3)
    assert fingerprint(settings, seen, "sha", "cpu")["encoder"].get("pool") == pool


@pytest.mark.parametrize(
    ("backbone", "said"), [("efficientnet_b0", True), ("resnet18", None), ("mobilenetv3", True)]
)
def test_a_small_stem_that_no_weights_show_is_another_embedding(document, backbone, said) -> None:
    """Of a ResNet they do, and what was embedded before it was said stays good."""
    own = {"backbone": backbone, "image_px": 32, "small_stem": True}
    seen = Preprocessing(32, 1.0, (0.5,) * 3, (0.5,) * 3)
    known = fingerprint(settings_of(document, encoder=own), seen, "sha", "cpu")["encoder"]
    assert known.get("small_stem") == said
    plain = fingerprint(
        settings_of(document, encoder={**own, "small_stem": False}), seen, "", "cpu"
    )
    assert "small_stem" not in plain["encoder"] and "channels" not in plain["images"]


def test_an_older_versions_output_is_refused_by_its_version(document, tmp_path) -> None:
    """As 0.1.0 wrote it: no layout, and a fingerprint by that name."""
    output = tmp_path / "run"
    output.mkdir()
    settings = settings_of(document, output=str(output))
    old = {"settings": settings.model_dump(mode="json"), "versions": {"curate": "0.1.0"}}
    (output / "config.yaml").write_text(yaml.safe_dump({**old, "fingerprint": {}}))
    for reader in (lambda: run(settings), lambda: Run.open(str(output))):
        with pytest.raises(CurateError, match=r"run: written by curate 0\.1\.0, .*--fresh") as told:
            reader()
        assert "\n" not in str(told.value)


def test_source_that_matches_nothing_names_itself(document, tmp_path) -> None:
    open_sets = [{"name": "gone", "kind": "webdataset", "path": str(tmp_path / "*.tar")}]
    with pytest.raises(CurateError, match=r"source gone: .*\*\.tar: matches no file"):
        run(settings_of(document, open=open_sets, output=str(tmp_path / "run")))
    assert list((tmp_path / "run").iterdir()) == []


def test_output_that_cannot_be_written(document, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CurateError, match=r"file/run.*cannot be written"):
        run(settings_of(document, output=str(tmp_path / "file" / "run")))


# A driver of its own


def job(config_path: Path, *extra: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(config_path), *extra]


def write_config(path: Path, document: dict, **changes) -> Path:
    path.write_text(yaml.safe_dump({**document, **changes}))
    return path


def test_driver_killed_mid_embedding_resumes_to_the_same_bytes(document, tmp_path) -> None:
    output = tmp_path / "killed"
    # Units of two images: many moments to be killed in between
    small = {"open": document["open"][:3], "embed": {"unit_images": 2}}
    config_path = write_config(tmp_path / "run.yaml", document, output=str(output), **small)
    environment = {**os.environ, "RAY_ADDRESS": ""}
    process = subprocess.Popen(
        job(config_path), cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    folder = output / "embeddings"
    deadline = time.monotonic() + 120
    while not any(folder.rglob("[!.]*.arrow")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no unit done in two minutes"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "coreset.parquet").exists()
    done = {path: path.stat().st_mtime_ns for path in folder.rglob("[!.]*.arrow")}
    units = pq.read_table(output / "plan" / "000000" / "units.parquet").num_rows
    assert 0 < len(done) < units, "killed too late to prove anything"

    again = subprocess.run(
        job(config_path), cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    undisturbed = run(settings_of(document, output=str(tmp_path / "whole"), **small))
    assert undisturbed.embedded_now > 0
    manifest = (output / "coreset.parquet").read_bytes()
    assert manifest == (tmp_path / "whole" / "coreset.parquet").read_bytes()
    assert "manifest:" in again.stdout and "do not agree" not in again.stderr
    # Ray's own log is not the user's
    lines = again.stderr.splitlines()
    assert lines and [line for line in lines if not re.match(r"\d\d:\d\d:\d\d ", line)] == []
