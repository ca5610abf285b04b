"""What an index knows about each image, by row and by id, in one SQLite file; knows no vectors and no search."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from data.attributes import attributes_from_json, attributes_to_json
from data.errors import QueryError, SnapshotError
from data.pairs import AttributeValue

# Stored in SQLite's own header, so that a reader refuses a layout it does not know.
FORMAT_VERSION = 1

_SCHEMA = """
CREATE TABLE images (
    "row" INTEGER PRIMARY KEY,
    image_id TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    location TEXT NOT NULL,
    captions TEXT NOT NULL,
    attributes TEXT NOT NULL
) STRICT
"""
_COLUMNS = '"row", image_id, digest, location, captions, attributes'


class ImageNotFound(QueryError):
    """A query names an image that the index does not hold."""

    def __init__(self, image_id: str) -> None:
        super().__init__("image_id", "the id of an indexed image", repr(image_id), "check the id, or index the image")
        self.image_id = image_id


@dataclass(frozen=True)
class CatalogEntry:
    """One indexed image.

    `digest` is the SHA-256 of its encoded bytes; `location` is the path of its file, or empty when it has none.
    """

    row: int
    image_id: str
    digest: str
    location: str = ""
    captions: tuple[str, ...] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


def write_catalog(path: Path, entries: Iterable[CatalogEntry]) -> int:
    """Write a new catalog and return the number of entries, whose rows must count from 0.

    A repeated `image_id` is an `sqlite3.IntegrityError`; a full disk is an `OSError`, as for any file. The file is
    complete when this returns; a crash before leaves a part that nobody reads.
    """
    path.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(path)) as connection:
            # One transaction on a file that no one else sees: the journal would only cost time.
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            connection.execute(_SCHEMA)
            connection.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)", (_to_columns(e) for e in entries))
            connection.commit()
            (count,) = connection.execute("SELECT count(*) FROM images").fetchone()
    except sqlite3.OperationalError as error:
        number = errno.ENOSPC if error.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO
        raise OSError(number, os.strerror(number), f"{path} ({error})") from error
    return count


class Catalog:
    """Reads a catalog that no longer changes; safe to share between threads.

    Example: `Catalog(path).by_rows([4, 0])` gives two entries in that order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            # `immutable` lets SQLite skip locks and journals: the file is a published one.
            self._connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
            )
            (version,) = self._fetch("PRAGMA user_version")[0]
            self._count = self._fetch("SELECT count(*) FROM images")[0][0] if version == FORMAT_VERSION else 0
        except sqlite3.Error as error:
            raise SnapshotError(
                "a catalog", f"{path.name} that SQLite refuses: {error}", "build the index again"
            ) from None
        if version != FORMAT_VERSION:
            self.close()
            raise SnapshotError(
                f"a catalog of format {FORMAT_VERSION}", f"format {version}", "build the index again with this version"
            )

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[CatalogEntry]:
        """Every entry by row, read in pieces."""
        for start in range(0, self._count, 1_000):
            yield from self.by_rows(range(start, min(start + 1_000, self._count)))

    def rows_with(self, image_ids: Sequence[str]) -> Iterator[int]:
        """The rows of the images of these ids that are there."""
        for start in range(0, len(image_ids), 1_000):
            ids = tuple(image_ids[start : start + 1_000])  # as parameters: SQLite's JSON ends a text at a zero byte
            marks = ",".join("?" * len(ids))
            yield from (row for (row,) in self._fetch(f'SELECT "row" FROM images WHERE image_id IN ({marks})', ids))

    def by_rows(self, rows: Sequence[int]) -> list[CatalogEntry]:
        """The entries of `rows`, in their order; `KeyError` for a row that is not there."""
        wanted = json.dumps([int(row) for row in rows])
        found = self._fetch(f'SELECT {_COLUMNS} FROM images WHERE "row" IN (SELECT value FROM json_each(?))', (wanted,))
        entries = {columns[0]: _from_columns(columns) for columns in found}
        return [entries[int(row)] for row in rows]

    def by_id(self, image_id: str) -> CatalogEntry:
        """The entry of an image; `ImageNotFound` when there is none."""
        found = self._fetch(f"SELECT {_COLUMNS} FROM images WHERE image_id = ?", (image_id,))
        if not found:
            raise ImageNotFound(image_id)
        return _from_columns(found[0])

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    def _fetch(self, statement: str, values: tuple[str, ...] = ()) -> list[tuple]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()


def _to_columns(entry: CatalogEntry) -> tuple[int, str, str, str, str, str]:
    captions = json.dumps(list(entry.captions), ensure_ascii=False)
    as_json = attributes_to_json(entry.attributes)
    attributes = json.dumps(as_json, ensure_ascii=False, sort_keys=True, allow_nan=False)
    return entry.row, entry.image_id, entry.digest, entry.location, captions, attributes


def _from_columns(columns: tuple) -> CatalogEntry:
    row, image_id, digest, location, captions, attributes = columns
    held = attributes_from_json(json.loads(attributes))
    return CatalogEntry(row, image_id, digest, location, tuple(json.loads(captions)), held)
