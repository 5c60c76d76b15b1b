"""A run in S3, reported on in place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from tests.report import building
from tests.report.pages import read_all

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def test_a_run_in_s3(bucket, tmp_path, ray_session) -> None:
    output = building.write_run(tmp_path, labels=["a", "b"], coreset={"tau": None})
    s3 = fsspec.filesystem("s3")
    place = f"{bucket}/deep/run"
    s3.put(str(output), place, recursive=True)
    command = [sys.executable, "-m", "curate.cli", "report", place, "--debug"]
    for _ in range(2):  # made, and made again
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "RAY_ADDRESS": ""},
        )
        assert done.returncode == 0, done.stderr
        assert f"report: {place}/report/index.html" in done.stdout
    s3.invalidate_cache()
    # As which a browser that fetches them gets them
    assert _type(s3, f"{place}/report/index.html") == "text/html; charset=utf-8"
    [thumb, *_] = s3.ls(f"{place}/report/thumbs", detail=False)
    assert _type(s3, thumb) == "image/webp"
    s3.get(f"{place}/report", str(tmp_path / "fetched"), recursive=True)
    [folder] = {path.parent for path in (tmp_path / "fetched").rglob("index.html")}
    pages = read_all(folder)
    assert "60 of 300 images selected" in pages["index.html"].text
    assert len(pages["gallery-1.html"].images) == 60


def _type(s3, uri: str) -> str:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return s3.call_s3("head_object", Bucket=bucket, Key=key)["ContentType"]
