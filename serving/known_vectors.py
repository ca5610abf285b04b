"""The vectors that an index has already, by the digest of the image: what need not be embedded again; knows no file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from serving.change_log import ChangeLog
    from serving.snapshot import Snapshot


class KnownVectors:
    """Looks vectors of one model up in a snapshot and in the changes after it; safe to share between threads.

    The snapshot's are read where they lie on the disk; those of changes, which every server has in memory too, are
    kept. A snapshot of another model knows none. Example: `KnownVectors(snapshot, log, fingerprint, 384)(digest)`.
    """

    def __init__(self, snapshot: Snapshot | None, log: ChangeLog, fingerprint: str, dimension: int) -> None:
        self._dimension = dimension
        same_model = snapshot is not None and snapshot.manifest.model_fingerprint == fingerprint
        self._snapshot = snapshot if same_model else None
        model, start = log.model_number(fingerprint), snapshot.manifest.sequence if snapshot else log.pruned
        changes = log.after_for(start, model, or_as_it_is=True)
        self._changed = {c.digest: c.vector for c in changes if c.vector is not None and c.digest and c.model == model}

    def __call__(self, digest: str) -> np.ndarray | None:
        """The vector (D,) float16 of an image with these bytes; None where there is none."""
        if (vector := self._changed.get(digest)) is not None:
            return np.frombuffer(vector, np.float16)[: self._dimension]
        row = self._snapshot.catalog.row_of_digest(digest) if self._snapshot else None
        return None if row is None or self._snapshot is None else self._snapshot.vectors[row, : self._dimension]
