"""Parts: what the readers give, what the actors write; and units that cannot be read."""

from __future__ import annotations

import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from ray.data import DataContext

from curate.embedding import encoders, parts, stage
from curate.embedding.actors import CALLS, FEED, DeviceClock, EmbedParts
from curate.embedding.careful import Bounds, Watch
from curate.embedding.parts import Reading, read_parts
from curate.pipeline import run
from curate.runfiles import plan, shards
from curate.runfiles.files import EmbeddingFiles, PlanFiles, RunFiles
from curate.runfiles.ledger import PartRecord, unit_of
from curate.runfiles.plan import by_name
from curate.runfiles.run import Run
from curate.settings import EmbedSettings
from curate.settings import load as config
from tests import datasets


def prepared(tmp_path):
    document = datasets.write_merged(tmp_path)
    settings = config.parse(document, "test")
    encoder = encoders.build(settings.encoder)
    encoder.save(RunFiles(settings.output).weights)
    made = plan.make(settings, PlanFiles(str(tmp_path / "plan")))
    return settings, encoder, made


def rows_of(made, source):
    """The plan of one source."""
    return made.table.filter(pc.equal(made.table["source"], source))


def parts_of(settings, encoder, made, table):
    reading = Reading(
        made.files, by_name(settings), settings.images, encoder.preprocessing, True, Bounds()
    )
    return list(read_parts(table, reading, Watch.remote()))


def actor_of(settings, files, batch_size):
    return EmbedParts(settings.encoder, RunFiles(settings.output).weights, batch_size, files)


def record_of(row):
    assert row.pop("trouble") is None and not row.pop("again") and row.pop("fatal") is None
    assert len(row.pop("reasons")) == row["rejected"]
    feed = row.pop("feed")
    assert min(feed.values()) >= 0 and feed["read"] > 0 and feed["computed"] > 0
    return PartRecord(**row)


def test_unit_in_several_parts_equals_the_unit_in_one(tmp_path, monkeypatch, ray_session) -> None:
    settings, encoder, made = prepared(tmp_path)
    table = rows_of(made, "folder").slice(0, 1)  # with some of the broken files
    [planned] = plan.from_table(table, made.files)
    unit = planned.unit
    once, again = (EmbeddingFiles(str(tmp_path / name)) for name in ("once", "again"))

    [whole] = parts_of(settings, encoder, made, table)
    actor_of(settings, once, 5)(whole)
    uri = once.shard(unit.digest, 0)
    expected, rejects = shards.read_arrow(uri), shards.read_rejects(uri, "folder")
    assert len(expected) + len(rejects) == unit.images and len(rejects) > 0

    monkeypatch.setattr(parts, "PART_BYTES", 5 * 32 * 32 * 3)
    cut = parts_of(settings, encoder, made, table)
    assert [part["last"][0].as_py() for part in cut] == [False] * (len(cut) - 1) + [True]
    assert len(cut) == -(-unit.images // 5)
    actor = actor_of(settings, again, 5)
    records = [record_of(row) for part in reversed(cut) for row in actor(part).to_pylist()]
    assert unit_of(records[1:]) is None and unit_of(records[:-1]) is None
    record = unit_of(records)
    uris = [again.shard(unit.digest, number) for number in range(len(cut))]
    tables = [shards.read_arrow(uri) for uri in uris]
    assert [shard.rows for shard in record.shards] == [len(table) for table in tables]
    assert [shard.bytes for shard in record.shards] == [os.path.getsize(uri) for uri in uris]
    joined = pa.concat_tables(table.replace_schema_metadata() for table in tables)
    bare = expected.replace_schema_metadata()
    own = ["embedding", shards.INT8]
    assert joined.drop_columns(own).equals(bare.drop_columns(own))
    np.testing.assert_allclose(
        np.stack(joined["embedding"].to_numpy()),
        np.stack(expected["embedding"].to_numpy()),
        atol=2e-3,  # batches are cut elsewhere
    )
    assert [one for uri in uris for one in shards.read_rejects(uri, "folder")] == rejects
    assert (record.seen, record.embedded) == (unit.images, len(joined))
    assert record.rejected == len(rejects)


def test_who_wrote_a_shard_first_counts(tmp_path, ray_session) -> None:
    """Two runs that share a store, or a try of a task that was thought lost."""
    settings, encoder, made = prepared(tmp_path)
    [part] = parts_of(settings, encoder, made, rows_of(made, "tars").slice(0, 1))
    files = EmbeddingFiles(str(tmp_path / "store"))
    first = actor_of(settings, files, 8)(part).to_pylist()
    uri = files.shard(part["unit"][0].as_py(), 0)
    written = Path(uri).read_bytes()
    short = part.set_column(
        part.schema.get_field_index("failed"), "failed", pa.array(["not the first"], pa.string())
    )
    second = actor_of(settings, files, 8)(short).to_pylist()
    for row in (*first, *second):
        del row["seconds"], row["feed"]
    assert second == first and Path(uri).read_bytes() == written


def test_parts_that_are_computed_and_written_at_once(tmp_path, monkeypatch, ray_session) -> None:
    """Threads as Ray has them in an actor: the same rows and shards as one after the other."""
    settings, encoder, made = prepared(tmp_path)
    monkeypatch.setattr(parts, "PART_BYTES", 3 * 32 * 32 * 3)
    cut = parts_of(settings, encoder, made, rows_of(made, "tars"))
    assert len(cut) > 2 * CALLS
    found = []
    for name, calls in (("one", 1), ("many", CALLS)):
        files = EmbeddingFiles(str(tmp_path / name))
        actor = actor_of(settings, files, 2)
        begun = time.monotonic()
        with ThreadPoolExecutor(calls) as threads:
            rows = [row for table in threads.map(actor, cut) for row in table.to_pylist()]
        took = time.monotonic() - begun
        for row in rows:
            assert Path(files.shard(row["unit"], row["part"])).stat().st_size == row["bytes"]
        feeds = [row.pop("feed") for row in rows]
        # What a device does, it does once
        assert 0 < sum(feed["waited"] + feed["computed"] for feed in feeds) <= took
        for row in rows:
            del row["seconds"]
        written = {p.name: p.read_bytes() for p in Path(tmp_path / name).rglob("*.arrow")}
        found.append((rows, written))
    assert found[0] == found[1] and len(found[0][1]) == len(cut)


def test_an_error_in_one_of_several_calls_is_told(tmp_path, ray_session) -> None:
    settings, encoder, made = prepared(tmp_path)
    cut = parts_of(settings, encoder, made, rows_of(made, "tars"))
    (tmp_path / "store").write_text("a file in the way of all shards")
    actor = actor_of(settings, EmbeddingFiles(str(tmp_path / "store")), 8)
    with ThreadPoolExecutor(CALLS) as threads:
        rows = [row for table in threads.map(actor, cut) for row in table.to_pylist()]
    assert len(rows) == len(cut)
    assert all("cannot be written" in row["fatal"] for row in rows)


def test_the_clock_of_a_device() -> None:
    clock = DeviceClock()
    assert clock.worked(10.0, 12.0) == (0.0, 2.0)  # before the first there was nothing to wait for
    assert clock.worked(13.0, 16.0) == (1.0, 3.0)
    assert clock.worked(14.0, 17.0) == (0.0, 1.0)  # begun while the one before was at work
    assert clock.worked(15.0, 16.5) == (0.0, 0.0)  # told of late
    with ExitStack() as calls:
        for _ in range(CALLS):
            calls.enter_context(clock.call())
    # All were busy up to now, so that the device could be given nothing
    now = time.monotonic()
    assert clock.worked(now + 2, now + 3) == (pytest.approx(2, abs=0.1), pytest.approx(1))


def test_dead_embedding_is_a_reject_not_a_row(tmp_path, ray_session) -> None:
    settings, encoder, made = prepared(tmp_path)
    weights = encoder.module.state_dict()
    for name in weights:
        if name.startswith("layer4.1.bn2") or name.startswith("layer4.0.downsample.1"):
            weights[name] = weights[name] * 0 - (1.0 if name.endswith("bias") else 0.0)
        if name.startswith("layer4.0.bn2"):
            weights[name] = weights[name] * 0
    for name in weights:  # variances stay positive
        if name.endswith("running_var"):
            weights[name] = weights[name] * 0 + 1
    encoder.module.load_state_dict(weights)
    encoder.save(RunFiles(settings.output).weights)
    table = rows_of(made, "tars").slice(0, 1)
    files = EmbeddingFiles(str(tmp_path / "store"))
    [part] = parts_of(settings, encoder, made, table)
    [row] = actor_of(settings, files, 8)(part).to_pylist()
    record = record_of(row)
    assert (record.unit, record.part, record.last) == (table["digest"][0].as_py(), 0, True)
    assert (record.seen, record.embedded, record.rejected) == (20, 0, 20)
    uri = files.shard(record.unit, 0)
    assert len(shards.read_arrow(uri)) == 0
    rejects = shards.read_rejects(uri, "tars")
    assert len(rejects) == 20 and {one.stage for one in rejects} == {"embed"}


def test_unit_without_one_good_image_is_still_done(tmp_path, ray_session) -> None:
    settings, encoder, _ = prepared(tmp_path)
    (tmp_path / "tars" / "one.tar").write_bytes(b"no tar at all")
    made = plan.make(settings, PlanFiles(str(tmp_path / "plan")))
    [where] = [n for n, uri in enumerate(made.table["uri"].to_pylist()) if uri.endswith("one.tar")]
    table = made.table.slice(where, 1)
    [part] = parts_of(settings, encoder, made, table)
    files = EmbeddingFiles(str(tmp_path / "store"))
    [row] = actor_of(settings, files, 8)(part).to_pylist()
    assert "archive damaged" in row["failed"]
    uri = files.shard(row["unit"], 0)
    found = shards.read_arrow(uri)
    assert found.num_rows == 0
    assert found.schema.field("embedding").type == pa.list_(pa.float16(), 512)
    [reject] = shards.read_rejects(uri, "tars")
    assert reject.uri.endswith("one.tar") and "archive damaged" in reject.reason


def test_what_changed_since_it_was_planned_is_no_reject(tmp_path, ray_session) -> None:
    """Its embedding would lie under the name of what it was."""
    settings, encoder, made = prepared(tmp_path)
    table = rows_of(made, "tars").slice(0, 1)
    Path(table["uri"][0].as_py()).write_bytes(b"another")
    [part] = parts_of(settings, encoder, made, table)
    assert part["trouble"][0].as_py().endswith("changed since it was planned")
    assert not part["again"][0].as_py()
    files = EmbeddingFiles(str(tmp_path / "store"))
    [row] = actor_of(settings, files, 8)(part).to_pylist()
    assert row["unit"] == table["digest"][0].as_py() and row["trouble"]
    assert not (tmp_path / "store").exists()


def test_an_image_that_stalls_its_reader_is_found_and_rejected(
    tmp_path, ray_session, monkeypatch
) -> None:
    """By the reader's own clock, twice; then by a process of its own."""
    document = datasets.write_merged(tmp_path)
    slow = tmp_path / "folder" / "a" / "slow.png"
    slow.write_bytes(datasets.slow_picture())
    monkeypatch.setattr(stage, "BOUNDS", Bounds(seconds=1.5))
    document["open"] = [one for one in document["open"] if one["name"] == "folder"]
    document["images"] = {"max_rejected_fraction": 0.5}
    summary = run(config.parse(document, "test"))
    counts = summary.sources.open["folder"]
    plain = datasets.SEEN["folder"], datasets.REJECTED["folder"]
    assert (counts.seen, counts.rejected) == (plain[0] + 1, plain[1] + 1)
    rejects = {row["key"]: row for row in pq.read_table(tmp_path / "run" / "rejected").to_pylist()}
    assert "kills the reader: more than 1.5 s" in rejects["a/slow.png"]["reason"]


def test_the_pool_is_asked_for_without_a_warning(tmp_path, ray_session) -> None:
    """On GPUs as well, of which Ray Data wants to know the batches."""
    settings, encoder, _ = prepared(tmp_path)
    on_gpu = EmbedSettings(device="gpu", workers=1)
    begun = Run.begin(settings.model_copy(update={"embed": on_gpu}), {"device": "gpu"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stage._dataset(begun, encoder, pa.array(range(len(begun.plan))), last=True)
    # By their claims all actors would fit one node
    assert DataContext.get_current().scheduling_strategy == "SPREAD"


@pytest.mark.parametrize(
    ("settings", "device", "cluster", "expected"),
    [
        ({}, "gpu", {"CPU": 64, "GPU": 8}, (1, 8, stage.MOST_GPUS, 1)),
        ({"workers": 5}, "gpu", {"CPU": 64, "GPU": 8}, (1, 5, 5, 1)),
        ({"workers": 20}, "gpu", {"CPU": 64, "GPU": 8}, (1, 8, 20, 1)),
        ({"workers": 20}, "gpu", {"CPU": 64}, (1, 1, 20, 1)),  # none yet
        ({"actors_per_gpu": 2}, "gpu", {"GPU": 8}, (1, 16, 2 * stage.MOST_GPUS, 0.5)),
        ({"actors_per_gpu": 2}, "gpu", {}, (1, 2, 2 * stage.MOST_GPUS, 0.5)),
        ({"actors_per_gpu": 2, "workers": 3}, "gpu", {"GPU": 8}, (1, 3, 3, 0.5)),
        ({"actors_per_gpu": 2}, "cpu", {"CPU": 2}, (1, 1, 1, 0)),
        ({}, "cpu", {"CPU": 32}, (8, 8, 8, 0)),
        ({"workers": 3}, "cpu", {"CPU": 32}, (3, 3, 3, 0)),
    ],
)
def test_the_pool(settings: dict, device: str, cluster: dict, expected: tuple) -> None:
    """Actors at least, at first, at most, and GPUs each."""
    pool = stage.pool_of(EmbedSettings(**settings), device, cluster)
    assert (pool.min_size, pool.initial_size, pool.max_size, pool.num_gpus) == expected


@pytest.mark.parametrize(("images", "cpus"), [([10] * 7, 4), ([20_000] * 3, 1), ([1] * 5000, 2)])
def test_blocks_are_whole_units_in_order(images: list[int], cpus: int) -> None:
    table = pa.table({"images": images, "size": [0] * len(images), "n": range(len(images))})
    blocks = stage._blocks(table, cpus)
    assert pa.concat_tables(blocks)["n"].to_pylist() == list(range(len(images)))
    for block in blocks:
        assert len(block) == 1 or sum(block["images"].to_pylist()) <= stage.BLOCK_IMAGES
    assert len(blocks) >= min(len(images), stage.BLOCKS_PER_CPU * cpus)


def test_units_of_unknown_images_are_weighed_by_their_bytes() -> None:
    tars = pa.table({"images": pa.nulls(4, pa.int64()), "size": [10**9, 10**9, 10**5, 10**5]})
    assert [len(block) for block in stage._blocks(tars, 1)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ({"read": 4.0, "waited": 0.1, "computed": 2.0}, "readers and actors keep step"),
        ({"read": 4.0, "waited": 2.0, "computed": 2.0}, "readers are what there is too little of"),
        ({"read": 4.0, "held up": 2.0, "waited": 0.5}, "actors are what there is too little of"),
    ],
)
def test_which_there_is_too_little_of(spans: dict[str, float], said: str) -> None:
    assert stage._fed(dict.fromkeys(FEED, 0.0) | spans).endswith(f"; {said}")
