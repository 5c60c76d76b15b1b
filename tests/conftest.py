"""What the whole suite shares: one local Ray, and one finished run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # a token of another Ray's must not lock tests out

import pytest
import ray

from curate import cluster
from curate.pipeline import run
from curate.runfiles.summary import Summary
from curate.settings import load
from tests import datasets


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray as the project itself starts it."""
    cluster.connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def merged_run(
    tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> tuple[dict[str, Any], Summary]:
    """The document of a run over the merged sets, and the summary that it returned. Nobody changes
    either it or its sources: who writes to a run takes `datasets.copy_run`."""
    document = datasets.write_merged(tmp_path_factory.mktemp("merged"))
    return document, run(load.parse(document, "test"))
