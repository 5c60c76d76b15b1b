"""The memory that a benchmark's driver comes to hold."""

from __future__ import annotations

import threading

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
