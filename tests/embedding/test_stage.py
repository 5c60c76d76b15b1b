"""Parts: what the readers give, what the actors write, and how large units are joined."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import DataContext

from curate.embedding import encoders, parts, stage
from curate.embedding.parts import read_parts
from curate.embedding.stage import EmbedParts
from curate.runfiles import plan, shards
from curate.runfiles.files import RunFiles
from curate.runfiles.ledger import PartRecord, unit_of
from curate.runfiles.run import Run
from curate.settings import EmbedSettings
from curate.settings import load as config
from tests import datasets


def prepared(tmp_path):
    document = datasets.write_merged(tmp_path)
    settings = config.parse(document, "test")
    encoder = encoders.build(settings.encoder)
    encoder.save(RunFiles(settings.output).weights)
    return settings, encoder, plan.make(settings)


def parts_of(settings, encoder, units):
    return list(
        read_parts(
            plan.to_table(units),
            files=RunFiles(settings.output),
            sources={
                ("target", "target"): settings.target,
                **{("open", s.name): s for s in settings.open},
            },
            images=settings.images,
            preprocessing=encoder.preprocessing,
        )
    )


def test_unit_in_several_parts_equals_the_unit_in_one(tmp_path, monkeypatch, ray_session) -> None:
    settings, encoder, units = prepared(tmp_path)
    unit = next(u for u in units if u.source == "folder")  # with three of the broken files
    actor = EmbedParts(settings.encoder, RunFiles(settings.output).weights, 5)

    [whole] = parts_of(settings, encoder, [unit])
    actor(whole)
    files = RunFiles(settings.output)
    uri, rejected_uri = files.shard("open", unit.number, 0), files.rejects(unit.number, 0)
    expected, rejects = shards.read_arrow(uri), pq.read_table(rejected_uri)
    assert len(expected) + len(rejects) == 16 and len(rejects) > 0

    monkeypatch.setattr(parts, "PART_BYTES", 5 * 32 * 32 * 3)
    cut = parts_of(settings, encoder, [unit])
    assert [part["last"][0].as_py() for part in cut] == [False, False, False, True]
    records = [PartRecord(**row) for part in reversed(cut) for row in actor(part).to_pylist()]
    assert unit_of(records[1:]) is None and unit_of(records[:-1]) is None
    record = unit_of(records)
    uris = [files.shard("open", unit.number, number) for number in range(len(cut))]
    tables = [shards.read_arrow(uri) for uri in uris]
    assert [shard.rows for shard in record.shards] == [len(table) for table in tables]
    assert [shard.bytes for shard in record.shards] == [os.path.getsize(uri) for uri in uris]
    joined = pa.concat_tables(table.replace_schema_metadata() for table in tables)
    assert joined.drop_columns(["embedding"]).equals(expected.drop_columns(["embedding"]))
    np.testing.assert_allclose(
        np.stack(joined["embedding"].to_numpy()),
        np.stack(expected["embedding"].to_numpy()),
        atol=2e-3,  # batches are cut elsewhere
    )
    refused = [files.rejects(unit.number, number) for number in range(len(cut))]
    found = [pq.read_table(uri) for uri in refused if os.path.exists(uri)]
    assert pa.concat_tables(found).equals(rejects)
    assert (record.seen, record.embedded, record.rejected) == (16, len(joined), len(rejects))


def test_dead_embedding_is_a_reject_not_a_row(tmp_path, ray_session) -> None:
    settings, encoder, units = prepared(tmp_path)
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
    unit = next(u for u in units if u.source == "tars")
    actor = EmbedParts(settings.encoder, RunFiles(settings.output).weights, 8)
    [part] = parts_of(settings, encoder, [unit])
    counts = actor(part).to_pylist()
    record = PartRecord(**counts[0])
    assert (record.unit, record.part, record.last) == (unit.number, 0, True) and len(counts) == 1
    assert (record.seen, record.embedded, record.rejected) == (20, 0, 20)
    files = RunFiles(settings.output)
    assert len(shards.read_arrow(files.shard("open", unit.number, 0))) == 0
    rejects = pq.read_table(files.rejects(unit.number, 0)).to_pylist()
    assert len(rejects) == 20
    assert {row["stage"] for row in rejects} == {"embed"}
    assert {row["source"] for row in rejects} == {"tars"}


def test_unit_without_one_good_image_is_still_done(tmp_path, ray_session) -> None:
    settings, encoder, units = prepared(tmp_path)
    (tmp_path / "tars" / "one.tar").write_bytes(b"no tar at all")
    unit = next(u for u in units if u.source == "tars")
    [part] = parts_of(settings, encoder, [unit])
    files = RunFiles(settings.output)
    [row] = EmbedParts(settings.encoder, files.weights, 8)(part).to_pylist()
    assert "archive damaged" in row["failed"]
    table = shards.read_arrow(files.shard("open", unit.number, 0))
    assert table.num_rows == 0
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 512)
    [reject] = pq.read_table(files.rejects(unit.number, 0)).to_pylist()
    assert reject["uri"].endswith("one.tar") and "archive damaged" in reject["reason"]


def test_the_pool_is_asked_for_without_a_warning(tmp_path, ray_session) -> None:
    """On GPUs as well, of which Ray Data wants to know the batches."""
    settings, encoder, _ = prepared(tmp_path)
    on_gpu = EmbedSettings(device="gpu", workers=1)
    run = Run.begin(settings.model_copy(update={"embed": on_gpu}), {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stage._dataset(run, encoder, run.units)
    # By their claims all actors would fit one node
    assert DataContext.get_current().scheduling_strategy == "SPREAD"
