"""What every section is made from, and what becomes of one that cannot be made."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from curate.errors import CurateError, one_line
from curate.report.collect.files import Manifest
from curate.report.collect.settings import public
from curate.report.collect.thumbnails import Tiles
from curate.runfiles.run import Embedded, Run

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A finished run. missing: section → why it could not be made."""

    run: Run
    manifest: Manifest
    embedded: Embedded  # what was selected from
    tiles: Tiles
    missing: dict[str, str] = field(default_factory=dict)

    def section(self, name: str, make: Callable[[Subject], T], otherwise: T) -> T:
        """One that cannot be made leaves a reason on the page, and the rest stands."""
        try:
            return make(self)
        except CurateError as error:
            log.warning("report: section %s is left out: %s", name, error)
            self.missing[name] = public(one_line(error))
            return otherwise
