"""What the whole suite shares: one local Ray, one finished run, and one S3.

The S3 is moto's server. Its pins clash with those of aiobotocore, so it lives in a virtual
environment of its own, `.venv-moto`, which the first tests that need it make.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # a token of another Ray's must not lock tests out
# Nets and images are so small here that a second thread gains nothing; and where the machine does
# something else as well, threads that spin while they wait for each other make minutes of seconds
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fsspec
import pytest
import ray

from curate import cluster
from curate.pipeline import run
from curate.runfiles.summary import Summary
from curate.settings import load
from tests import datasets

MOTO_VENV = Path(__file__).resolve().parents[1] / ".venv-moto"


def _free_port() -> int:
    """Below those that systems give to whoever asks for any, above those of Ray's workers."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


# S3 is reached as users reach theirs, by the environment alone. Ray's workers have that of when Ray
# was started, which is before a test asks for the server
for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
S3 = f"http://127.0.0.1:{_free_port()}"
os.environ |= {
    "AWS_ENDPOINT_URL": S3,
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


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


@pytest.fixture(scope="session")
def moto_server() -> Path:
    """The server's executable."""
    executable = MOTO_VENV / "bin" / "moto_server"
    if not executable.exists():
        subprocess.run([sys.executable, "-m", "venv", str(MOTO_VENV)], check=True, timeout=120)
        pip = [str(MOTO_VENV / "bin" / "pip"), "install", "--quiet", "moto[server]"]
        try:
            subprocess.run(pip, check=True, timeout=400, capture_output=True, text=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"pip cannot install moto's server: {str(error.stderr)[-200:]}")
    return executable


@pytest.fixture(scope="session")
def endpoint(moto_server: Path) -> Iterator[str]:
    server = subprocess.Popen(
        [str(moto_server), "-H", "127.0.0.1", "-p", S3.rpartition(":")[2]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            if server.poll() is not None:
                raise RuntimeError("moto_server ended at once")
            try:
                urllib.request.urlopen(S3, timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield S3
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def bucket(endpoint: str) -> Iterator[str]:
    """s3://… of a bucket of its own."""
    filesystem = fsspec.filesystem("s3")
    filesystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    yield f"s3://{name}"
    filesystem.clear_instance_cache()
