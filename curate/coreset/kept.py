"""A run's candidates, kept in files: another threshold, budget or reference round reads no
embedding again, and more images are merged into what is there.

    candidates/shards.arrow   the open set's shards in plan order, when the lists were made
    candidates/lists.arrow    a row a list and piece: centroid, length, floor, and of what
    candidates/….npy          the pieces' entries
"""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate import storage
from curate.coreset.candidates import Floor
from curate.coreset.lists import Lists, Piece
from curate.coreset.stored import Stored
from curate.errors import CurateError
from curate.runfiles import shards
from curate.runfiles.files import CandidateFiles
from curate.runfiles.shards import Shard

LAYOUT = 1


@dataclass
class Kept:
    """embeddings: what the open set's embeddings are those of, however many there are; centroids
    (K, D). Lists of others in the same place are not found, and replaced."""

    files: CandidateFiles
    embeddings: str
    centroids: NDArray[np.floating]
    _pieces: list[Piece] = field(default_factory=list)
    _made_of: pa.Table | None = None

    def read(self) -> tuple[Lists, list[Shard]] | None:
        """The lists, and the shards that they are of; None where there are none of these."""
        if not storage.exists(self.files.lists):
            return None
        try:
            table = shards.read_arrow(self.files.lists)
            made_of = shards.read_arrow(self.files.shards)
            note = json.loads((table.schema.metadata or {}).get(b"made_from", b"{}"))
            if note != self._made_from(made_of):
                return None
            self._pieces = _pieces_from(table, self.files)
        except (CurateError, ValueError, KeyError):
            return None  # of another version
        lists = Lists(len(self.centroids))
        for piece in self._pieces:
            lists.add(piece)
        self._made_of = made_of
        return lists, _shards_from(made_of)

    def begin(self, made_of: list[Shard]) -> None:
        """Forget what is there: lists of these shards follow."""
        storage.remove_tree(self.files.folder)
        self._pieces, self._made_of = [], _table_of(made_of)
        shards.write_arrow(self.files.shards, self._made_of)

    def replace(self, made_of: list[Shard], pieces: list[Piece]) -> None:
        """Forget what was there before these pieces of lists of these shards were written."""
        old = [_uri_of(piece) for piece in self._pieces]
        self._pieces, self._made_of = [], _table_of(made_of)
        shards.write_arrow(self.files.shards, self._made_of)
        self.add(pieces)
        for uri in old:
            storage.remove_tree(uri)

    def pattern(self) -> str:
        """A URI of new pieces, with a place for their number: others may be writing as well."""
        return self.files.pieces(uuid.uuid4().hex[:12])

    def add(self, pieces: list[Piece]) -> None:
        """After which they are found."""
        self._pieces += pieces
        rows = {
            "piece": [_uri_of(one).rpartition("/")[2] for one in self._pieces for _ in one.which],
            "centroid": np.concatenate([one.which for one in self._pieces]),
            "length": np.concatenate([one.lengths for one in self._pieces]),
            "similarity": np.concatenate([one.floor.similarity for one in self._pieces]),
            "position": np.concatenate([one.floor.position for one in self._pieces]),
        }
        note = {b"made_from": json.dumps(self._made_from(self._made_of)).encode()}
        shards.write_arrow(self.files.lists, pa.table(rows).replace_schema_metadata(note))

    def _made_from(self, made_of: pa.Table) -> dict[str, str | int]:
        centroids = np.ascontiguousarray(self.centroids, np.float32)
        return {
            "layout": LAYOUT,
            "embeddings": self.embeddings,
            "centroids": _digest(str(centroids.shape).encode(), centroids.tobytes()),
            "shards": _digest(*(str(column.to_pylist()).encode() for column in made_of.columns)),
        }


def _digest(*parts: bytes) -> str:
    known = hashlib.sha256()
    for part in parts:
        known.update(part)
    return known.hexdigest()


def _uri_of(piece: Piece) -> str:
    assert isinstance(piece.held, Stored)
    return piece.held.uri


def _pieces_from(table: pa.Table, files: CandidateFiles) -> list[Piece]:
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "piece"}
    names = np.array(table["piece"].to_pylist(), object)
    pieces = []
    for name in dict.fromkeys(names.tolist()):
        rows = names == name
        floor = Floor(columns["similarity"][rows], columns["position"][rows])
        held = Stored(files.piece(name))
        pieces.append(Piece(columns["centroid"][rows], columns["length"][rows], floor, held))
    return pieces


def is_of(made_of: list[Shard], now: list[Shard]) -> bool:
    """Whether these are the same shards at the same places."""
    return [(s.uri, s.rows, s.first) for s in made_of] == [
        (name_of(s), s.rows, s.first) for s in now
    ]


def name_of(shard: Shard) -> str:
    """What a shard is called wherever its run or store has been moved: after what is in it."""
    return shard.uri.rpartition("/")[2]


def _table_of(made_of: list[Shard]) -> pa.Table:
    return pa.table(
        {
            "name": [name_of(shard) for shard in made_of],
            "rows": np.array([shard.rows for shard in made_of], np.int64),
            "first": np.array([shard.first for shard in made_of], np.int64),
        }
    )


def _shards_from(table: pa.Table) -> list[Shard]:
    columns = (table[name].to_pylist() for name in ("name", "rows", "first"))
    return [Shard(name, 0, rows, first) for name, rows, first in zip(*columns, strict=True)]
