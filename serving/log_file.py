"""The SQLite file of the log of changes: its layout, how it is written, SQLite's errors as ours; knows no change."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import SnapshotError

LOG = "changes.sqlite"

# Statements that bring a log of one layout to the next; the layout's number is SQLite's user_version. Append only.
MIGRATIONS = (
    """
    CREATE TABLE changes (
        sequence INTEGER PRIMARY KEY,
        image_id TEXT NOT NULL,
        vector BLOB,               -- (D,) float16; NULL for a deletion
        digest TEXT NOT NULL,
        location TEXT NOT NULL,
        captions TEXT NOT NULL,    -- JSON
        attributes TEXT NOT NULL,  -- JSON
        model INTEGER NOT NULL,    -- whose vector it is
        checksum INTEGER NOT NULL  -- CRC-32 of the rest of the row
    ) STRICT;
    CREATE TABLE translations (    -- vectors of the same images by other models
        sequence INTEGER NOT NULL,
        model INTEGER NOT NULL,
        vector BLOB,               -- NULL where the image was given up
        checksum INTEGER NOT NULL,
        PRIMARY KEY (sequence, model)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE models (model INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE keys (
        key TEXT PRIMARY KEY,
        request TEXT NOT NULL,     -- digest of the changes that came with it
        sequence INTEGER NOT NULL, -- of the last of them
        changes INTEGER NOT NULL,  -- how many there were
        time INTEGER NOT NULL      -- seconds since 1970
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX keys_by_sequence ON keys (sequence);
    CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    """,
)

SETTINGS = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA wal_autocheckpoint = 4000;
"""


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring a log of layout `version` to the present one."""
    for number in range(version, len(MIGRATIONS)):
        connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")


@contextmanager
def naming_log(path: Path) -> Iterator[None]:
    """SQLite's errors as `named` gives them."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise named(error, path) from error


def named(error: sqlite3.DatabaseError, path: Path) -> OSError | SnapshotError:
    """An error of SQLite's as `OSError` of the disk or `SnapshotError` of damage."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return damaged(path, f"what SQLite refuses: {error}")
    numbers = {
        sqlite3.SQLITE_FULL: errno.ENOSPC,
        sqlite3.SQLITE_BUSY: errno.EBUSY,
        sqlite3.SQLITE_READONLY: errno.EROFS,
    }
    number = numbers.get(code, errno.EIO)
    return OSError(number, os.strerror(number), f"{path} ({error})")


def damaged(path: Path, received: str) -> SnapshotError:
    """The refusal of a log that is not as it was written."""
    return SnapshotError(
        f"the log of online changes as it was written in {path}",
        received,
        "restore a backup (python -m serving.manage restore); or move the file away and build the index again, which "
        "loses the changes since the last snapshot",
    )
