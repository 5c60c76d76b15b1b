"""How far long work has come: a bar on a terminal, a line every 30 s elsewhere, by the clock."""

from __future__ import annotations

import logging
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)
LINE_EVERY_S = 30.0
TICK_S = 0.5
WAITING = "waiting for the first workers to start"

REASONS_KEPT = 1000  # others are counted together

S = TypeVar("S", bound="Display")


@dataclass
class Facts:
    """How far one stage's work is, to be written down."""

    what: str
    unit: str
    done: int
    total: int
    images: int | None = None  # of this run
    images_per_s: float | None = None
    seconds_left: float | None = None
    awaits: str | None = None  # without which nothing goes on
    rejected: dict[str, int] = field(default_factory=dict)  # images, by reason
    failed: dict[str, int] = field(default_factory=dict)  # units that cannot be read now, by reason
    feed: dict[str, float] = field(default_factory=dict)  # seconds of all workers, by what they did

    def text(self) -> str:
        parts = [f"{self.done:,} of {self.total:,} {self.unit}s"]
        if self.awaits:
            return f"{parts[0]}, {self.awaits}"
        if self.images:
            parts.append(f"{self.images:,} images")
        if self.images_per_s:
            parts.append(f"{self.images_per_s:,.0f} images/s")
        if self.seconds_left is not None:
            parts.append(f"{self.seconds_left:,.0f} s left")
        return ", ".join(parts)

    def more(self, most: int) -> list[str]:
        """Where the workers' seconds went, and what was rejected and what failed: lines with the
        `most` frequent reasons of each."""
        lines = []
        if self.feed:
            lines.append(f"  workers: {spent(self.feed)}")
        for what, counts in (
            ("images rejected", self.rejected),
            (f"{self.unit}s not readable now", self.failed),
        ):
            if not counts:
                continue
            lines.append(f"  {sum(counts.values()):,} {what}")
            ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
            lines += [f"    {count:8,}  {reason}" for reason, count in ordered[:most]]
            if len(ordered) > most:
                rest = sum(count for _, count in ordered[most:])
                lines.append(f"    {rest:8,}  for {len(ordered) - most:,} other reasons")
        return lines


def spent(feed: Mapping[str, float]) -> str:
    """Seconds of workers, by what they did, in a line."""
    return ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in feed.items())


def newest() -> Display | None:
    """That of the work that was last begun in this process."""
    return _begun[-1] if _begun else None


_begun: deque[Display] = deque(maxlen=1)


class Display(ABC):
    """A bar or lines, while the `with` lasts: a thread looks at the clock, whether or not anything
    comes of the work."""

    unit: str  # that a bar counts

    def __init__(self, what: str) -> None:
        self.what = what
        self.started = self.spoken = time.monotonic()
        self.ended: float | None = None
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

    def facts(self) -> Facts | None:
        """None while there is nothing to tell."""
        standing = self.standing()
        return None if standing is None else Facts(self.what, self.unit, *standing[:2])

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
        _begun.append(self)
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
        self.ended = time.monotonic()
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
        self.rejected: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.feed: dict[str, float] = {}

    def awaits(self, what: str | None) -> None:
        """What nothing goes on without; None where nothing is lacking."""
        with self._lock:
            if what and what != self.awaited:
                self.awaited = what
                self.show(now=True)
            self.awaited = what

    def add(
        self,
        *,
        images: int,
        units: int = 0,
        rejected: Iterable[str] = (),
        feed: Mapping[str, float] | None = None,
    ) -> None:
        """rejected: a reason for each image of these that cannot be used. feed: seconds that they
        took, by what was done."""
        with self._lock:
            self.images += images
            self.done += units
            self.fresh += units
            _count(self.rejected, rejected)
            for name, seconds in (feed or {}).items():
                self.feed[name] = self.feed.get(name, 0.0) + seconds
            self.show()

    def fails(self, reason: str) -> None:
        """A unit cannot be read now."""
        with self._lock:
            _count(self.failed, [reason])

    def tries_again(self) -> None:
        """What failed is tried anew."""
        with self._lock:
            self.failed.clear()

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.started

    @property
    def rate(self) -> float:
        """Images/s of this run."""
        return self.images / max(self.seconds, 1e-9)

    def standing(self) -> tuple[int, int, str]:
        figures = f"{self.rate:,.0f} images/s" if self.images else WAITING
        return self.done, self.units, self.awaited or figures

    @property
    def seconds_left(self) -> float | None:
        """None before the first unit."""
        return (self.units - self.done) * self.seconds / self.fresh if self.fresh else None

    def facts(self) -> Facts:
        with self._lock:
            return Facts(
                self.what,
                self.unit,
                self.done,
                self.units,
                self.images,
                self.rate,
                self.seconds_left,
                self.awaited,
                dict(self.rejected),
                dict(self.failed),
                {name: round(seconds, 3) for name, seconds in self.feed.items()},
            )

    def line(self) -> str:
        units = f"{self.done} of {self.units} units"
        if self.awaited:
            return f"{units}, {self.awaited}"
        if not self.images and not self.fresh:
            return f"{units}, no image yet: {WAITING}"
        left = self.seconds_left
        eta = "no unit yet" if left is None else f"{left:,.0f} s left"
        return f"{units}, {self.images} images, {self.rate:.0f} images/s, {eta}"

    def end(self, error: BaseException | None) -> None:
        if error is None and self.fresh:
            self.show(now=True)


def _count(counter: Counter[str], reasons: Iterable[str]) -> None:
    for reason in reasons:
        known = reason in counter or len(counter) < REASONS_KEPT
        counter[reason if known else "other reasons"] += 1
