"""Sources under test, on the disk and on S3. Ray, for they are planned by its tasks."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _ray(ray_session: None) -> None:
    pass


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder: on the disk, and on a filesystem that is none."""
    if request.param == "local":
        return str(tmp_path)
    return str(request.getfixturevalue("bucket"))
