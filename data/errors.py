"""The few exceptions a caller can act on; knows nothing of where they are raised or shown."""

from __future__ import annotations


class UserError(Exception):
    """A refusal the caller can act on: what was expected, what was received, what to do next.

    The texts are valid Unicode whatever a file or its name holds, so that every report can show them.
    """

    def __init__(self, expected: str, received: str, next_step: str) -> None:
        expected, received, next_step = (
            text.encode("utf-8", "backslashreplace").decode() for text in (expected, received, next_step)
        )
        super().__init__(f"expected {expected}; received {received}; {next_step}")
        self.expected = expected
        self.received = received
        self.next_step = next_step


class SourceError(UserError):
    """A data set is not what its name says: missing, empty, malformed or self-contradictory."""


class ImageError(UserError):
    """One image cannot be used; `reason` is a stable word for reports and status details."""

    def __init__(self, reason: str, expected: str, received: str, next_step: str) -> None:
        super().__init__(expected, received, next_step)
        self.reason = reason


class TrainingError(UserError):
    """A training run cannot start or go on with these settings, data or checkpoints."""


class BundleError(UserError):
    """A bundle is absent, incomplete, altered or of an unknown format."""


class PretrainedError(UserError):
    """A published model cannot be imported: of another kind, incomplete, or with parts that have no place."""


class SnapshotError(UserError):
    """An index is absent, incomplete, altered or of an unknown format."""


class FingerprintMismatch(SnapshotError):
    """An index was built by another model than the bundle that would answer its queries."""


class QueryError(UserError):
    """A query breaks a documented limit; `field` names the part of the request at fault."""

    def __init__(self, field: str, expected: str, received: str, next_step: str) -> None:
        super().__init__(expected, received, next_step)
        self.field = field
