"""How far long work has come: a bar on a terminal, a line every 30 s elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

log = logging.getLogger(__name__)
LINE_EVERY_S = 30.0


class Progress:
    """Counts units and images of one stage.

    units: how many there are; done_before: of them, done by an earlier run.
    """

    def __init__(self, what: str, units: int, done_before: int = 0) -> None:
        self.what, self.units, self.done = what, units, done_before
        self.fresh = self.images = 0
        self.started = self.spoken = time.monotonic()
        self.bar = (
            tqdm(total=units, initial=done_before, desc=what, unit="unit", leave=False)
            if sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif error is None and self.fresh:
            self._speak()

    def add(self, *, images: int, units: int = 0) -> None:
        self.images += images
        self.done += units
        self.fresh += units
        if self.bar is not None:
            self.bar.update(units)
            self.bar.set_postfix_str(f"{self.rate:,.0f} images/s")
        elif time.monotonic() - self.spoken > LINE_EVERY_S:
            self._speak()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Images/s of this run."""
        return self.images / max(self.seconds, 1e-9)

    def _speak(self) -> None:
        self.spoken = time.monotonic()
        left = self.units - self.done
        eta = f"{left * self.seconds / self.fresh:,.0f} s left" if self.fresh else "no unit yet"
        log.info(
            "%s: %d of %d units, %d images, %.0f images/s, %s",
            self.what,
            self.done,
            self.units,
            self.images,
            self.rate,
            eta,
        )
