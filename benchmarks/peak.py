"""The memory that a benchmark's processes come to hold."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil


class Peak:
    """Memory of this process while the block runs, above what it was before: MB, all of it, and
    without the pages that it shares with Ray's store."""

    def __enter__(self) -> Peak:
        self.process, self.ended = psutil.Process(), threading.Event()
        self.before, self.most = self._now(), (0.0, 0.0)
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _now(self) -> tuple[float, float]:
        memory = self.process.memory_info()
        return memory.rss / 1e6, (memory.rss - memory.shared) / 1e6

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            above = [now - before for now, before in zip(self._now(), self.before, strict=True)]
            self.most = (max(self.most[0], above[0]), max(self.most[1], above[1]))


class PeakOfAll:
    """The peaks of this process and of Ray's workers below it, while the block runs: MB.

    "driver" and "worker" are VmHWM, the most that any one process had resident, workers since they
    began; in "anonymous" the pages of mapped files and of Ray's shared store do not count.
    """

    def __enter__(self) -> PeakOfAll:
        Path("/proc/self/clear_refs").write_text("5")  # its VmHWM begins anew
        self.megabytes = {"driver": 0.0, "worker": 0.0, "worker, anonymous": 0.0}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _poll(self) -> None:
        while not self._stop.wait(0.5):
            self._look()

    def _look(self) -> None:
        self._raise("driver", status("VmHWM"))
        for child in psutil.Process().children(recursive=True):
            try:
                if child.name().startswith("ray::"):
                    self._raise("worker", status("VmHWM", child.pid))
                    self._raise("worker, anonymous", status("RssAnon", child.pid))
            except (psutil.Error, OSError):
                continue  # it ended meanwhile

    def _raise(self, name: str, value: float) -> None:
        self.megabytes[name] = max(self.megabytes[name], value)


def status(field: str, pid: int | str = "self") -> float:
    """A field of /proc/PID/status, MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
