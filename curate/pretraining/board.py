"""Between the workers of a training and its driver. An actor of its own: light, without torch."""

from __future__ import annotations

from typing import Any

import ray

Record = dict[str, Any]  # how a training goes, at one step


@ray.remote(num_cpus=0)
class Board:
    """Where rank 0 shows how it goes, and a worker leaves why it cannot go on."""

    def __init__(self) -> None:
        self.record: Record | None = None
        self.failed: str | None = None

    def show(self, record: Record) -> None:
        self.record = record

    def fail(self, reason: str) -> None:
        self.failed = self.failed or reason

    def shown(self) -> Record | None:
        return self.record

    def failure(self) -> str | None:
        return self.failed
