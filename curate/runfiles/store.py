"""A store of embeddings: shards by what is in them, for any number of runs; and who uses it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pyarrow.compute as pc
import ray

from curate import listing, storage
from curate.cluster import over_tasks
from curate.errors import CurateError
from curate.runfiles import plan
from curate.runfiles.files import EmbeddingFiles, RunFiles, StoreFiles
from curate.runfiles.memo import Inputs, Memo, digest
from curate.settings import RunSettings

log = logging.getLogger(__name__)

GROUPS_AT_ONCE = 16


def of_run(settings: RunSettings) -> StoreFiles:
    return StoreFiles(settings.store or RunFiles(settings.output).own_store)


def key(fingerprint: Inputs) -> str:
    """The folder's name of all that one encoder made."""
    return digest(fingerprint)[:16]


def enter(settings: RunSettings, fingerprint: Inputs) -> EmbeddingFiles:
    """Where the run's embeddings are; the store knows of the run from here on."""
    store = of_run(settings)
    files = store.embeddings(key(fingerprint))
    made_from = Memo(files.made_from)
    if made_from.read() is None:
        others = listing.folders_in(store.folder) - {store.users.rpartition("/")[2]}
        if others:
            log.info("store %s: of %d other encoders, none yet of this", store.folder, len(others))
        made_from.write(fingerprint)
    name = digest({"output": settings.output})[:16]
    storage.write_json(store.user(name), {"output": settings.output})
    return files


@dataclass(frozen=True)
class Unused:
    """Shards that no run's plan names."""

    uris: list[str]
    bytes: int

    def line(self, store: str, removed: bool) -> str:
        what = "removed" if removed else "no run names them; --remove removes them"
        return f"{store}: {len(self.uris):,} shards, {self.bytes:,} bytes: {what}"


def prune(folder: str, *, remove: bool) -> Unused:
    """Lists what no run names any more, and removes it if told.

    Raises CurateError where there is no store, or a run that uses it cannot be read.
    """
    store = StoreFiles(folder)
    users = storage.names_in(store.users)
    if not users:
        raise CurateError(f"{folder}: no store of embeddings here; name the folder that `store` is")
    wanted: dict[str, set[str]] = {}
    for name in sorted(users):
        output = str(storage.read_json(storage.join(store.users, name))["output"])
        for encoder, digests in _named_by(output).items():
            wanted.setdefault(encoder, set()).update(digests)
    asked = [
        (encoder, storage.join(above, group))
        for encoder in sorted(listing.folders_in(folder) - {store.users.rpartition("/")[2]})
        for above in (store.embeddings(encoder).shards, store.embeddings(encoder).metadata)
        for group in sorted(listing.folders_in(above))
    ]
    found = over_tasks(_unused, asked, GROUPS_AT_ONCE, wanted, remove)
    pairs = [pair for group in found for pair in group]
    return Unused([uri for uri, _ in pairs], sum(size for _, size in pairs))


def _named_by(output: str) -> dict[str, set[str]]:
    """Units that a run's plan names, by its encoder; none of a run that is gone."""
    files = RunFiles(output)
    document, found = Memo(files.memo).read(), plan.newest(files)
    if document is None or found is None:
        return {}
    return {key(document["made_from"]): set(pc.unique(found.digests).to_pylist())}


@ray.remote
def _unused(
    asked: list[tuple[str, str]], wanted: dict[str, set[str]], remove: bool
) -> list[tuple[str, int]]:
    found = []
    for encoder, folder in asked:
        for name, size in storage.sizes_in(folder).items():
            if name.partition("-")[0] not in wanted.get(encoder, ()):
                uri = storage.join(folder, name)
                found.append((uri, size))
                if remove:
                    storage.remove_tree(uri)
    return found
