"""`curate watch`: a run's status.json, for people, again and again."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from curate.runfiles.status import Status

CLEAR = "\x1b[H\x1b[J"  # a terminal


def watch(output: str, every_s: float, *, once: bool = False, to: TextIO | None = None) -> None:
    """Show how far a run is until it ends; on a terminal in place, else whenever it changes.

    Raises CurateError where there is no such run.
    """
    to = to or sys.stdout
    told: Status | None = None
    while True:
        status = Status.read(output)
        if to.isatty():
            print(f"{CLEAR}{output}: {status.text(time.time())}", file=to, flush=True)
        elif status != told:
            print(f"{output}: {status.text(time.time())}\n", file=to, flush=True)
        told = status
        if once or status.state != "running":
            return
        time.sleep(every_s)
