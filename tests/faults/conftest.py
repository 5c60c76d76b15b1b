"""One S3 with the sources of all runs that faults disturb, and what a run gives that none does."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import fsspec
import pytest

from tests.faults.harness import Harness, Row


@pytest.fixture(scope="session")
def harness(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").clear_instance_cache()
        bucket = f"faults-{uuid.uuid4().hex}"
        fsspec.filesystem("s3").mkdir(bucket)
        harness = Harness(f"s3://{bucket}", tmp_path_factory.mktemp("faults"))
        harness.write_sources()
        yield harness
        fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture(scope="session")
def undisturbed(harness: Harness, endpoint: str) -> list[Row]:
    """The manifest."""
    status, said = harness.run("undisturbed", endpoint)
    assert status == 0, said[-3000:]
    rows = harness.manifest("undisturbed")
    assert len(rows) == 40
    return rows
