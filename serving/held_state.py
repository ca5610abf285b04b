"""A state of the store that is replaced while people read it: it is closed when the last of them has left."""

from __future__ import annotations

import threading

from serving.snapshot import Snapshot
from serving.store_view import EmbeddedView


class HeldState:
    """A view and the snapshot under it, which is closed when it was replaced and the last reader has left."""

    def __init__(self, snapshot: Snapshot, view: EmbeddedView) -> None:
        self.view = view
        self._snapshot = snapshot
        self._readers, self._retired = 0, False
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Keep the snapshot open; False when it was replaced."""
        with self._lock:
            self._readers += not self._retired
            return not self._retired

    def leave(self) -> None:
        """The opposite of `enter`."""
        with self._lock:
            self._readers -= 1
            last = self._retired and not self._readers
        if last:
            self._snapshot.close()

    def retire(self) -> None:
        """No reader enters any more."""
        with self._lock:
            last = not self._retired and not self._readers
            self._retired = True
        if last:
            self._snapshot.close()
