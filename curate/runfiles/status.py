"""How far a run is, for whoever watches from elsewhere: status.json, and Prometheus gauges by way
of Ray.

    driver ── every 30 s, and at each stage ──> status.json <── `curate watch`, on any filesystem
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Literal

from ray.util.metrics import Gauge

from curate import progress, storage
from curate.errors import CurateError, one_line
from curate.progress import Facts
from curate.runfiles.files import RunFiles

log = logging.getLogger(__name__)

EVERY_S = 30.0
SILENT_S = 3 * EVERY_S  # then its driver may be dead
REASONS_SHOWN = 5

State = Literal["running", "finished", "failed"]


@dataclass
class Status:
    """What status.json holds."""

    state: State = "running"
    stage: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # of the stages that are done
    progress: Facts | None = None  # of the stage
    error: str | None = None
    started: float = 0.0  # seconds since 1970, by the driver's clock
    updated: float = 0.0

    @staticmethod
    def read(output: str) -> Status:
        """Raises CurateError where there is none."""
        uri = RunFiles(output).status
        try:
            found = storage.read_json(uri)
            found["progress"] = Facts(**found["progress"]) if found["progress"] else None
            return Status(**{one.name: found[one.name] for one in fields(Status)})
        except FileNotFoundError:
            raise CurateError(
                f"{uri}: no such file; a run writes it once its plan is made: check the path"
            ) from None
        except (KeyError, TypeError) as error:
            raise CurateError(f"{uri}: not as this version of curate writes it") from error

    def text(self, now: float) -> str:
        """For people, at `now` by the clock of whoever looks."""
        lines = [f"{self.state}, begun {_clock(self.started)}"]
        silent = now - self.updated
        if self.state == "running" and silent > SILENT_S:
            lines[0] += f"; no word for {silent:,.0f} s: if its driver is dead, run it again"
        else:
            lines[0] += f", as of {_clock(self.updated)}"
        lines += [f"  {name:20} {seconds:10,.1f} s" for name, seconds in self.seconds.items()]
        if self.stage is not None:
            of_it = self.progress is not None and self.progress.what.endswith(self.stage)
            told = self.progress.text() if self.progress and of_it else "under way"
            lines.append(f"▸ {self.stage:20} {told}")
        if self.progress is not None:
            lines += self.progress.more(REASONS_SHOWN)
        if self.error is not None:
            lines.append(self.error)
        return "\n".join(lines)


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


class Reporter:
    """Keeps status.json up to date while the `with` lasts, and times the stages.

    Nothing is written before `begin`, so that what is refused leaves no file; but where a stage
    takes long, it is.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        now = time.time()
        self.status = Status(started=now, updated=now)
        self._written = False
        self._begun = 0.0  # the stage
        self._told: Facts | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._tick, name="status", daemon=True)
        self._gauges = _Gauges(storage.public(output))

    @property
    def seconds(self) -> dict[str, float]:
        return self.status.seconds

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._begun = time.monotonic()
        self.status.stage = name
        if self._written:
            self._write()
        yield
        with self._lock:
            self._look()
            self.seconds[name] = time.monotonic() - self._begun
            self.status.stage = None

    def begin(self) -> None:
        """From now on there is a run to tell of."""
        self._write()

    def tell(self, facts: Facts) -> None:
        """How far a stage is whose work shows no progress of its own."""
        self._told = facts
        self._write()

    def _look(self) -> None:
        """At the work of the stage; of one that is over, what it rejected stays."""
        if self._told is not None and self._told.what == self.status.stage:
            self.status.progress = self._told
            return
        display = progress.newest()
        if self.status.stage is not None and display and display.started >= self._begun:
            self.status.progress = display.facts() or self.status.progress

    def _write(self) -> None:
        with self._lock:
            self._look()
            self.status.updated = time.time()
            self._gauges.set(self.status)
            try:
                storage.write_json(RunFiles(self.output).status, asdict(self.status))
                self._written = True
            except CurateError as error:  # a run goes on without being watched
                log.warning("%s", one_line(error))

    def _tick(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._write()

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.status.state = "finished" if error is None else "failed"
        if error is not None:
            self.status.error = storage.public_text(one_line(error) or type(error).__name__)
        if self._written or error is None:
            self._write()


class _Gauges:
    """What Ray gives to Prometheus, of one run."""

    def __init__(self, output: str) -> None:
        tags: dict[str, Any] = {"tag_keys": ("run", "stage")}
        self._output = output
        self._gauges = {
            "done": Gauge("curate_done", "Units or steps of the stage that are done.", **tags),
            "total": Gauge("curate_total", "Units or steps of the stage.", **tags),
            "images": Gauge("curate_images", "Images of the stage, in this run.", **tags),
            "images_per_s": Gauge("curate_images_per_second", "Over the stage so far.", **tags),
        }
        self._rejected = Gauge("curate_rejected", "Images that cannot be used.", **tags)
        self._failed = Gauge("curate_failed_units", "That cannot be read now.", **tags)

    def set(self, status: Status) -> None:
        facts = status.progress
        if facts is None:
            return
        tags = {"run": self._output, "stage": facts.what}
        for name, gauge in self._gauges.items():
            gauge.set(getattr(facts, name) or 0, tags)
        self._rejected.set(sum(facts.rejected.values()), tags)
        self._failed.set(sum(facts.failed.values()), tags)
