"""A small run with everything on S3, its command in a process of its own, faults in between."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import yaml

from tests import datasets
from tests.faults.alone import ROOT
from tests.sources.reading import write

Row = dict[str, Any]


@dataclass
class Harness:
    """Sources under one bucket, and runs over them, an output each.

    bucket: s3://…, which the process that tests reaches without faults.
    """

    bucket: str
    folder: Path  # for configs and logs
    settings: dict[str, Any] = field(default_factory=dict)

    def write_sources(self) -> None:
        local = self.folder / "sources"
        datasets.write_folder(local / "target", range(1000, 1012))
        datasets.write_folder(local / "folder", range(30))
        for i in range(4):
            seeds = range(100 + 20 * i, 120 + 20 * i)
            datasets.write_tar(local / "tars" / f"{i}.tar", seeds)
            datasets.write_parquet(
                local / "tables" / f"{i}.parquet", range(seeds.start + 200, seeds.stop + 200)
            )
        datasets.write_folder(local / "listed", range(600, 620))
        lines = sorted(str(p.relative_to(local)) for p in (local / "listed").rglob("*.png"))
        (local / "list.txt").write_text("\n".join(lines) + "\n")
        files = [path for path in local.rglob("*") if path.is_file()]
        write(self.bucket, {str(path.relative_to(local)): path.read_bytes() for path in files})

    def document(self, name: str) -> dict[str, Any]:
        at = self.bucket
        return {
            "target": {"kind": "image_folder", "path": f"{at}/target"},
            "open": [
                {"name": "folder", "kind": "image_folder", "path": f"{at}/folder"},
                {"name": "tars", "kind": "webdataset", "path": f"{at}/tars/*.tar"},
                {"name": "tables", "kind": "parquet", "path": f"{at}/tables/*.parquet"},
                {"name": "list", "kind": "url_list", "path": f"{at}/list.txt"},
            ],
            "encoder": {"backbone": "resnet18", "image_px": 32, "crop_fraction": 1.0},
            "embed": {"unit_images": 16},
            "coreset": {"clusters": 5, "tau": None, "budget": 40},
            "output": f"{at}/{name}",
            **self.settings,
        }

    def start(
        self, name: str, endpoint: str, *options: str, module: str = ""
    ) -> subprocess.Popen[str]:
        """`curate run`, or another module that takes its config; what it says is added to a file
        of its name."""
        config = self.folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(self.document(name)))
        environment = {"AWS_ENDPOINT_URL": endpoint, "RAY_ADDRESS": "", "PYTHONPATH": str(ROOT)}
        command = ["-m", module] if module else ["-m", "curate.cli", "run"]
        with open(self.log(name), "a") as log:
            return subprocess.Popen(
                [sys.executable, *command, str(config), *options],
                cwd=self.folder,
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def run(
        self,
        name: str,
        endpoint: str,
        *options: str,
        meanwhile: Callable[[], object] | None = None,
        timeout_s: float = 400,
    ) -> tuple[int, str]:
        """Exit status and everything it said. meanwhile: called once embeddings come."""
        self.log(name).unlink(missing_ok=True)
        process = self.start(name, endpoint, *options)
        try:
            if meanwhile is not None:
                self.wait_for_embeddings(name, process)
                meanwhile()
            return process.wait(timeout_s), self.log(name).read_text()
        finally:
            process.kill()
            process.wait()

    def wait_for_embeddings(self, name: str, process: subprocess.Popen[str]) -> None:
        """Until the first shards are there: the run is in the middle of it."""
        while not self.shards(name) and process.poll() is None:
            time.sleep(0.1)

    def shards(self, name: str) -> list[str]:
        filesystem = fsspec.filesystem("s3")
        filesystem.invalidate_cache()
        found = filesystem.find(f"{self.bucket}/{name}/embeddings")
        return [uri for uri in found if uri.endswith(".arrow")]

    def manifest(self, name: str) -> list[Row]:
        with fsspec.open(f"{self.bucket}/{name}/coreset.parquet") as file:
            rows: list[Row] = pq.read_table(file).to_pylist()
        return rows

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"
