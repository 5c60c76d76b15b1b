"""Parts: what the readers give, what the actors write, and how large units are joined."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from curate.embedding import encoders, parts, stage
from curate.embedding.parts import read_parts
from curate.embedding.stage import EmbedParts, join_parts
from curate.runfiles import plan, shards
from curate.settings import load as config
from tests import datasets


def prepared(tmp_path):
    document = datasets.write_merged(tmp_path)
    settings = config.parse(document, "test")
    encoder = encoders.build(settings.encoder)
    encoder.save(stage.weights_uri(settings.output))
    return settings, encoder, plan.make(settings)


def parts_of(settings, encoder, units):
    return list(
        read_parts(
            plan.to_table(units),
            output=settings.output,
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
    actor = EmbedParts(settings.encoder, stage.weights_uri(settings.output), 5)

    [whole] = parts_of(settings, encoder, [unit])
    actor(whole)
    uri, rejected_uri = unit.embeddings_uri(settings.output), unit.rejected_uri(settings.output)
    expected, rejects = shards.read_arrow(uri), pq.read_table(rejected_uri)
    assert len(expected) + len(rejects) == 16 and len(rejects) > 0

    monkeypatch.setattr(parts, "PART_BYTES", 5 * 32 * 32 * 3)
    cut = parts_of(settings, encoder, [unit])
    assert [part["last"][0].as_py() for part in cut] == [False, False, False, True]
    for part in cut:
        actor(part)
    ray.get(join_parts.remote(uri, rejected_uri, len(cut)))
    joined = shards.read_arrow(uri)
    assert joined.drop_columns(["embedding"]).equals(expected.drop_columns(["embedding"]))
    np.testing.assert_allclose(
        np.stack(joined["embedding"].to_numpy()),
        np.stack(expected["embedding"].to_numpy()),
        atol=2e-3,  # batches are cut elsewhere
    )
    assert pq.read_table(rejected_uri).equals(rejects)
    assert shards.read_note(uri) == {"seen": 16, "embedded": len(joined)}


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
    encoder.save(stage.weights_uri(settings.output))
    unit = next(u for u in units if u.source == "tars")
    actor = EmbedParts(settings.encoder, stage.weights_uri(settings.output), 8)
    [part] = parts_of(settings, encoder, [unit])
    counts = actor(part).to_pylist()
    assert counts == [{"unit": unit.number, "part": 0, "last": True, "images": 20}]
    assert len(shards.read_arrow(unit.embeddings_uri(settings.output))) == 0
    rejects = pq.read_table(unit.rejected_uri(settings.output)).to_pylist()
    assert len(rejects) == 20
    assert {row["stage"] for row in rejects} == {"embed"}
    assert {row["source"] for row in rejects} == {"tars"}


def test_unit_without_one_good_image_is_still_done(tmp_path, ray_session) -> None:
    settings, encoder, units = prepared(tmp_path)
    (tmp_path / "tars" / "one.tar").write_bytes(b"no tar at all")
    unit = next(u for u in units if u.source == "tars")
    [part] = parts_of(settings, encoder, [unit])
    EmbedParts(settings.encoder, stage.weights_uri(settings.output), 8)(part)
    table = shards.read_arrow(unit.embeddings_uri(settings.output))
    assert table.num_rows == 0
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 512)
    [reject] = pq.read_table(unit.rejected_uri(settings.output)).to_pylist()
    assert reject["uri"].endswith("one.tar") and "archive damaged" in reject["reason"]
