"""Changes as the log takes them: checked, encoded, with the digest by which a repeated request is known; knows no
state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.attributes import EXPECTED, is_attribute, is_unicode
from data.durable import digest_json
from data.errors import QueryError
from serving.catalog import attributes_json, captions_json
from serving.change_log import LoggedChange
from serving.exact_index import UNIT_TOLERANCE
from serving.vector_store import Change, Upsert

MAX_ID_CHARACTERS = 1_024
MAX_KEY_CHARACTERS = 256


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
    rows = tuple(_encode(change, dimension, corrected) for change in changes)
    if_versions = tuple(change.if_version for change in changes)
    return ChangeRequest(rows, if_versions, key, _digest(rows, if_versions) if key else "")


def _encode(change: Change, dimension: int, corrected: bool) -> LoggedChange:
    image_id = change.image_id
    if not 1 <= len(image_id) <= MAX_ID_CHARACTERS or not is_unicode(image_id):
        raise QueryError(
            "image_id",
            f"an id of 1 to {MAX_ID_CHARACTERS:,} characters of valid Unicode",
            ascii(image_id)[:80],
            "use another id",
        )
    if not isinstance(change, Upsert):
        return LoggedChange(0, image_id, None)
    vector = np.asarray(change.vector)
    if vector.shape != (dimension,):
        raise QueryError(
            "vector", f"{dimension} components", str(vector.shape), "use an embedding of the index's model"
        )
    stored = vector.astype(np.float16)
    if not abs(np.linalg.norm(stored.astype(np.float32)) - 1) < UNIT_TOLERANCE:  # NaN too
        raise QueryError("vector", "unit length", f"length {np.linalg.norm(vector)}", "divide it by its length")
    if not abs(change.offset) <= 1:  # NaN too
        raise QueryError("offset", "from -1 to 1", f"{change.offset}", "take it from the model's hubness correction")
    if corrected:
        stored = np.append(stored, np.float16(-change.offset))
    for name, value in change.attributes.items():
        if not is_attribute(name) or not is_attribute(value):
            raise QueryError("attributes", EXPECTED, f"{name!r} = {value!r}"[:200], "correct or remove the attribute")
    for field in ("digest", "location", "captions"):
        if not is_attribute(getattr(change, field)):
            raise QueryError(field, "valid Unicode", ascii(getattr(change, field))[:200], "correct the text")
    captions, attributes = captions_json(change.captions), attributes_json(change.attributes)
    return LoggedChange(0, image_id, stored.tobytes(), change.digest, change.location, captions, attributes)


def _digest(rows: Sequence[LoggedChange], if_versions: Sequence[int | None]) -> str:
    return digest_json(
        [
            [row.image_id, row.vector and row.vector.hex(), *row[3:7], if_version]
            for row, if_version in zip(rows, if_versions, strict=True)
        ]
    )
