"""Collects what a new snapshot will hold, from a source, a former snapshot or the log, and writes its catalog and
vectors in the order of the ids; knows neither model nor index."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from data.array_files import load_array
from data.durable import naming_file
from serving.catalog import Catalog, CatalogEntry, entry_columns, naming_database, new_catalog
from serving.vector_store import Upsert

CATALOG, VECTORS = "catalog.sqlite", "vectors.npy"

# Rows that are put in order at once, so that memory stays bounded.
BLOCK_ROWS = 16_384

_SCHEMA = """
CREATE TABLE entries (
    position INTEGER NOT NULL, image_id TEXT PRIMARY KEY, digest TEXT, location TEXT, captions TEXT, attributes TEXT,
    version INTEGER, origin TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE deletions (image_id TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""


class StagedSnapshot:
    """Entries and vectors in any order; `directory` holds unfinished files until `finish`.

    The vectors of the entries given are added in the same order, before or after them. Example: `staged.add(entries)`,
    `staged.add_vectors(vectors)`, `staged.finish()`.
    """

    def __init__(self, directory: Path, dimension: int) -> None:
        self.directory, self.dimension = directory, dimension
        self._entries, self._vectors = directory / "entries.sqlite", directory / "unordered.f16"
        self._entries.unlink(missing_ok=True)
        self._vectors.write_bytes(b"")
        self._given = 0
        with naming_database(self._entries):
            self._connection = sqlite3.connect(self._entries, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = OFF")
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.executescript(_SCHEMA + "BEGIN")

    def add(self, entries: Iterable[CatalogEntry], *, below: bool = False) -> None:
        """Take entries, each in the place of an earlier one with its id, or `below` what stands: entries and deletions.

        Their rows are ignored; a vector belongs to each of them, also to those that are not taken.
        """
        marks = ", ".join("?" * 8)
        if below:
            statement = (
                f"INSERT INTO entries SELECT {marks} WHERE NOT EXISTS (SELECT 1 FROM deletions WHERE image_id = ?) "
                "ON CONFLICT DO NOTHING"
            )
        else:
            statement = f"INSERT OR REPLACE INTO entries VALUES ({marks})"
        with naming_database(self._entries):
            for entry in entries:
                columns = (self._given, *entry_columns(entry))
                self._connection.execute(statement, (*columns, entry.image_id) if below else columns)
                if not below:
                    self._connection.execute("DELETE FROM deletions WHERE image_id = ?", (entry.image_id,))
                self._given += 1

    def delete(self, image_id: str, version: int) -> None:
        """Remove an image, and remember that it was deleted online."""
        with naming_database(self._entries):
            self._connection.execute("DELETE FROM entries WHERE image_id = ?", (image_id,))
            self._connection.execute("INSERT OR REPLACE INTO deletions VALUES (?, ?)", (image_id, version))

    def forget(self, image_id: str) -> None:
        """Take an image back, as if it had never been there."""
        with naming_database(self._entries):
            self._connection.execute("DELETE FROM entries WHERE image_id = ?", (image_id,))

    def __len__(self) -> int:
        """How many images the snapshot will hold."""
        return self._connection.execute("SELECT count(*) FROM entries").fetchone()[0]

    def add_vectors(self, vectors: np.ndarray) -> None:
        """Append vectors, (B, D) of any float type, kept as float16."""
        with naming_file(self._vectors), self._vectors.open("ab") as file:
            file.write(np.ascontiguousarray(vectors, np.float16).data)

    def finish(self) -> int:
        """Write the catalog and the vectors, remove what they were made from, and return the number of images."""
        with naming_database(self._entries):
            self._connection.execute("COMMIT")
        with new_catalog(self.directory / CATALOG) as catalog:
            catalog.execute("ATTACH ? AS staged", (str(self._entries),))
            catalog.execute(
                "INSERT INTO images SELECT row_number() OVER (ORDER BY image_id) - 1, image_id, digest, location, "
                "captions, attributes, version, origin FROM staged.entries ORDER BY image_id"
            )
            catalog.execute("INSERT INTO deletions SELECT * FROM staged.deletions")
        with closing(self._connection.execute("SELECT position FROM entries ORDER BY image_id")) as found:
            order = np.fromiter((position for (position,) in found), np.int64)
        self._connection.close()
        self._write_vectors(order)
        self._entries.unlink()
        self._vectors.unlink()
        return len(order)

    def close(self) -> None:
        """Give up; what was staged is of no use to anybody."""
        self._connection.close()

    def _write_vectors(self, order: np.ndarray) -> None:
        path, shape = self.directory / VECTORS, (len(order), self.dimension)
        given = self._vectors.stat().st_size
        if given != self._given * self.dimension * 2:
            raise ValueError(f"expected {self._given} vectors; received {given / self.dimension / 2}")
        # Written, not memory-mapped: a full disk is then an error and not a signal that ends the process.
        with naming_file(path), path.open("wb") as file:
            header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            if not len(order):
                return
            unordered = np.memmap(self._vectors, np.float16, "r", shape=(self._given, self.dimension))
            for start in range(0, len(order), BLOCK_ROWS):
                file.write(unordered[order[start : start + BLOCK_ROWS]].data)


def staged_upserts(directory: Path, dimension: int) -> Iterator[Upsert]:
    """What `finish` wrote, image by image in the order of their ids, for a store of another kind; `dimension` is D."""
    vectors = load_array(directory / VECTORS, mapped=True)
    with closing(Catalog(directory / CATALOG)) as catalog:
        for entry in catalog:
            kept = np.asarray(vectors[entry.row])
            offset = -float(kept[dimension]) if len(kept) > dimension else 0.0
            known = (entry.digest, entry.location, entry.captions, entry.attributes)
            yield Upsert(entry.image_id, kept[:dimension], *known, offset=offset)
