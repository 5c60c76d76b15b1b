"""What became of a run's inputs since it was planned, for the user to decide on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.compute as pc
import ray

from curate import listing
from curate.cluster import over_tasks
from curate.errors import CurateError
from curate.runfiles.plan import Plan, PlannedUnit, SetName, by_name
from curate.settings import ImageFolderSettings, RunSettings, SourceSettings, UrlListSettings
from curate.sources import image_folder, url_list

Sources = dict[tuple[SetName, str], SourceSettings]
NAMED = 5  # inputs that a message has room for


@dataclass(frozen=True)
class Changes:
    """URIs, each once. units: that were not in the earlier plan."""

    units: int
    changed: list[str]
    gone: list[str]

    def refuse(self, folder: str) -> None:
        """Raises CurateError where something was there before that is not any more."""
        said = [
            f"{len(uris):,} {what}: {', '.join(uris[:NAMED])}{', …' if len(uris) > NAMED else ''}"
            for what, uris in (("changed", self.changed), ("gone", self.gone))
            if uris
        ]
        if said:
            raise CurateError(
                f"{folder}: inputs are not what they were: {'; '.join(said)}. Put them back, or go "
                "on with what is there now: --accept-changes"
            )


def between(before: tuple[RunSettings, Plan], now: tuple[RunSettings, Plan]) -> Changes:
    """Of sources whose settings are the same in both: who changed the others knows of it."""
    (old_settings, old_plan), (new_settings, new_plan) = before, now
    old_sources, sources = by_name(old_settings), by_name(new_settings)
    kept = {key: source for key, source in sources.items() if old_sources.get(key) == source}
    old = _only_in(old_plan, new_plan, kept)
    new = _only_in(new_plan, old_plan, kept)
    known = pc.is_in(new_plan.digests, value_set=old_plan.digests)
    fresh = len(new_plan) - int(pc.sum(known).as_py() or 0)
    if not old:
        return Changes(fresh, [], [])
    [(changed, gone)] = over_tasks(_compare, [(old, new)], 1, kept)
    return Changes(fresh, changed, gone)


def _only_in(one: Plan, other: Plan, kept: Sources) -> list[PlannedUnit]:
    rows = pc.indices_nonzero(pc.invert(pc.is_in(one.digests, value_set=other.digests)))
    return [unit for unit in one.units(rows) if (unit.set, unit.source) in kept]


@ray.remote
def _compare(
    pairs: list[tuple[list[PlannedUnit], list[PlannedUnit]]], sources: Sources
) -> tuple[list[str], list[str]]:
    """(changed, gone) of the inputs of units that were, against units that are."""
    [(old, new)] = pairs
    now = {uri: stamp for unit in new for uri, stamp in _inputs(unit, sources)}
    changed, gone = set(), set()
    for unit in old:
        source = sources[unit.set, unit.source]
        if isinstance(source, UrlListSettings) and not url_list.says_still(source, unit.unit):
            changed.add(unit.unit.uri)
        for uri, stamp in _inputs(unit, sources):
            if uri not in now:
                if not _is_there(uri):  # beyond a limit now, another having come before it
                    gone.add(uri)
            elif now[uri] != stamp:
                changed.add(uri)
    return sorted(changed), sorted(gone)


def _is_there(uri: str) -> bool:
    try:
        listing.stamp_of(uri)
        return True
    except FileNotFoundError:
        return False


def _inputs(planned: PlannedUnit, sources: Sources) -> Iterator[tuple[str, str]]:
    """(URI, what tells whether it is the same) of the files that a unit is read from; none of a
    list, which speaks for itself."""
    unit = planned.unit
    if isinstance(sources[planned.set, planned.source], ImageFolderSettings):
        for row in image_folder.files_of(unit).to_pylist():
            yield row["uri"], f"{row['size']} {row['stamp']}"
    elif not isinstance(sources[planned.set, planned.source], UrlListSettings):
        yield unit.uri, unit.stamp
