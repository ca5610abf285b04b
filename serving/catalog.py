"""What an index knows about each image, by row and by id, in one SQLite file; knows no vectors and no search."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from data.attributes import attribute_to_json, attributes_from_json
from data.errors import QueryError, SnapshotError
from data.pairs import AttributeValue
from serving.vector_store import StoredImage

# Stored in SQLite's own header, so that a reader refuses a layout it does not know.
FORMAT_VERSION = 2

_SCHEMA = """
CREATE TABLE images (
    "row" INTEGER PRIMARY KEY,
    image_id TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    location TEXT NOT NULL,
    captions TEXT NOT NULL,
    attributes TEXT NOT NULL,
    version INTEGER NOT NULL,
    origin TEXT NOT NULL
) STRICT;
CREATE TABLE deletions (image_id TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
_DIGESTS = "CREATE INDEX images_by_digest ON images (digest)"
_COLUMNS = '"row", image_id, digest, location, captions, attributes, version, origin'

# Ids in one statement.
_AT_ONCE = 1_000

# Entries of images found of late: answers repeat images, and each is asked for twice, by its row and by its id.
_FEW = 256  # rows that are found at once; more are a scan
_KEPT_BYTES = 16 * 1024 * 1024  # in two halves, the newer of which takes in what comes
_ENTRY_BYTES = 1_000  # of an entry, besides its texts

# The origin of what a change put there; that of a batch job is the name of its source.
ONLINE = "online"


class ImageNotFound(QueryError):
    """A query names an image that the index does not hold."""

    def __init__(self, image_id: str) -> None:
        super().__init__("image_id", "the id of an indexed image", repr(image_id), "check the id, or index the image")
        self.image_id = image_id


@dataclass(frozen=True)
class CatalogEntry(StoredImage):
    """One indexed image, where its vector stands and where it came from.

    `digest` is the SHA-256 of its encoded bytes; `location` is where it can be read (see `image_files`), or empty.
    """

    row: int = 0
    origin: str = ""

    def stored(self) -> StoredImage:
        """What clients see of it."""
        return StoredImage(self.image_id, self.digest, self.location, self.captions, self.attributes, self.version)


@contextmanager
def naming_database(path: Path) -> Iterator[None]:
    """Turn SQLite's errors while writing `path` into the `OSError` that any file would give."""
    try:
        yield
    except sqlite3.OperationalError as error:
        number = errno.ENOSPC if error.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO
        raise OSError(number, os.strerror(number), f"{path} ({error})") from error


@contextmanager
def new_catalog(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a new, empty catalog in place of `path`, whose content is complete at the end of the block.

    A crash before leaves a part that nobody reads.
    """
    path.unlink(missing_ok=True)
    with naming_database(path), closing(sqlite3.connect(path)) as connection:
        # One transaction on a file that no one else sees: the journal would only cost time.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        connection.executescript(_SCHEMA)
        yield connection
        connection.execute(_DIGESTS)  # sorting them at the end is faster than an index that grows
        connection.commit()


def write_catalog(path: Path, entries: Iterable[CatalogEntry], deletions: Iterable[tuple[str, int]] = ()) -> int:
    """Write a new catalog and return the number of entries.

    Their rows count from 0 in the order of their ids, so that images of equal score, pages and rows have one order.
    `deletions` are the ids, and the versions, of images that were deleted online. A repeated `image_id` is an
    `sqlite3.IntegrityError`; a full disk is an `OSError`, as for any file.
    """
    with new_catalog(path) as connection:
        insert = "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        connection.executemany(insert, ((e.row, *entry_columns(e)) for e in entries))
        connection.executemany("INSERT INTO deletions VALUES (?, ?)", deletions)
        (count,) = connection.execute("SELECT count(*) FROM images").fetchone()
    return count


class Catalog:
    """Reads a catalog that no longer changes; safe to share between threads.

    Example: `Catalog(path).by_rows([4, 0])` gives two entries in that order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._recent = _RecentEntries()
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
        return (row for (row,) in self._fetch_ids('"row"', image_ids))

    def by_rows(self, rows: Sequence[int]) -> list[CatalogEntry]:
        """The entries of `rows`, in their order; `KeyError` for a row that is not there."""
        entries = {columns[0]: _from_columns(columns) for columns in self._fetch_rows(_COLUMNS, rows)}
        return [entries[int(row)] for row in rows]

    def ids(self, rows: Sequence[int]) -> list[str]:
        """The ids of `rows`, in their order; `KeyError` for a row that is not there."""
        if len(rows) > _FEW:
            ids = dict(self._fetch_rows('"row", image_id', rows))
            return [ids[int(row)] for row in rows]
        found = {row: entry for row in rows if (entry := self._recent.by_row(row)) is not None}
        if missing := [row for row in rows if row not in found]:
            for columns in self._fetch_rows(_COLUMNS, missing):
                entry = found[columns[0]] = _from_columns(columns)
                self._recent.add(entry, sum(len(text) for text in columns if isinstance(text, str)))
        return [found[row].image_id for row in rows]

    def by_ids(self, image_ids: Sequence[str]) -> dict[str, CatalogEntry]:
        """The entry of each of `image_ids` that is there."""
        found = {image_id: entry for image_id in image_ids if (entry := self._recent.by_id(image_id)) is not None}
        if len(found) < len(image_ids):
            missing = [image_id for image_id in image_ids if image_id not in found]
            found.update((columns[1], _from_columns(columns)) for columns in self._fetch_ids(_COLUMNS, missing))
        return found

    def by_id(self, image_id: str) -> CatalogEntry:
        """The entry of an image; `ImageNotFound` when there is none."""
        found = self.by_ids([image_id])
        if not found:
            raise ImageNotFound(image_id)
        return found[image_id]

    def rows_of(self, image_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The row and the version of each of `image_ids` that is there."""
        found = self._fetch_ids('image_id, "row", version', image_ids)
        return {image_id: (row, version) for image_id, row, version in found}

    def after(self, image_id: str, limit: int) -> list[CatalogEntry]:
        """At most `limit` entries in the order of their ids, from the first greater than `image_id`."""
        statement = f"SELECT {_COLUMNS} FROM images WHERE image_id > ? ORDER BY image_id LIMIT ?"
        return [_from_columns(columns) for columns in self._fetch(statement, (image_id, limit))]

    def row_of_digest(self, digest: str) -> int | None:
        """The row of an image with these bytes, the first of several; None when there is none."""
        found = self._fetch('SELECT min("row") FROM images WHERE digest = ?', (digest,))
        return found[0][0] if digest else None

    def digests_among(self, digests: Collection[str]) -> set[str]:
        """Those of `digests` that images here have."""
        return {digest for (digest,) in self._fetch_where("digest", "digest", list(digests))}

    def repeated_digests(self) -> Iterator[tuple[str, list[tuple[int, str]]]]:
        """Digests that several images have, with their rows and ids; read in pieces."""
        after = ""
        repeated = (
            "SELECT digest FROM images WHERE digest > ? GROUP BY digest HAVING count(*) > 1 ORDER BY digest LIMIT ?"
        )
        while digests := self._fetch(repeated, (after, _AT_ONCE)):
            for (after,) in digests:  # noqa: B020 - the last is where the next piece begins
                yield after, self._fetch('SELECT "row", image_id FROM images WHERE digest = ? ORDER BY "row"', (after,))

    def count_of_sources(self) -> int:
        """How many images batch jobs brought."""
        return self._fetch("SELECT count(*) FROM images WHERE origin != ?", (ONLINE,))[0][0]

    def deletions(self) -> list[tuple[str, int]]:
        """Ids and versions of images that were deleted online, which no build brings back."""
        return self._fetch("SELECT image_id, version FROM deletions ORDER BY image_id")

    def close(self) -> None:
        """Release the file; whoever reads at this moment is waited for, and who comes later is refused."""
        with self._lock:  # a connection that is closed under a statement takes the process with it
            self._connection.close()

    def _fetch_rows(self, columns: str, rows: Sequence[int]) -> list[tuple]:
        wanted = orjson.dumps([int(row) for row in rows]).decode()
        return self._fetch(f'SELECT {columns} FROM images WHERE "row" IN (SELECT value FROM json_each(?))', (wanted,))

    def _fetch_ids(self, columns: str, image_ids: Sequence[str]) -> Iterator[tuple]:
        return self._fetch_where("image_id", columns, image_ids)

    def _fetch_where(self, key: str, columns: str, wanted: Sequence[str]) -> Iterator[tuple]:
        """`columns` of the images whose `key` is one of `wanted`."""
        for start in range(0, len(wanted), _AT_ONCE):
            texts = tuple(wanted[start : start + _AT_ONCE])  # as parameters: SQLite's JSON ends a text at a zero byte
            marks = ",".join("?" * len(texts))
            yield from self._fetch(f"SELECT {columns} FROM images WHERE {key} IN ({marks})", texts)

    def _fetch(self, statement: str, values: tuple = ()) -> list[tuple]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()


class _RecentEntries:
    """Entries read of late, as many as `_KEPT_BYTES` take; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newer, self._older = _Half(), _Half()

    def by_row(self, row: int) -> CatalogEntry | None:
        return self._newer.rows.get(row) or self._older.rows.get(row)

    def by_id(self, image_id: str) -> CatalogEntry | None:
        return self._newer.ids.get(image_id) or self._older.ids.get(image_id)

    def add(self, entry: CatalogEntry, letters: int) -> None:
        with self._lock:
            half = self._newer
            half.rows[entry.row] = half.ids[entry.image_id] = entry
            half.size += _ENTRY_BYTES + letters
            if half.size > _KEPT_BYTES // 2:
                self._newer, self._older = _Half(), half


class _Half:
    def __init__(self) -> None:
        self.rows: dict[int, CatalogEntry] = {}
        self.ids: dict[str, CatalogEntry] = {}
        self.size = 0


def entry_columns(entry: StoredImage) -> tuple:
    """What is stored of an image: its fields in order, captions and attributes as JSON, and its origin."""
    captions, attributes = captions_json(entry.captions), attributes_json(entry.attributes)
    origin = entry.origin if isinstance(entry, CatalogEntry) else ONLINE
    return entry.image_id, entry.digest, entry.location, captions, attributes, entry.version, origin


def captions_json(captions: Sequence[str]) -> str:
    """Captions as they are stored."""
    return orjson.dumps(list(captions)).decode()


def attributes_json(attributes: Mapping[str, AttributeValue]) -> str:
    """Attributes as they are stored."""
    held = attributes if isinstance(attributes, dict) else dict(attributes)
    options = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATETIME
    return orjson.dumps(held, default=attribute_to_json, option=options).decode()


def attributes_of_json(text: str) -> dict[str, AttributeValue]:
    """The attributes that `attributes_json` stored."""
    return attributes_from_json(orjson.loads(text))


def captions_of_json(text: str) -> tuple[str, ...]:
    """The captions that `captions_json` stored."""
    return tuple(orjson.loads(text))


def _from_columns(columns: tuple) -> CatalogEntry:
    row, image_id, digest, location, captions, attributes, version, origin = columns
    held = attributes_of_json(attributes)
    return CatalogEntry(image_id, digest, location, captions_of_json(captions), held, version, row, origin)
