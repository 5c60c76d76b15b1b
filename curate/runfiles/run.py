"""A run on disk: begun or gone on with by `curate run`, opened by all that comes after."""

from __future__ import annotations

import hashlib
import logging
import platform
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

import pyarrow as pa

from curate import __version__, storage
from curate.errors import CurateError
from curate.runfiles import accounts, changes, plan, store
from curate.runfiles.accounts import Counts
from curate.runfiles.files import EmbeddingFiles, RunFiles
from curate.runfiles.ledger import Ledger
from curate.runfiles.memo import START_OVER, Inputs, Memo, check_layout, digest
from curate.runfiles.plan import Plan, SetName
from curate.runfiles.shards import Shard
from curate.runfiles.summary import Summary
from curate.settings import RunSettings, load

log = logging.getLogger(__name__)

PACKAGES = ("ray", "torch", "timm", "faiss-cpu", "numpy", "pyarrow", "pillow")


@dataclass(frozen=True)
class Beside:
    """Metadata of the images of some shards: tables, row by row beside each of them, of which
    `schema` says columns and types; a file's own type of a column may be another, or null."""

    tables: list[Shard]
    schema: pa.Schema


@dataclass(frozen=True)
class Embedded:
    """What is selected from: the embeddings of both sets, in plan order."""

    target: list[Shard]
    open: list[Shard]
    open_sources: list[str]  # of each open shard
    fingerprint: str  # digest of what decided the embeddings
    exclude: tuple[Shard, ...] = ()  # of images that no copy of is selected
    beside: Beside | None = None  # what is known of the open set's images but by its shards

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
    fingerprint: Inputs  # what decides what becomes of an image
    versions: dict[str, str]  # of what wrote it

    @staticmethod
    def begin(settings: RunSettings, fingerprint: Inputs, *, accept_changes: bool = False) -> Run:
        """Plan the run; go on with what an earlier one left under `output` and in the store.

        accept_changes: whether inputs may be others than they were.

        Raises CurateError, saying what differs, where another encoder's run is in the way, and,
        naming them, where inputs changed or are gone.
        """
        files = RunFiles(settings.output)
        memo = Memo(files.memo)
        earlier = memo.refuse_other(fingerprint)
        before = plan.newest(files) if earlier else None
        made = plan.next_files(files)
        try:
            now = plan.make(settings, made)
            if before is not None and before.table.equals(now.table):
                now = before
                log.info("plan: %d units, as before", len(now))
            else:
                if before is not None:
                    _compare(before, now, settings, accept_changes)
                plan.write(now)
                log.info("plan: %d units", len(now))
        except BaseException:
            plan.discard(files, made)
            raise
        versions = {"curate": __version__, "python": platform.python_version()}
        versions |= {package: version(package) for package in PACKAGES}
        memo.write(fingerprint, settings=load.as_written(settings), versions=versions)
        plan.remove_others(files, now)
        store.enter(settings, fingerprint)
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
    def plan(self) -> Plan:
        found = plan.newest(self.files)
        if found is None:
            raise CurateError(f"{self.files.plans}: no plan; run the same `curate run` again")
        return found

    @property
    def embeddings(self) -> EmbeddingFiles:
        return store.of_run(self.settings).embeddings(store.key(self.fingerprint))

    @cached_property
    def ledger(self) -> Ledger:
        """As it was written: to open a run that is done lists no folder, and reads no shard."""
        return Ledger.read(self.embeddings, self.plan.digests)

    def resumed(self) -> Ledger:
        """The ledger held against the files that are there, to go on from."""
        ledger = Ledger.verified(self.embeddings, self.plan.digests)
        self.__dict__["ledger"] = ledger  # as cached_property keeps it
        return ledger

    def counts(self) -> Counts:
        """Raises CurateError where the embedding is not done, or does not add up."""
        return accounts.by_source(self.plan, self.ledger)

    def embedded(self) -> Embedded:
        """Raises CurateError as `counts` does."""
        self.counts()
        sets: dict[SetName, list[Shard]] = {"target": [], "open": [], "exclude": []}
        sources: list[str] = []
        first: dict[SetName, int] = dict.fromkeys(sets, 0)
        table, rows = self.ledger.rows_of(self.plan.digests)
        parts_of = table["shards"].take(rows).to_pylist()
        columns = (self.plan.table[name].to_pylist() for name in ("set", "source", "digest"))
        files = self.embeddings
        for set_name, source, unit, parts in zip(*columns, parts_of, strict=True):
            for number, part in enumerate(parts):
                if not part["rows"]:
                    continue
                uri = files.shard(unit, number)
                sets[set_name].append(Shard(uri, 0, part["rows"], first[set_name]))
                first[set_name] += part["rows"]
                if set_name == "open":
                    sources.append(source)
        return Embedded(
            sets["target"], sets["open"], sources, self._digest(), tuple(sets["exclude"])
        )

    def _digest(self) -> str:
        """Of all embeddings, in plan order."""
        known = hashlib.sha256(digest(self.fingerprint).encode())
        columns = (self.plan.table[name].to_pylist() for name in ("set", "source", "digest"))
        for set_name, source, unit in zip(*columns, strict=True):
            named = source if set_name == "open" else ""  # as manifests name it
            known.update(f"{set_name} {named} {unit}\n".encode())
        return known.hexdigest()


def _compare(before: Plan, now: Plan, settings: RunSettings, accept: bool) -> None:
    found = changes.between((Run.open(settings.output).settings, before), (settings, now))
    if not accept:
        found.refuse(settings.output)
    log.info(
        "plan: since the last one %d units are new, %d inputs changed, %d are gone",
        *(found.units, len(found.changed), len(found.gone)),
    )


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
