"""One local Ray for the whole suite."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["RAY_AUTH_MODE"] = "disabled"  # a token of another Ray's must not lock tests out

import pytest
import ray

from curate import cluster


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray as the project itself starts it."""
    cluster.connect()
    yield
    ray.shutdown()
