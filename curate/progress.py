"""How far long work has come: a bar on a terminal, a line every 30 s elsewhere, by the clock."""

from __future__ import annotations

import logging
import sys
import threading
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)
LINE_EVERY_S = 30.0
TICK_S = 0.5
WAITING = "waiting for the first workers to start"

S = TypeVar("S", bound="Display")


class Display(ABC):
    """A bar or lines, while the `with` lasts: a thread looks at the clock, whether or not anything
    comes of the work."""

    unit: str  # that a bar counts

    def __init__(self, what: str) -> None:
        self.what = what
        self.started = self.spoken = time.monotonic()
        self.bar: tqdm[Any] | None = None
        self._on_terminal = sys.stderr.isatty()
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._tick, name=f"progress: {what}", daemon=True)

    @abstractmethod
    def line(self) -> str | None:
        """What a line says now; None where it would be nothing new."""

    @abstractmethod
    def standing(self) -> tuple[int, int, str] | None:
        """What a bar shows: units done, of how many, and figures; None for no bar yet."""

    def look(self) -> None:
        """What is done at every tick."""
        self.show()

    @abstractmethod
    def end(self, error: BaseException | None) -> None:
        """Shows the last there is to show; error: what the work ended with."""

    def show(self, *, now: bool = False) -> None:
        """Brings the bar up to date; or says the line, when it is time for one, or `now`."""
        with self._lock:
            if self._on_terminal:
                self._draw()
            elif now or time.monotonic() - self.spoken > LINE_EVERY_S:
                line = self.line()
                if line is not None:
                    self.spoken = time.monotonic()
                    log.info("%s: %s", self.what, line)

    def _draw(self) -> None:
        standing = self.standing()
        if standing is None:
            return
        done, total, figures = standing
        if self.bar is None:
            self.bar = tqdm(total=total, initial=done, desc=self.what, unit=self.unit, leave=False)
        self.bar.n = done
        self.bar.set_postfix_str(figures)

    def _tick(self) -> None:
        while not self._ended.wait(TICK_S):
            self.look()

    def __enter__(self: S) -> S:
        if self._on_terminal:
            self._draw()
        self._clock.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._clock.join()
        self.end(error)
        if self.bar is not None:
            self.bar.close()


class Progress(Display):
    """Counts units and images of one stage.

    units: how many there are; done_before: of them, done by an earlier run.
    """

    unit = "unit"

    def __init__(self, what: str, units: int, done_before: int = 0) -> None:
        super().__init__(what)
        self.units, self.done = units, done_before
        self.fresh = self.images = 0
        self.awaited: str | None = None

    def awaits(self, what: str | None) -> None:
        """What nothing goes on without; None where nothing is lacking."""
        with self._lock:
            if what and what != self.awaited:
                self.awaited = what
                self.show(now=True)
            self.awaited = what

    def add(self, *, images: int, units: int = 0) -> None:
        with self._lock:
            self.images += images
            self.done += units
            self.fresh += units
            self.show()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Images/s of this run."""
        return self.images / max(self.seconds, 1e-9)

    def standing(self) -> tuple[int, int, str]:
        figures = f"{self.rate:,.0f} images/s" if self.images else WAITING
        return self.done, self.units, self.awaited or figures

    def line(self) -> str:
        units = f"{self.done} of {self.units} units"
        if self.awaited:
            return f"{units}, {self.awaited}"
        if not self.images and not self.fresh:
            return f"{units}, no image yet: {WAITING}"
        left = self.units - self.done
        eta = f"{left * self.seconds / self.fresh:,.0f} s left" if self.fresh else "no unit yet"
        return f"{units}, {self.images} images, {self.rate:.0f} images/s, {eta}"

    def end(self, error: BaseException | None) -> None:
        if error is None and self.fresh:
            self.show(now=True)
