"""The store in one directory: a snapshot that searches map into memory, and a log of changes that are acknowledged when
they are on the disk; knows no model and no network.

Example: `store = EmbeddedStore.open(Path("index"))`, `store.apply([Delete("a.jpg")])`,
`with store.view() as view: view.search(queries, k=10)`.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

from data.durable import only_process
from data.errors import UserError
from serving.change_log import ChangeLog
from serving.change_numbering import ChangeNumbering
from serving.change_request import ChangeRequest, encode_changes
from serving.compaction import BackgroundCompaction
from serving.delta import Delta
from serving.group_commit import GroupCommitter
from serving.held_state import HeldState
from serving.log_file import damaged
from serving.snapshot import CURRENT, SNAPSHOTS, Snapshot, current_name, open_snapshot, read_manifest, snapshot_names
from serving.store_view import EmbeddedView
from serving.uploaded_images import keep_image
from serving.vector_store import Change, Receipt, StoreReadOnly, StoreSuperseded

WRITER = "WRITER"  # whoever holds the lock of this file may append to the log

# Seconds that an event loop may wait for another thread that looks for changes; one that reads them takes longer.
_MOMENT = 0.001

# Changes read, or forgotten, at once: neither memory nor a commit waits for all of them.
_AT_ONCE = 5_000

_log = logging.getLogger(__name__)


class EmbeddedStore:
    """See `vector_store.VectorStore`. One process writes; any number read, and see its changes.

    When another process publishes a snapshot, the store loads it beside the one in use and goes over to it, unless it
    is another model's: then `superseded` names it, searches go on as before, and changes are refused.
    """

    def __init__(self, index: Path, snapshot: Snapshot, log: ChangeLog, seen: tuple[int, int] | None) -> None:
        """Use `open`."""
        self.index = index
        self._current = index / CURRENT  # made once: every search asks about it
        self.superseded: str | None = None
        self.fingerprint, self.dimension = snapshot.manifest.model_fingerprint, snapshot.manifest.dimension
        self.corrected = snapshot.manifest.corrected
        self._log, self._held = log, ExitStack()
        self._lock = threading.RLock()  # held while the log or the delta changes; no search waits for it
        self._model = log.model_number(self.fingerprint)
        self._data_version = log.data_version
        self._delta = self._above(snapshot)
        self._state = HeldState(snapshot, EmbeddedView(self._delta))
        self._seen = self._allowed_at = seen
        self._loading: threading.Thread | None = None
        self._compaction: BackgroundCompaction | None = None
        self._compact_after: int | None = None
        self._committer = GroupCommitter(self._commit, weigh=_changes) if log.writable else None
        self._handed_over = self._closed = False

    @classmethod
    def open(
        cls,
        index: Path,
        fingerprint: str | None = None,
        *,
        bundle: str = "BUNDLE",
        writable: bool = True,
        compact_after: int | None = None,
    ) -> EmbeddedStore:
        """Open the index at `index`, every digest and every change checked.

        `SnapshotError` when a file is missing or altered; `FingerprintMismatch` when it is not that of the model with
        `fingerprint`, with the command that builds it again with `bundle`; `StoreReadOnly` when another process writes.
        With `compact_after`, that many changes above the snapshot start a compaction in a process of its own.
        """
        with ExitStack() as held, ExitStack() as opened:
            if writable and index.is_dir():
                (index / WRITER).touch()
                busy = StoreReadOnly(
                    f"no other process that changes {index}",
                    "one that is running",
                    "stop it, or send the changes to it",
                )
                held.enter_context(only_process(index / WRITER, busy))
            seen = _identity(index / CURRENT)  # before the snapshot: what is published meanwhile is followed
            snapshot = open_snapshot(index, fingerprint, bundle)
            opened.callback(snapshot.close)
            log = ChangeLog.open(index, writable=writable)
            opened.callback(log.close)
            store = cls(index, snapshot, log, seen)
            opened.pop_all()
            store._held = held.pop_all()
            store._compact_after = compact_after
            if writable and compact_after:
                store._compaction = BackgroundCompaction(index, compact_after)
        store._prune()
        return store

    def apply(self, changes: Sequence[Change], key: str = "") -> Receipt:
        """See `VectorStore.apply`; also `QueryError` for a change that cannot be kept. All who wait share one flush."""
        return self.submit(changes, key).result()

    def submit(self, changes: Sequence[Change], key: str = "") -> Future[Receipt]:
        """See `VectorStore.submit`; `QueryError` and `StoreReadOnly` at once where that is known."""
        committer = self._committer
        if committer is None and not self._handed_over:
            raise StoreReadOnly("a store that was opened to write", "one to read", "open it with writable=True")
        request = encode_changes(changes, key, self.dimension, self.corrected)
        try:
            if committer is not None:
                return committer.submit(request)
        except RuntimeError:  # it closed meanwhile
            pass
        raise StoreSuperseded("the store that writes now", "the one before it", "send the change there")

    @property
    def writable(self) -> bool:
        """Whether it was opened to be changed; also of one that handed this over to another."""
        return self._committer is not None or self._handed_over

    def take_over(self, former: EmbeddedStore) -> None:
        """Write from now on in the place of `former`, a store of the same index in this process.

        What `former` was given is committed first; later it refuses changes with `StoreSuperseded`. When this cannot
        write, `former` goes on, and the error is raised.
        """
        held, compact_after = former._stop_writing()
        try:
            self._begin_writing(held, compact_after)
        except BaseException:
            former._begin_writing(held, compact_after)
            raise

    @property
    def at_hand(self) -> bool:
        """See `VectorStore.at_hand`."""
        return True

    @property
    def known_revision(self) -> str | None:
        """See `VectorStore.known_revision`."""
        if _identity(self._current) != self._seen:
            return None
        if not self._log.writable:
            if not self._lock.acquire(timeout=_MOMENT):
                return None
            try:
                if self._log.data_version != self._data_version:
                    return None
            finally:
                self._lock.release()
        return self._state.view.revision

    def keep_image(self, data: bytes) -> str:
        """See `VectorStore.keep_image`."""
        return keep_image(self.index, data)

    def view(self) -> AbstractContextManager[EmbeddedView]:
        """See `VectorStore.view`."""
        return _Reader(self)

    def enter(self) -> HeldState:
        """The state now, which stays open until it is left."""
        self._follow()
        while not (state := self._state).enter():  # it was replaced between the two steps
            if self._closed:
                raise RuntimeError("closed")
        return state

    def refresh(self) -> None:
        """Go over to the live snapshot now, if another is in use; `SnapshotError` when it is damaged."""
        while (loading := self._loading) is not None:
            loading.join()
        self._go_over()

    def _stop_writing(self) -> tuple[ExitStack, int | None]:
        """Commit what waits and give up the writer's lock, which is returned."""
        if self._committer is None:
            raise StoreReadOnly("a store that writes", "one that reads", "open it with writable=True")
        committer, self._committer, self._handed_over = self._committer, None, True
        committer.close()
        if self._compaction is not None:
            self._compaction.close()
            self._compaction = None
        return self._held.pop_all(), self._compact_after

    def _begin_writing(self, held: ExitStack, compact_after: int | None) -> None:
        """Write from now on, with the writer's lock."""
        with self._lock:
            log = ChangeLog.open(self.index, writable=True)
            self._log.close()
            self._log = log
            self._model = log.model_number(self.fingerprint)
            self._catch_up(self._delta)
            self._state.view = EmbeddedView(self._delta)
        self._held, self._compact_after = held, compact_after
        if compact_after:
            self._compaction = BackgroundCompaction(self.index, compact_after)
        self._handed_over = False
        self._committer = GroupCommitter(self._commit, weigh=_changes)

    def close(self) -> None:
        """See `VectorStore.close`. Views that are held stay readable."""
        if self._committer is not None:
            self._committer.close()
        if self._compaction is not None:
            self._compaction.close()
        while (loading := self._loading) is not None:
            loading.join()
        with self._lock:
            self._closed = True
            self._log.close()
            self._state.retire()
            self._held.close()

    def _commit(self, requests: Sequence[ChangeRequest]) -> list[Receipt | Exception]:
        """Number, log and show the changes of all `requests`, one after the other; refusals concern one request."""
        with self._lock:
            ids = {row.image_id for request in requests for row in request.rows}
            numbering = ChangeNumbering(self._log, self._delta, self._model, self._delta.base_rows(list(ids)))
            results = [numbering.number(request) for request in requests]
            if numbering.rows:
                self._log.append(numbering.rows, list(numbering.keys.values()), self._check_model)
                self._delta.apply(numbering.rows, numbering.base_rows)
                self._state.view = EmbeddedView(self._delta)
        if self._compaction is not None:
            self._follow()
            self._compaction.look(self._state.view.changes)
        return results

    def _check_model(self) -> None:
        """Refuse to append when another model's snapshot is live; publishing one holds writers back (`publish`)."""
        identity = _identity(self._current)
        if identity == self._allowed_at:
            return
        name = current_name(self.index)
        if name and read_manifest(self.index / SNAPSHOTS / name)[0].model_fingerprint != self.fingerprint:
            raise StoreSuperseded(
                f"an index of model {self.fingerprint}", f"snapshot {name} of another one", "open the index again"
            )
        self._allowed_at = identity

    def _follow(self) -> None:
        """Notice what other processes have published or appended."""
        if self._loading is None and _identity(self._current) != self._seen:
            with self._lock:
                if self._loading is None:
                    self._loading = threading.Thread(target=self._load, name="snapshot", daemon=True)
                    self._loading.start()
        if not self._log.writable:
            with self._lock:
                version = self._log.data_version
                if version != self._data_version:
                    self._catch_up(self._delta)
                    self._state.view = EmbeddedView(self._delta)
                    self._data_version = version

    def _load(self) -> None:
        try:
            self._go_over()
        except (UserError, OSError) as error:
            _log.warning(
                "the live snapshot of %s cannot be used; searches go on with the former: %s", self.index, error
            )
        finally:
            self._loading = None

    def _go_over(self) -> None:
        self._seen = _identity(self._current)
        name = current_name(self.index)
        if name is None or name == self._state.view.snapshot:
            self.superseded = None
            return
        if read_manifest(self.index / SNAPSHOTS / name)[0].model_fingerprint != self.fingerprint:
            self.superseded = name
            return
        snapshot = open_snapshot(self.index, self.fingerprint, name=name)
        try:
            with self._lock:
                delta = self._above(snapshot)
                former, self._delta, self._state = self._state, delta, HeldState(snapshot, EmbeddedView(delta))
        except BaseException:
            snapshot.close()
            raise
        former.retire()
        self.superseded = None
        self._prune()

    def _above(self, snapshot: Snapshot) -> Delta:
        """The changes above `snapshot`, read from the log."""
        delta = Delta(snapshot)
        self._catch_up(delta)
        if delta.sequence < self._log.last:
            raise damaged(self._log.path, f"{delta.sequence:,} changes instead of {self._log.last:,}")
        return delta

    def _catch_up(self, delta: Delta) -> None:
        changes = self._log.after_for(delta.sequence, self._model)
        while chunk := list(itertools.islice(changes, _AT_ONCE)):
            delta.apply(chunk)

    def _prune(self) -> None:
        """Forget the changes that are in every snapshot there is."""
        if not self._log.writable:
            return
        with suppress(UserError, OSError):
            manifests = [read_manifest(self.index / SNAPSHOTS / name)[0] for name in snapshot_names(self.index)]
            needed_after = min(manifest.sequence for manifest in manifests)
            for sequence in (*range(self._log.pruned, needed_after, _AT_ONCE), needed_after):
                with self._lock:
                    self._log.prune(sequence)


class _Reader(AbstractContextManager[EmbeddedView]):
    """A `with` block that reads; every search is one, so it is no generator, which costs several times as much."""

    __slots__ = ("_state", "_store")

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store

    def __enter__(self) -> EmbeddedView:
        self._state = self._store.enter()
        return self._state.view

    def __exit__(self, *raised: object) -> None:
        self._state.leave()


def _changes(request: ChangeRequest) -> int:
    return len(request.rows)


def _identity(current: Path) -> tuple[int, int] | None:
    """Tells one CURRENT from the next without reading it: each is a file of its own."""
    try:
        status = current.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
