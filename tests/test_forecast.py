"""`curate plan`: what is there, without embedding it."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate import cli
from curate.errors import CurateError
from curate.forecast import forecast
from curate.settings import load
from tests import datasets


def test_it_counts_and_samples_and_leaves_nothing(merged_run, tmp_path, ray_session) -> None:
    document = {**merged_run[0], "output": str(tmp_path / "new" / "run")}
    found = forecast(load.parse(document, "test"))
    images = {one.name: one.images for one in found.sources if one.set == "open"}
    assert images == datasets.SEEN
    assert {one.name: one.counted for one in found.sources} == {
        **dict.fromkeys(("target", "folder", "tables", "list"), True),
        "tars": False,  # counted in the sample, which is all of them here
    }
    sampled = {one.name: one.sample for one in found.sources}
    assert sampled["folder"].images > 0 and sampled["folder"].rejects
    assert found.reading_per_s > 0 and (found.embedding_per_s or 0) > 0
    assert found.disk_bytes > sum(images.values()) * 2 * 512
    assert not (tmp_path / "new").exists()
    table = found.table()
    assert "h more" in table and "tars" in table and "~40" in table


def test_it_says_what_cannot_be_read(merged_run, tmp_path, capsys, ray_session) -> None:
    gone = {"name": "gone", "kind": "webdataset", "path": str(tmp_path / "*.tar")}
    document = {**merged_run[0], "output": str(tmp_path / "run"), "open": [gone]}
    with pytest.raises(CurateError, match=r"source gone: .*matches no file"):
        forecast(load.parse(document, "test"))
    config = Path(tmp_path / "run.yaml")
    config.write_text(load.yaml.safe_dump(document))
    assert cli.main(["plan", str(config)]) == 1
    assert "source gone:" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
