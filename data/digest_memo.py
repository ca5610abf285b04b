"""Remembers the digests of files, so that one that did not change is not read again; knows no image.

A file counts as the same while its path, size, inode and times are. Its change time moves with every write, and no
program can set it back. A file that changed within the last two seconds is not remembered, since a further change could
fall into the same tick of the file system's clock ("racy git", https://git-scm.com/docs/racy-git). The memo is a cache:
whatever is wrong with it costs time only.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.durable import cache_directory

SETTLED_SECONDS = 2.0  # the coarsest clock of a common file system, FAT's


@dataclass(frozen=True)
class FileStamp:
    """What a file looked like from outside before it was read."""

    path: str
    size: int
    times_ns: tuple[int, int]  # of modification, of change
    place: tuple[int, int]  # device, inode

    @classmethod
    def of(cls, path: Path) -> FileStamp | None:
        """The stamp of a file as it is; None for one that is not there."""
        try:
            status = path.stat()
        except OSError:
            return None
        times = (status.st_mtime_ns, status.st_ctime_ns)
        return cls(str(path.absolute()), status.st_size, times, (status.st_dev, status.st_ino))

    def key(self) -> bytes:
        """Names the stamp in a store."""
        return hashlib.sha256(repr(self).encode("utf-8", "surrogateescape")).digest()[:16]

    def settled(self) -> bool:
        """Whether the file had been left alone for a while."""
        return time.time_ns() - max(self.times_ns) > SETTLED_SECONDS * 1e9


class DigestMemo:
    """Digests by the stamp of their file, in one SQLite file that processes share; a context manager."""

    def __enter__(self) -> DigestMemo:
        self._database = _database(cache_directory("digests") / "files.sqlite")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._database is not None:
            self._database.close()

    def recall(self, stamps: Sequence[FileStamp | None]) -> list[str | None]:
        """The digest of each file that is known and did not change."""

        def read(database: sqlite3.Connection) -> list[str | None]:
            found = [
                stamp and database.execute("SELECT digest FROM known WHERE stamp = ?", (stamp.key(),)).fetchone()
                for stamp in stamps
            ]
            return [row[0].hex() if row else None for row in found]

        return self._try(read) or [None] * len(stamps)

    def note(self, stamps: Sequence[FileStamp | None], digests: Sequence[str | None]) -> None:
        """Keep digests of files that bore these stamps before they were read, and still do."""
        rows = [
            (stamp.key(), bytes.fromhex(digest))
            for stamp, digest in zip(stamps, digests, strict=True)
            if stamp and digest and len(digest) == 64 and stamp.settled() and FileStamp.of(Path(stamp.path)) == stamp
        ]
        if rows:
            self._try(lambda database: database.executemany("INSERT OR REPLACE INTO known VALUES (?, ?)", rows))

    def _try(self, work: Callable[[sqlite3.Connection], list[str | None] | sqlite3.Cursor]) -> list[str | None]:
        """What `work` gives; nothing, from then on too, once the database fails."""
        if self._database is None:
            return []
        try:
            with self._database:
                result = work(self._database)
                return result if isinstance(result, list) else []
        except sqlite3.Error:
            self._database.close()
            self._database = None
            return []


def _database(path: Path, again: bool = True) -> sqlite3.Connection | None:
    """The open store, made where there is none or a damaged one; None where it cannot be used."""
    try:
        database = sqlite3.connect(path, timeout=5)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("CREATE TABLE IF NOT EXISTS known (stamp BLOB PRIMARY KEY, digest BLOB) WITHOUT ROWID")
    except sqlite3.OperationalError:  # locked, read-only, a full disk
        return None
    except sqlite3.DatabaseError:  # no database
        path.unlink(missing_ok=True)
        return _database(path, again=False) if again else None
    return database
