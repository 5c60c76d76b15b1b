"""What a fresh worker imports: one that decodes needs torch to resize, one that copies nothing."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray

from curate.dataset import copying, materialise, wanted
from curate.embedding.careful import Bounds, Watch
from curate.embedding.parts import Reading, read_parts
from curate.images import Preprocessing
from curate.runfiles import plan
from curate.runfiles.files import PlanFiles, TrainingSetFiles
from curate.settings import load as config
from tests import datasets

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ["torch", "timm", "torchvision", "faiss", "sklearn"]


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("curate.embedding.parts", [*HEAVY, "ray.data", "ray.train", "pandas"]),
        ("curate.dataset.materialise", [*HEAVY, "ray.data", "ray.train", "pandas"]),
        ("curate.coreset.on_ray", [*HEAVY, "ray.data", "ray.train", "pandas"]),
        ("curate.pretraining.board", [*HEAVY, "ray.data", "ray.train", "pandas"]),
    ],
)
def test_imports_of(modules: str, unwanted: list[str]) -> None:
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = done.stdout.split()
    assert modules in found and not set(unwanted) & set(found)


@pytest.fixture
def settings(tmp_path: Path, ray_session: None) -> Any:
    return config.parse(datasets.write_merged(tmp_path), "test")


def fresh() -> dict[str, Any]:
    """The environment of a worker that has done nothing yet."""
    return {"env_vars": {"CURATE_FRESH_WORKER": uuid.uuid4().hex}}


def test_a_reader(settings: Any, tmp_path: Path) -> None:
    def read(batch: pa.Table, **arguments: Any) -> pa.Table:
        parts = list(read_parts(batch, **arguments))
        loaded = [name for name in HEAVY if name in sys.modules]
        return pa.table({"parts": [len(parts)], "loaded": [" ".join(loaded)]})

    made = plan.make(settings, PlanFiles(str(tmp_path / "plan")))
    table = made.table.filter(pc.equal(made.table["source"], "folder"))
    preprocessing = Preprocessing(32, 1.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    reading = Reading(
        made.files, plan.by_name(settings), settings.images, preprocessing, True, Bounds()
    )
    [row] = (
        ray.data.from_arrow(table.combine_chunks())
        .map_batches(
            read,
            batch_size=None,
            batch_format="pyarrow",
            runtime_env=fresh(),
            fn_kwargs={"reading": reading, "watch": Watch.remote()},
        )
        .take_all()
    )
    assert row == {"parts": len(table), "loaded": "torch"}


def test_a_copier(settings: Any, tmp_path: Path) -> None:
    files = TrainingSetFiles(str(tmp_path / "data"))
    wanted.write_list._function(files, materialise._asked(settings, ["target"]))

    @ray.remote(runtime_env=fresh())
    def copy() -> tuple[int, list[str]]:
        copied = copying.copy(files, 0, {"target": settings.target}, settings.images)
        assert isinstance(copied, copying.Copied)
        return sum(part.images for part in copied.parts), [m for m in HEAVY if m in sys.modules]

    assert ray.get(copy.remote()) == (24, [])
