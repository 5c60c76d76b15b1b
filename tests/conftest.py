"""What the whole suite shares: one local Ray, and one finished run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # a token of another Ray's must not lock tests out
# Nets and images are so small here that a second thread gains nothing; and where the machine does
# something else as well, threads that spin while they wait for each other make minutes of seconds
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
