"""One pass over all embedding shards: scan and merge, on Ray tasks.

    scan     some shards each   → tables of candidates down to a floor, of all targets' centroids
    split    some tables each   → their entries by ranges of centroids
    merge    a range each       → a piece of these centroids' lists, in memory or in a file

No process holds more than some millions of entries, whatever |U| and the length of the lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import ObjectRef

from curate import storage
from curate.cluster import results
from curate.coreset.allowed import Allowed
from curate.coreset.candidates import Candidates, Floor, Lengths, scan
from curate.coreset.lead import Lead
from curate.coreset.lists import Held, InMemory, Piece, entries_of
from curate.coreset.merge import merge
from curate.coreset.similarity import Centroids, NotUnit
from curate.coreset.stored import Stored, write_entries
from curate.errors import CurateError
from curate.int8 import Block
from curate.runfiles.embeddings import can_be_cut, read_blocks
from curate.runfiles.shards import Shard, other_rows

TASKS_PER_CPU = 4
MOST_ROWS = 4_000_000  # of one task
MOST_ENTRIES = 4_000_000  # of one piece, and of one table of a scan twice: 80 MB
PAIRS_AT_ONCE = 8_000_000  # rows × centroids that are scanned before entries are counted
FAN_IN = 8
SHORT_ROWS = 65_536  # a remote shard of no more is read ahead
READ_AHEAD = 8  # shards


@dataclass(frozen=True)
class Ask:
    """The lists that one target wants of a pass.

    which (R,): of which of all targets' centroids; lengths (R,): about how long; floor: how far
    down; after: below what, where lists are being continued; uri: where pieces are to be kept, with
    a place for their number, or None for memory; older: what is known already of the lists of some
    centroids, from the first to before the last.
    """

    which: NDArray[np.intp]
    lengths: Lengths
    floor: Floor
    after: Floor | None = None
    uri: str | None = None
    older: Callable[[int, int], Candidates] | None = None


def one_pass(
    shards: list[Shard],
    centroids: Centroids,
    asks: list[Ask],
    allowed: Allowed | None = None,
) -> list[list[Piece]]:
    """What each asks for: pieces, of which the centroids count from 0 in each ask.

    allowed: the images there are; all where it is not given.

    Raises CurateError for embeddings of another width than the centroids, or not of unit norm.
    """
    scanned = ray.put(centroids.only(np.concatenate([ask.which for ask in asks])))
    floor = Floor.joined([ask.floor for ask in asks])
    # A floor that lets in more than was asked for is raised when lists are twice as long
    lengths = 2 * np.concatenate([ask.lengths for ask in asks])
    after = _joined_after(asks)
    may_be: Any = None if allowed is None else ray.put(allowed)
    scans: list[Any] = [
        _scan_group.remote(group, scanned, floor, lengths, after, may_be)
        for group in groups(shards)
    ]
    tables: list[ObjectRef] = [table for made in scans for table in made]
    ranges = list(_ranges(asks))
    by_range = _split(tables, [(low, high) for _, low, high in ranges])
    firsts = np.cumsum([0, *(len(ask.which) for ask in asks)])
    merging = []
    for number, ((ask, low, high), parts) in enumerate(zip(ranges, by_range, strict=True)):
        uri = asks[ask].uri
        piece = _Merged(
            low - firsts[ask],
            floor.between(low, high),
            lengths[low:high],
            None if uri is None else uri.format(number),
            asks[ask].older,
        )
        merging.append(_merge_range.remote(piece, low, high, *parts))
    pieces: list[list[Piece]] = [[] for _ in asks]
    for (ask, low, high), made in zip(ranges, results(merging), strict=True):
        pieces[ask].append(Piece(np.arange(low, high) - firsts[ask], *made))
    return pieces


def _joined_after(asks: list[Ask]) -> Floor | None:
    """Above everything for the asks that begin lists."""
    if all(ask.after is None for ask in asks):
        return None
    return Floor.joined([ask.after or Floor.top(len(ask.which)) for ask in asks])


def _ranges(asks: list[Ask]) -> Iterator[tuple[int, int, int]]:
    """Which ask's, and from which to which of the centroids of a pass, the lists of a piece are."""
    first = 0
    for number, ask in enumerate(asks):
        start = entries = 0
        for q, length in enumerate((2 * ask.lengths).tolist()):
            if q > start and entries + length > MOST_ENTRIES:
                yield number, first + start, first + q
                start, entries = q, 0
            entries += length
        yield number, first + start, first + len(ask.lengths)
        first += len(ask.lengths)


def _split(tables: list[ObjectRef], ranges: list[tuple[int, int]]) -> list[list[ObjectRef]]:
    """For each range the tables with its entries."""
    if len(ranges) == 1:
        return [tables]
    split = _split_tables.options(num_returns=len(ranges))
    made = [split.remote(ranges, *tables[i : i + FAN_IN]) for i in range(0, len(tables), FAN_IN)]
    return [list(parts) for parts in zip(*made, strict=True)] or [[] for _ in ranges]


@ray.remote
def _split_tables(ranges: list[tuple[int, int]], *tables: Candidates) -> list[list[Candidates]]:
    return [[table.between(low, high) for table in tables] for low, high in ranges]


@dataclass(frozen=True)
class _Merged:
    """What is to become of the lists from centroid `first` of an ask on: see Ask."""

    first: int
    floor: Floor
    lengths: Lengths
    uri: str | None
    older: Callable[[int, int], Candidates] | None


@ray.remote
def _merge_range(
    piece: _Merged, low: int, high: int, *tables: Candidates | list[Candidates]
) -> tuple[NDArray[np.int64], Floor, Held]:
    """→ lengths, floor, and where the entries are held. Tables are of all the pass's centroids,
    lists of tables of these."""
    parts = [Candidates.none(piece.floor)]
    if piece.older is not None:
        parts.append(piece.older(piece.first, piece.first + len(piece.lengths)))
    for table in tables:
        parts += table if isinstance(table, list) else [table.between(low, high)]
    found = merge(parts, piece.lengths)
    entries = entries_of(found)
    lengths = np.diff(found.starts())
    if piece.uri is None:
        return lengths, found.floor, InMemory(entries)
    write_entries(piece.uri, entries)
    return lengths, found.floor, Stored(piece.uri)


@ray.remote
def _scan_group(
    group: list[Shard],
    centroids: Centroids,
    floor: Floor,
    lengths: Lengths,
    after: Floor | None,
    allowed: Allowed | None,
) -> Iterator[Candidates]:
    """Tables of no more entries than a process can sort; one at least."""
    parts, entries = [Candidates.none(floor)], 0
    lead = Lead(centroids)
    for shard, first, block in blocks_of(group, max(1024, PAIRS_AT_ONCE // centroids.k)):
        only = None if allowed is None else allowed.rows(first, len(block.rows))
        floor = parts[0].floor
        part = _checked(shard, first, block, centroids, lengths, floor, after, lead, only)
        parts.append(part)
        entries += len(part.centroid)
        if entries > MOST_ENTRIES:  # bounds memory, and raises the floor
            parts = [merge(parts, lengths)]
            entries = len(parts[0].centroid)
            if entries > MOST_ENTRIES // 2:
                yield parts[0]
                parts, entries = [Candidates.none(parts[0].floor)], 0
    yield merge(parts, lengths)


def blocks_of(group: list[Shard], most_rows: int) -> Iterator[tuple[Shard, int, Block]]:
    """Blocks of the shards, and where they begin in plan order."""
    for shard, blocks in _read_ahead(group):
        first = shard.first
        for block in blocks:
            for start in range(0, len(block.rows), most_rows):
                yield shard, first + start, block[start : start + most_rows]
            first += len(block.rows)
        if first != shard.first + shard.rows:
            raise other_rows(shard.uri, first - shard.first, shard.rows)


def _read_ahead(group: list[Shard]) -> Iterator[tuple[Shard, Iterator[Block]]]:
    """Of remote shards, the next few small ones are read meanwhile: latency is the limit."""
    short = [not storage.is_local(one.uri) and one.rows <= SHORT_ROWS for one in group]
    if not any(short):
        yield from ((one, read_blocks(one)) for one in group)
        return
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        reading: dict[int, Any] = {}
        for number, shard in enumerate(group):
            for ahead in range(number, min(number + READ_AHEAD, len(group))):
                if short[ahead] and ahead not in reading:
                    reading[ahead] = pool.submit(lambda one: list(read_blocks(one)), group[ahead])
            ready = reading.get(number)
            yield shard, read_blocks(shard) if ready is None else iter(ready.result())
            reading[number] = None


def _checked(
    shard: Shard,
    first: int,
    block: Block,
    centroids: Centroids,
    lengths: Lengths,
    floor: Floor,
    after: Floor | None,
    lead: Lead,
    only: NDArray[np.intp] | None,
) -> Candidates:
    """`scan`, with errors that name the file."""
    width = block.rows.shape[1]
    if width != centroids.f32.shape[1]:
        raise CurateError(
            f"{shard.uri}: embeddings of width {width}, centroids of width "
            f"{centroids.f32.shape[1]}; both must come from one encoder"
        )
    with naming(shard, first, block):
        return scan(
            block, first, centroids, lengths=lengths, floor=floor, after=after, lead=lead, only=only
        )


@contextmanager
def naming(shard: Shard, first: int, block: Block) -> Iterator[None]:
    """Names the file and row of what is no unit vector. first: the block's place in plan order."""
    try:
        yield
    except NotUnit as error:
        row = error.row + first - shard.first + shard.start
        trouble = (
            "NaN or infinite: embed that image again, or leave it out"
            if not np.isfinite(block.rows[error.row].astype(np.float32)).all()
            else f"of norm {error.norm:.4g}: L2-normalise embeddings first"
        )
        raise CurateError(f"{shard.uri}: the embedding in row {row} is {trouble}") from error


def groups(shards: list[Shard], per_cpu: int = TASKS_PER_CPU) -> list[list[Shard]]:
    """Neighbouring shards for one task each, of about equal rows; large files cut at row ranges."""
    total = sum(shard.rows for shard in shards)
    tasks = max(1, int(ray.cluster_resources().get("CPU", 1))) * per_cpu
    # Of a cluster that is scaled down as well, none is to take hours
    target = min(max(1, -(-total // tasks)), MOST_ROWS)
    made: list[list[Shard]] = []
    room = 0
    for shard in shards:
        start = 0
        while start < shard.rows:
            if room <= 0:
                made.append([])
                room = target
            # A remainder under a tenth of a task rides along with its file
            rows = shard.rows - start
            if rows > room + target // 10 and can_be_cut(shard.uri):
                rows = room
            made[-1].append(Shard(shard.uri, shard.start + start, rows, shard.first + start))
            start += rows
            room -= rows
    return made
