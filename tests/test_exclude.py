"""Test images that lie in the open set too are not selected: neither their bytes nor what is made
of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate.errors import CurateError
from curate.pipeline import run
from curate.runfiles.run import Run
from curate.settings import load as config
from tests.datasets import picture

pytestmark = pytest.mark.usefixtures("ray_session")

TESTED = range(900, 906)


def encoded_again(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """40 images, the bytes of three test images and three others encoded again among them."""
    for name, seeds in (("target", range(500, 512)), ("open", range(40)), ("tested", TESTED)):
        (tmp_path / name).mkdir()
        for seed in seeds:
            (tmp_path / name / f"{seed:04d}.png").write_bytes(picture(seed))
    for number, seed in enumerate(TESTED):
        data = picture(seed) if number < 3 else encoded_again(picture(seed))
        (tmp_path / "open" / f"planted-{number}.{'png' if number < 3 else 'jpg'}").write_bytes(data)
    folder = {
        name: {"kind": "image_folder", "path": str(tmp_path / name)}
        for name in ("target", "open", "tested")
    }
    return {
        "target": folder["target"],
        "open": [{"name": "crawl", **folder["open"]}],
        "exclude": [{"name": "tested", **folder["tested"]}],
        "encoder": {"backbone": "resnet18", "image_px": 32, "crop_fraction": 1.0},
        "coreset": {"clusters": 3, "tau": None, "near": 0.9985},
        "output": str(tmp_path / "run"),
    }


def selected(output: str) -> list[str]:
    keys: list[str] = pq.read_table(Path(output) / "coreset.parquet")["key"].to_pylist()
    return keys


def test_nothing_that_is_tested_on_enters(document: dict[str, Any]) -> None:
    """Everything else does: of clean images none is taken for a copy."""
    summary = run(config.parse(document, "test"))
    keys = selected(document["output"])
    assert sorted(keys) == [f"{seed:04d}.png" for seed in range(40)]
    assert summary.outcome.left_out == {
        "copies of an excluded image": 3,
        "near copies of an excluded image": 3,
    }
    counts = json.loads((Path(document["output"]) / "summary.json").read_text())["sources"]
    assert counts["exclude"]["tested"]["embedded"] == len(TESTED)
    assert counts["open"]["crawl"] == {"seen": 46, "embedded": 46, "rejected": 0, "selected": 40}


def test_of_whitened_embeddings_too(document: dict[str, Any]) -> None:
    """The excluded images' are whitened as the others are."""
    document["coreset"] |= {"whiten": 8, "near": 0.9}
    summary = run(config.parse(document, "test"))
    planted = [key for key in selected(document["output"]) if key.startswith("planted")]
    assert not [key for key in planted if key.endswith(".png")]
    assert summary.outcome.left_out["copies of an excluded image"] == 3
    assert summary.outcome.left_out["near copies of an excluded image"] > 0


def test_without_it_they_do(document: dict[str, Any]) -> None:
    del document["exclude"]
    run(config.parse(document, "test"))
    assert len(selected(document["output"])) == 46


def test_named_later_it_embeds_its_own_images_alone(document: dict[str, Any]) -> None:
    exclude = document.pop("exclude")
    run(config.parse(document, "test"))
    summary = run(config.parse({**document, "exclude": exclude}, "test"))
    assert summary.embedded_now == len(TESTED)
    assert len(selected(document["output"])) == 40
    assert len(Run.open(document["output"]).embedded().exclude) > 0


def test_an_excluded_source_that_is_empty(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    document["exclude"][0]["path"] = str(tmp_path / "empty")
    with pytest.raises(CurateError, match="empty"):
        run(config.parse(document, "test"))


def test_names_are_distinct(document: dict[str, Any]) -> None:
    document["exclude"] *= 2
    with pytest.raises(CurateError, match="exclude: two sources are named 'tested'"):
        config.parse(document, "test")
