"""A run on disk: begun or gone on with by `curate run`, opened by all that comes after."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

from curate import __version__, storage
from curate.errors import CurateError
from curate.runfiles import accounts, plan
from curate.runfiles.accounts import Counts
from curate.runfiles.files import RunFiles
from curate.runfiles.ledger import Ledger
from curate.runfiles.memo import START_OVER, Inputs, Memo, check_layout, digest
from curate.runfiles.plan import PlannedUnit, SetName
from curate.runfiles.shards import Shard
from curate.runfiles.summary import Summary
from curate.settings import RunSettings, load

log = logging.getLogger(__name__)

PACKAGES = ("ray", "torch", "timm", "faiss-cpu", "numpy", "pyarrow", "pillow")


@dataclass(frozen=True)
class Embedded:
    """What is selected from: the embeddings of both sets, in plan order."""

    target: list[Shard]
    open: list[Shard]
    open_sources: list[str]  # of each open shard
    fingerprint: str  # digest of what decided the embeddings

    @property
    def target_images(self) -> int:
        return sum(shard.rows for shard in self.target)

    @property
    def open_images(self) -> int:
        return sum(shard.rows for shard in self.open)


@dataclass(frozen=True)
class Run:
    """One run, its embedding done or not."""

    files: RunFiles
    settings: RunSettings
    fingerprint: Inputs  # what decides the embeddings
    versions: dict[str, str]  # of what wrote it

    @staticmethod
    def begin(settings: RunSettings, fingerprint: Inputs) -> Run:
        """Go on with what lies under `output`, or plan a new run and freeze the plan on disk.

        Raises CurateError, saying what differs, where another run's files are in the way.
        """
        files = RunFiles(settings.output)
        memo = Memo(files.memo)
        # The memo is written after the plan: where there is one, there is a whole plan
        if memo.refuse_other(fingerprint):
            units = plan.read(files.plan)
            log.info("plan: %d units, of the run at %s", len(units), settings.output)
        else:
            units = plan.make(settings)
            plan.write(files.plan, units)
            log.info("plan: %d units", len(units))
        versions = {"curate": __version__, "python": platform.python_version()}
        versions |= {package: version(package) for package in PACKAGES}
        memo.write(fingerprint, settings=load.as_written(settings), versions=versions)
        return Run(files, settings, fingerprint, versions)

    @staticmethod
    def open(output: str) -> Run:
        """The run under `output`, which may have been moved since, or be another machine's.

        Raises CurateError where there is none, or one of a version that lays its files out
        otherwise.
        """
        files = RunFiles(output)
        document = Memo(files.memo).read()
        if document is None:
            raise CurateError(f"{output}: no run here (no config.yaml); `curate run` makes one")
        if "settings" not in document:
            raise CurateError(f"{files.memo}: not a run's config; name the output of a run")
        check_layout(document, output, START_OVER)
        try:
            settings, made_from = dict(document["settings"]), dict(document["made_from"])
            versions = {str(name): str(one) for name, one in document["versions"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CurateError(
                f"{files.memo}: not a run's config; name the output of a run"
            ) from None
        parsed = load.parse({**settings, "output": output}, files.memo)
        return Run(files, parsed, made_from, versions)

    @cached_property
    def units(self) -> list[PlannedUnit]:
        return plan.read(self.files.plan)

    @cached_property
    def ledger(self) -> Ledger:
        """As it was written: to open a run that is done lists no folder, and reads no shard."""
        return Ledger.read(self.files)

    def resumed(self) -> Ledger:
        """The ledger held against the files that are there, to go on from."""
        ledger = Ledger.verified(self.files, self.units)
        self.__dict__["ledger"] = ledger  # as cached_property keeps it
        return ledger

    def counts(self) -> Counts:
        """Raises CurateError where the embedding is not done, or does not add up."""
        return accounts.by_source(self.units, self.ledger.records, self.files)

    def embedded(self) -> Embedded:
        """Raises CurateError as `counts` does."""
        self.counts()
        sets: dict[SetName, list[Shard]] = {"target": [], "open": []}
        sources: list[str] = []
        first: dict[SetName, int] = {"target": 0, "open": 0}
        for unit in self.units:
            for part, shard in enumerate(self.ledger.records[unit.number].shards):
                if not shard.rows:
                    continue
                uri = self.files.shard(unit.set, unit.number, part)
                sets[unit.set].append(Shard(uri, 0, shard.rows, first[unit.set]))
                first[unit.set] += shard.rows
                if unit.set == "open":
                    sources.append(unit.source)
        return Embedded(sets["target"], sets["open"], sources, digest(self.fingerprint))


def summary_of(files: RunFiles) -> Summary:
    """Raises CurateError where the run was not finished."""
    document = storage.read_json(files.summary) if storage.exists(files.summary) else None
    if not isinstance(document, dict) or "selected" not in document:
        what = "no summary.json" if document is None else "it stopped before the selection"
        raise CurateError(f"{files.folder}: no finished run here ({what}); run `curate run` first")
    try:
        return Summary.from_json(document)
    except (KeyError, TypeError, ValueError) as error:
        raise CurateError(
            f"{files.summary}: not what `curate run` writes; run the same `curate run` again"
        ) from error


def remove(output: str, *, but: str | None = None) -> None:
    """What a run wrote under `output`, except the folder `but`."""
    for uri in RunFiles(output).own:
        if uri != but:
            storage.remove_tree(uri)
