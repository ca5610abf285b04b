"""Changes as the log takes them: checked, encoded, with the digest by which a repeated request is known; knows no
state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data.attributes import EXPECTED, is_attribute, is_unicode
from data.durable import digest_json
from data.errors import QueryError
from serving.catalog import attributes_json, captions_json
from serving.exact_index import UNIT_TOLERANCE, as_float32
from serving.logged_change import LoggedChange
from serving.vector_store import Change, Upsert

if TYPE_CHECKING:
    from data.pairs import AttributeValue

MAX_ID_CHARACTERS = 1_024
MAX_KEY_CHARACTERS = 256

_AT_ONCE = 256  # vectors checked, in memory that is used again


@dataclass(frozen=True)
class ChangeRequest:
    """One call of `apply`: rows without their numbers, the versions they ask for, and the idempotency key, if any."""

    rows: tuple[LoggedChange, ...]
    if_versions: tuple[int | None, ...]
    key: str = ""
    digest: str = ""


def encode_changes(changes: Sequence[Change], key: str, dimension: int, corrected: bool = False) -> ChangeRequest:
    """Check and encode `changes`, with offsets if images have them.

    `QueryError` names the field of the first that cannot be kept.
    """
    if len(key) > MAX_KEY_CHARACTERS or not is_unicode(key):
        raise QueryError("key", f"at most {MAX_KEY_CHARACTERS} characters", f"{len(key)}", "use a shorter key")
    for change in changes:
        if not 1 <= len(change.image_id) <= MAX_ID_CHARACTERS or not is_unicode(change.image_id):
            expected = f"an id of 1 to {MAX_ID_CHARACTERS:,} characters of valid Unicode"
            raise QueryError("image_id", expected, ascii(change.image_id)[:80], "use another id")
    upserts = [change for change in changes if isinstance(change, Upsert)]
    vectors = iter(_encode_vectors(upserts, dimension, corrected))
    rows = tuple(
        _encode(change, next(vectors)) if isinstance(change, Upsert) else LoggedChange(0, change.image_id, None)
        for change in changes
    )
    if_versions = tuple(change.if_version for change in changes)
    return ChangeRequest(rows, if_versions, key, _digest(rows, if_versions) if key else "")


def _encode_vectors(upserts: Sequence[Upsert], dimension: int, corrected: bool) -> list[bytes]:
    """The vectors of `upserts` as they are stored."""
    for upsert in upserts:
        if np.shape(upsert.vector) != (dimension,):
            received = str(np.shape(upsert.vector))
            raise QueryError("vector", f"{dimension} components", received, "use an embedding of the index's model")
        if not abs(upsert.offset) <= 1:  # NaN too
            expected, received = "from -1 to 1", f"{upsert.offset}"
            raise QueryError("offset", expected, received, "take it from the model's hubness correction")
    parts = [upserts[start : start + _AT_ONCE] for start in range(0, len(upserts), _AT_ONCE)]
    return [vector for part in parts for vector in _stored_vectors(part, corrected)]


def _stored_vectors(upserts: Sequence[Upsert], corrected: bool) -> Iterator[bytes]:
    """The vectors of some upserts, and offsets if images have them."""
    stored = np.array([upsert.vector for upsert in upserts]).astype(np.float16)
    lengths = np.linalg.norm(as_float32(stored), axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < UNIT_TOLERANCE))  # also true for NaN
    if len(wrong):
        received = f"length {lengths[wrong[0]]} of {upserts[wrong[0]].image_id!r}"
        raise QueryError("vector", "unit length", received, "divide it by its length")
    if corrected:
        offsets = -np.array([upsert.offset for upsert in upserts], np.float64)
        stored = np.column_stack([stored, offsets.astype(np.float16)])
    data, size = stored.tobytes(), 2 * stored.shape[1]
    return (data[start : start + size] for start in range(0, len(data), size))


def check_attributes(attributes: Mapping[str, AttributeValue]) -> None:
    """`QueryError` for what no index can keep."""
    for name, value in attributes.items():
        if not is_attribute(value):
            raise QueryError("attributes", EXPECTED, f"{name!r} = {value!r}"[:200], "correct or remove the attribute")


def _encode(change: Upsert, vector: bytes) -> LoggedChange:
    check_attributes(change.attributes)
    if not is_unicode("".join((change.digest, change.location, *change.captions, *change.attributes))):
        raise _not_unicode(change)
    captions, attributes = captions_json(change.captions), attributes_json(change.attributes)
    return LoggedChange(0, change.image_id, vector, change.digest, change.location, captions, attributes)


def _not_unicode(change: Upsert) -> QueryError:
    """The refusal of a change in whose texts there is half a character."""
    texts = [("digest", change.digest), ("location", change.location)]
    texts += [("captions", text) for text in change.captions] + [("attributes", name) for name in change.attributes]
    field, text = next((field, text) for field, text in texts if not is_unicode(text))
    return QueryError(field, "valid Unicode", ascii(text)[:200], "correct the text")


def _digest(rows: Sequence[LoggedChange], if_versions: Sequence[int | None]) -> str:
    """Names a request by what the caller sent: of an image its digest, for its vector comes out a little differently
    beside other images in a batch."""
    return digest_json(
        [
            [row.image_id, row.vector and (row.digest or row.vector.hex()), *row[3:7], if_version]
            for row, if_version in zip(rows, if_versions, strict=True)
        ]
    )
