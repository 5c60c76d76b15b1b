"""python -m tests.faults.work CONFIG: a run, and a training set of what it chose, in its output."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate import cluster
from curate.dataset.materialise import training_images
from curate.dataset.training_set import read_index
from curate.pipeline import run
from curate.settings import RunSettings
from curate.settings import load as config


def work(settings: RunSettings) -> None:
    run(settings)
    training_images(settings, ["target", "coreset"], f"{settings.output}/training")


@dataclass
class Made:
    """What there is to compare: the manifest, and a digest of all bytes to train on, in order."""

    manifest: pa.Table
    training: str

    @staticmethod
    def under(output: str | Path) -> Made:
        index = read_index(f"{output}/training")
        assert index is not None
        return Made(pq.read_table(f"{output}/coreset.parquet"), index.fingerprint)


if __name__ == "__main__":
    cluster.connect()
    work(config.load(sys.argv[1]))
