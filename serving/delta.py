"""The changes above a snapshot, in memory, so that a search sees them before they are folded into the next snapshot;
knows no file and no lock."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from serving.catalog import attributes_of_json
from serving.exact_index import as_float32
from serving.growing_columns import GrowingColumns
from serving.logged_change import LoggedChange

if TYPE_CHECKING:
    from serving.filters import Filter
    from serving.snapshot import Snapshot

_DELETED = -1

# What a change left of an image: its sequence number, the image's slot or _DELETED, and what was before. Tuples of
# numbers cost the garbage collector nothing.
_Past = tuple[int, int, "_Past | None"]

_AT_ONCE = 256  # vectors, in memory that is used again
_NEVER = np.iinfo(np.int64).max


class Delta:
    """What changed since a snapshot: a slot for each upsert, in sequence, and the base rows that are not current.

    One thread applies changes; any number reads at a sequence number it was given: slots are only added, a slot's end
    is written once, and `base_alive` is replaced, never altered. So a state stays readable while others follow.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        manifest = snapshot.manifest
        self.snapshot = snapshot
        self.sequence = manifest.sequence
        self.live = manifest.image_count
        self.base_alive: np.ndarray | None = None  # (N,) bool; None: every row
        self.count = 0
        # float32 for speed, the values those of float16 as they are in the log and in snapshots
        self.vectors = np.empty((64, manifest.width), np.float32)
        self.ended = np.full(64, _NEVER, np.int64)  # the change by which a slot's image was replaced or deleted
        self.changes: list[LoggedChange] = []  # by slot, without their vectors
        self._columns = GrowingColumns()  # attributes by slot, as far as a filter has asked for them
        self._columns_lock = threading.Lock()
        self.history: dict[str, _Past] = {}  # by image_id

    def base_rows(self, image_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Row and version of each image that the snapshot holds and no change has touched yet."""
        return self.snapshot.catalog.rows_of([image_id for image_id in image_ids if image_id not in self.history])

    def version(self, image_id: str, base_rows: Mapping[str, tuple[int, int]]) -> int:
        """The current version of an image, 0 when there is none; `base_rows` covers it."""
        if image_id in self.history:
            sequence, slot, _ = self.history[image_id]
            return 0 if slot == _DELETED else sequence
        return base_rows[image_id][1] if image_id in base_rows else 0

    def apply(self, changes: Sequence[LoggedChange], base_rows: Mapping[str, tuple[int, int]] | None = None) -> None:
        """Follow changes that are in the log, numbered on from `sequence`."""
        if not changes:
            return
        if base_rows is None:
            base_rows = self.base_rows(list({change.image_id for change in changes}))
        self._add_vectors([change.vector for change in changes if change.vector is not None])
        replaced = []
        for sequence, image_id, vector, digest, location, captions, attributes, model in changes:
            before = self.history.get(image_id)
            if before is not None:
                if before[1] != _DELETED:
                    self.ended[before[1]] = sequence
                    self.live -= 1
            elif image_id in base_rows:
                replaced.append(base_rows[image_id][0])
                self.live -= 1
            if vector is None:
                self.history[image_id] = (sequence, _DELETED, before)
                continue
            self.history[image_id] = (sequence, self.count, before)
            self.changes.append(LoggedChange(sequence, image_id, None, digest, location, captions, attributes, model))
            self.count += 1
            self.live += 1
        if replaced:
            alive = (
                np.ones(self.snapshot.manifest.image_count, bool) if self.base_alive is None else self.base_alive.copy()
            )
            alive[replaced] = False
            self.base_alive = alive
        self.sequence = changes[-1].sequence

    def slot(self, image_id: str, sequence: int) -> int | None:
        """Where an image stands after change `sequence`: its slot, -1 when deleted, None when no change touched it."""
        past = self.history.get(image_id)
        while past is not None and past[0] > sequence:
            past = past[2]
        return None if past is None else past[1]

    def slots_matching(self, where: Filter, count: int) -> np.ndarray:
        """(count,) bool: which of the first `count` slots `where` matches."""
        with self._columns_lock:
            for change in self.changes[len(self._columns) : count]:
                self._columns.append(change.image_id, attributes_of_json(change.attributes))
        return self._columns.rows_matching(where, count)

    def _add_vectors(self, vectors: Sequence[bytes]) -> None:
        """Write the vectors of the next slots; readers of earlier ones may hold the arrays that are outgrown."""
        end = self.count + len(vectors)
        if end > len(self.vectors):
            capacity = max(end, 4 * len(self.vectors))  # what nothing was written to takes no memory, copying time
            grown = np.empty((capacity, self.vectors.shape[1]), np.float32)
            grown[: self.count] = self.vectors[: self.count]
            ended = np.full(capacity, _NEVER, np.int64)
            ended[: self.count] = self.ended[: self.count]
            self.vectors, self.ended = grown, ended
        for start in range(0, len(vectors), _AT_ONCE):
            part = vectors[start : start + _AT_ONCE]
            added = as_float32(np.frombuffer(b"".join(part), np.float16).reshape(len(part), -1))
            self.vectors[self.count + start : self.count + start + len(part)] = added
