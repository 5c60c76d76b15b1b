"""The job as a cluster runs it: `ray job submit` against a real head."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from tests import datasets

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[JobSubmissionClient]:
    """A head node of its own, stopped with its children and nothing wider."""
    dashboard = free_port()
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=4", "--disable-usage-stats"),
            *(f"--port={free_port_low()}", f"--dashboard-port={dashboard}"),
            *(f"--temp-dir={tmp_path_factory.mktemp('r')}", "--include-dashboard=true"),
            # Other Rays on the machine, this suite's own among them, hold the default port
            f"--dashboard-agent-listen-port={free_port()}",
        ],
        env=environment | {"RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield connected(f"http://127.0.0.1:{dashboard}", process)
    finally:
        # Terminated, it gives its raylet half a minute that nobody needs
        own = [process, *psutil.Process(process.pid).children(recursive=True)]
        for one in own:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(60)


def connected(address: str, process: subprocess.Popen) -> JobSubmissionClient:
    """A client, once the dashboard answers and the node's agent takes jobs."""
    deadline = time.monotonic() + 60
    while True:
        try:
            client = JobSubmissionClient(address)
            client.submit_job(entrypoint="true")
            return client
        except Exception as error:
            assert process.poll() is None and time.monotonic() < deadline, error
            time.sleep(0.5)


def free_port_low() -> int:
    """Ray keeps 10002 to 19999 for its workers, and refuses them for the head."""
    while 10_002 <= (port := free_port()) <= 19_999:
        pass
    return port


def submit(client: JobSubmissionClient, entrypoint: str) -> tuple[JobStatus, str]:
    job = client.submit_job(
        entrypoint=entrypoint,
        runtime_env={"working_dir": str(ROOT), "excludes": EXCLUDES},
    )
    deadline = time.monotonic() + 180
    while not (status := client.get_job_status(job)).is_terminal():
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.5)
    return status, client.get_job_logs(job)


EXCLUDES = [".venv*", ".git", "runs", ".mypy_cache", ".hypothesis", ".ruff_cache"]


@pytest.mark.slow
def test_submitted_job_succeeds(head, tmp_path) -> None:
    document = datasets.write_merged(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    config = tmp_path / "run.yaml"
    status, logs = submit(
        head, f"{sys.executable} jobs/curate.py --config {config} coreset.budget=12"
    )
    assert status == JobStatus.SUCCEEDED, logs
    assert "manifest:" in logs
    assert pq.read_table(tmp_path / "run" / "coreset.parquet").num_rows == 12


def test_submitted_training_succeeds(head, tmp_path) -> None:
    document = datasets.write_merged(tmp_path)
    document["pretrain"] = {"preset": "simcore", "data": ["target"], "epochs": 1, "batch_size": 8}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    config = tmp_path / "run.yaml"
    status, logs = submit(
        head,
        f"{sys.executable} jobs/pretrain.py --config {config} --verbose "
        "pretrain.resources.workers=2",
    )
    assert status == JobStatus.SUCCEEDED, logs
    assert f"encoder: {tmp_path}/run/pretrain" in logs
    assert (tmp_path / "run" / "pretrain" / "encoder.safetensors").exists()
    assert "RayTrainWorker" in logs, "what workers say is among it"
    assert [line for line in logs.splitlines() if "Warning: " in line] == []


def test_failing_job_fails_with_its_reason_in_one_line(head, tmp_path) -> None:
    document = datasets.write_merged(tmp_path)
    document["open"][1]["path"] = str(tmp_path / "nowhere" / "*.tar")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    status, logs = submit(head, f"{sys.executable} jobs/curate.py --config {tmp_path / 'run.yaml'}")
    assert status == JobStatus.FAILED
    [line] = [line for line in logs.splitlines() if line.startswith("curate: ")]
    assert line.startswith(f"curate: source tars: {tmp_path}/nowhere/*.tar: matches no file")
    assert "Traceback" not in logs
    assert not list((tmp_path / "run").iterdir())
