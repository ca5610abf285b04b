"""The durable log of online changes, one SQLite file: numbered rows, each with a checksum, and idempotency keys; knows
no view and no search.

A transaction is on the disk when `append` returns (WAL, synchronous=FULL); its rows are numbered without a gap, so that
a lost one is noticed. Beside it, `changes.mark` holds the last number that was acknowledged, written after the fact and
never waited for: a log that ends before it has lost something.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from data.durable import sync_path
from data.errors import SnapshotError
from serving.acknowledged_mark import MARK, AcknowledgedMark
from serving.log_file import LOG, MIGRATIONS, SETTINGS, damaged, migrate, named, naming_log
from serving.logged_change import KeptKey, LoggedChange, checksum
from serving.vector_store import BATCH_VERSION

KEPT_KEYS, KEPT_KEY_SECONDS = 1_000_000, 7 * 24 * 3600
_FORGET_EVERY = 10_000  # changes between two looks for keys to forget

_ROW = "(?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ROWS_AT_ONCE = 32

_COLUMNS = "sequence, image_id, vector, digest, location, captions, attributes, model"


class ChangeLog:
    """The open log of one index. One process writes; others read along. Not for several threads at once.

    Example: `ChangeLog.open(index, writable=True).append([LoggedChange(2, "a.jpg", None)])`.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, writable: bool, appending: bool) -> None:
        self.path, self.writable = path, writable
        self._connection = connection
        self._mark = AcknowledgedMark(path.with_name(MARK), writable=appending)
        self._unfinished = False  # whether a transaction failed and may still stand in the WAL file
        self._forgotten_at = self.last = self._last_stored()

    @classmethod
    def create(cls, index: Path, last: int = BATCH_VERSION) -> None:
        """Make an empty log whose next change is numbered `last + 1`; does nothing where there is one."""
        path = index / LOG
        if path.exists():
            return
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        with naming_log(part), closing(sqlite3.connect(part, isolation_level=None)) as connection:
            migrate(connection, 0)
            connection.execute("INSERT INTO state VALUES ('pruned', ?)", (last,))
        sync_path(part)
        (index / MARK).unlink(missing_ok=True)
        part.rename(path)
        sync_path(index)

    @classmethod
    def open(cls, index: Path, *, writable: bool, appending: bool | None = None) -> ChangeLog:
        """Open the log of `index`; `SnapshotError` when it is absent, damaged, or of a later layout.

        Who publishes may write but is not `appending`, which by default every writer is. Every row's checksum is
        verified when it is read; `check` reads them all.
        """
        path = index / LOG
        if not path.is_file():
            raise damaged(path, f"nothing at {path}")
        mode = "mode=rw" if writable else "mode=ro"
        if not writable and not os.access(index, os.W_OK) and not path.with_name(f"{LOG}-wal").exists():
            mode += "&immutable=1"  # SQLite could not make the file that readers share; nobody can be writing
        with naming_log(path), contextlib.ExitStack() as stack:
            connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?{mode}", uri=True, isolation_level=None, check_same_thread=False,
                timeout=30.0,
            )  # fmt: skip
            stack.callback(connection.close)
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if not version:
                raise damaged(path, "a file without any layout")
            if version > len(MIGRATIONS):
                raise SnapshotError(
                    f"a log of layout {len(MIGRATIONS)} or earlier in {path}",
                    f"layout {version}",
                    "use the version that wrote it",
                )
            if writable:
                connection.executescript(SETTINGS)
                migrate(connection, version)
            log = cls(path, connection, writable, writable if appending is None else appending)
            stack.callback(log.close)
            log.check_end()
            stack.pop_all()
        return log

    def check_end(self) -> None:
        """`SnapshotError` when changes that were acknowledged are not there any more; forgets those that were refused.

        A transaction whose flush failed may stand in the file complete, and would come alive when the process died
        before it could empty the file.
        """
        mark = None
        while mark != (mark := self._mark.read()):  # a writer may be at work: both are of one moment
            self.last = self._last_stored()
        acknowledged, refused = mark
        if acknowledged > self.last:
            raise damaged(self.path, f"{self.last:,} changes where {acknowledged:,} were acknowledged")
        if refused and acknowledged < self.last:
            self.last = acknowledged
            if self._mark.writable:
                with self._transaction():
                    self._connection.execute("DELETE FROM changes WHERE sequence > ?", (acknowledged,))
                    self._connection.execute("DELETE FROM keys WHERE sequence > ?", (acknowledged,))
                self._write_mark()

    def model_number(self, fingerprint: str) -> int:
        """The number that stands for a model in the log; it gets one at its first change."""
        with naming_log(self.path):
            if self.writable:
                self._connection.execute("INSERT OR IGNORE INTO models (fingerprint) VALUES (?)", (fingerprint,))
            found = self._connection.execute(
                "SELECT model FROM models WHERE fingerprint = ?", (fingerprint,)
            ).fetchone()
        return found[0] if found else -1

    def fingerprint_of(self, model: int) -> str:
        """The fingerprint that a number stands for."""
        with naming_log(self.path):
            found = self._connection.execute("SELECT fingerprint FROM models WHERE model = ?", (model,)).fetchone()
        return found[0] if found else ""

    def append(
        self,
        changes: Sequence[LoggedChange],
        keys: Sequence[KeptKey] = (),
        allowed: Callable[[], None] = lambda: None,
    ) -> None:
        """Make `changes`, numbered on from `last`, and `keys` durable: all when this returns, none when it raises.

        `allowed` is called while other writers are held back; what it raises is raised. `OSError` for a disk that is
        full or fails; the log stays readable, and later calls try again.
        """
        now = int(time.time())
        with self._transaction():
            allowed()
            self._insert(changes)
            self._connection.executemany(
                "INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?)",
                [(key.key, key.request, key.sequence, key.changes, now) for key in keys],
            )
        self.last = changes[-1].sequence
        self._write_mark()
        if self.last - self._forgotten_at >= _FORGET_EVERY:
            self._forget_keys(now)

    def _insert(self, changes: Sequence[LoggedChange]) -> None:
        """Add rows to `changes`, many in a statement: with each, SQLite lets other threads take the interpreter."""
        for start in range(0, len(changes), _ROWS_AT_ONCE):
            part = changes[start : start + _ROWS_AT_ONCE]
            values: list[Any] = []
            for change in part:
                values += change
                values.append(checksum(change))
            self._connection.execute("INSERT INTO changes VALUES " + ", ".join([_ROW] * len(part)), values)

    def kept_key(self, key: str) -> KeptKey | None:
        """What an idempotency key was used for, if it is still known."""
        with naming_log(self.path):
            statement = "SELECT key, request, sequence, changes FROM keys WHERE key = ?"
            found = self._connection.execute(statement, (key,)).fetchone()
        return KeptKey(*found) if found else None

    def after(self, sequence: int) -> Iterator[LoggedChange]:
        """The changes after number `sequence`, in order, each found as it was written; `SnapshotError` for damage."""
        expected = sequence + 1
        with naming_log(self.path):
            pruned = self.pruned
            if sequence < pruned:
                raise damaged(self.path, f"changes from {pruned + 1:,} on where those from {expected:,} are needed")
            acknowledged, refused = self._mark.read()
            statement = f"SELECT {_COLUMNS}, checksum FROM changes WHERE sequence > ? ORDER BY sequence"
            for *columns, stored in self._connection.execute(statement, (sequence,)):
                change = LoggedChange(*columns)
                if refused and change.sequence > acknowledged:
                    return
                if change.sequence != expected or checksum(change) != stored:
                    raise damaged(self.path, f"change {expected:,} missing or altered")
                expected += 1
                yield change

    def after_for(self, sequence: int, model: int, *, or_as_it_is: bool = False) -> Iterator[LoggedChange]:
        """As `after`, with the vectors of `model`; a change whose image was given up for it reads as a deletion.

        A change that has no vector of this model is a `SnapshotError`, unless it is to come `or_as_it_is`.
        """
        with naming_log(self.path):
            found = self._connection.execute(
                "SELECT sequence, vector, checksum FROM translations WHERE sequence > ? AND model = ?",
                (sequence, model),
            )
            translated = {number: (vector, stored) for number, vector, stored in found}
        for change in self.after(sequence):
            missing = change.sequence not in translated
            if change.model == model or change.vector is None or (missing and or_as_it_is):
                yield change
                continue
            if missing:
                raise damaged(self.path, f"change {change.sequence:,} with another model's vector alone")
            vector, stored = translated[change.sequence]
            own = change._replace(vector=vector, model=model)
            if checksum(own) != stored:
                raise damaged(self.path, f"the vector of change {change.sequence:,} altered")
            yield own

    def translate(self, changes: Sequence[LoggedChange]) -> None:
        """Keep the vectors of `changes` by another model, durably; None as a vector gives the image up for it."""
        rows = [(change.sequence, change.model, change.vector, checksum(change)) for change in changes]
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO translations VALUES (?, ?, ?, ?)", rows)

    @property
    def pruned(self) -> int:
        """The number up to which changes are no longer kept."""
        found = self._connection.execute("SELECT value FROM state WHERE name = 'pruned'").fetchone()
        if found is None:
            raise damaged(self.path, "a log without its first number")
        return found[0]

    @property
    def data_version(self) -> int:
        """A number that is another one when another process has written since it was last asked for; cheap."""
        try:  # in the place of `naming_log`, for every search asks
            return self._connection.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise named(error, self.path) from error

    def prune(self, sequence: int) -> None:
        """Forget the changes up to number `sequence`, which are in every snapshot that is kept."""
        if sequence <= self.pruned:
            return
        with self._transaction():
            self._connection.execute("DELETE FROM changes WHERE sequence <= ?", (sequence,))
            self._connection.execute("DELETE FROM translations WHERE sequence <= ?", (sequence,))
            self._connection.execute("UPDATE state SET value = max(value, ?) WHERE name = 'pruned'", (sequence,))

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold back every writer, of this process or another, until the block ends; gives the last number there is."""
        with naming_log(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._last_stored()
            finally:
                self._connection.execute("ROLLBACK")

    def check(self) -> int:
        """Read every page and every row; return how many changes are kept, or raise `SnapshotError`."""
        with naming_log(self.path):
            (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise damaged(self.path, verdict)
            return sum(1 for _ in self.after(self.pruned))

    def back_up(self, path: Path) -> None:
        """Write a copy of the log as it is now, complete and on the disk when this returns, while others go on."""
        with naming_log(path), closing(sqlite3.connect(path)) as copy:
            self._connection.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
        sync_path(path)

    def close(self) -> None:
        """Release the file."""
        self._connection.close()
        self._mark.close()

    def _last_stored(self) -> int:
        (last,) = self._connection.execute("SELECT max(sequence) FROM changes").fetchone()
        return self.pruned if last is None else last

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, and nothing after an error, also when the process is killed right after it."""
        with naming_log(self.path):
            self._clear_failed()
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._unfinished = True
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                try:
                    self._clear_failed()
                except (sqlite3.Error, OSError):
                    self._write_mark(refused=True)
                raise

    def _clear_failed(self) -> None:
        """Empty the WAL file after a failure: a transaction whose flush failed may stand in it complete."""
        if self._unfinished:
            (busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._unfinished = bool(busy)
            self._write_mark(refused=self._unfinished)

    def _write_mark(self, refused: bool = False) -> None:
        self._mark.write(self.last, refused)

    def _forget_keys(self, now: int) -> None:
        self._forgotten_at = self.last
        with contextlib.suppress(OSError), self._transaction():
            self._connection.execute("DELETE FROM keys WHERE time < ?", (now - KEPT_KEY_SECONDS,))
            oldest = "SELECT sequence FROM keys ORDER BY sequence DESC LIMIT 1 OFFSET ?"
            self._connection.execute(f"DELETE FROM keys WHERE sequence <= ({oldest})", (KEPT_KEYS,))
