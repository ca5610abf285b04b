"""Gives the changes of one commit their numbers, and refuses those that ask for another version; knows no disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.change_request import ChangeRequest
from serving.logged_change import KeptKey, LoggedChange
from serving.vector_store import KeyReused, Receipt, VersionConflict

if TYPE_CHECKING:
    from serving.change_log import ChangeLog
    from serving.delta import Delta


class ChangeNumbering:
    """Gives the changes of one commit their sequence numbers, checking versions and keys on the way."""

    def __init__(self, log: ChangeLog, delta: Delta, model: int, base_rows: dict[str, tuple[int, int]]) -> None:
        self.base_rows = base_rows
        self.rows: list[LoggedChange] = []
        self.keys: dict[str, KeptKey] = {}
        self._log, self._delta, self._model = log, delta, model
        self._last = delta.sequence
        self._versions: dict[str, int] = {}  # of the images that this commit changes

    def number(self, request: ChangeRequest) -> Receipt | Exception:
        """The receipt of a request, or its refusal, after which nothing of it is in `rows`."""
        if request.key and (kept := self.keys.get(request.key) or self._log.kept_key(request.key)):
            same = kept.request == request.digest
            return _receipt(kept.sequence, kept.changes) if same else KeyReused(request.key)
        versions: dict[str, int] = {}
        rows: list[LoggedChange] = []
        for row, if_version in zip(request.rows, request.if_versions, strict=True):
            if if_version is not None:
                current = versions.get(row.image_id, self._version(row.image_id))
                if current != if_version:
                    return VersionConflict(row.image_id, if_version, current)
            sequence = self._last + len(rows) + 1
            rows.append(LoggedChange(sequence, *row[1:-1], self._model))
            versions[row.image_id] = 0 if row.vector is None else sequence
        self.rows += rows
        self._versions.update(versions)
        self._last += len(rows)
        if request.key:
            self.keys[request.key] = KeptKey(request.key, request.digest, self._last, len(rows))
        return _receipt(self._last, len(rows))

    def _version(self, image_id: str) -> int:
        if image_id in self._versions:
            return self._versions[image_id]
        return self._delta.version(image_id, self.base_rows)


def _receipt(sequence: int, changes: int) -> Receipt:
    return Receipt(sequence, tuple(range(sequence - changes + 1, sequence + 1)))
