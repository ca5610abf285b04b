"""A change as the log keeps it, with its checksum, and an idempotency key; knows no file."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import NamedTuple


class LoggedChange(NamedTuple):
    """One change as it is stored. `vector` is (D,) float16 as bytes, None for a deletion."""

    sequence: int
    image_id: str
    vector: bytes | None
    digest: str = ""
    location: str = ""
    captions: str = "[]"
    attributes: str = "{}"
    model: int = 0


@dataclass(frozen=True)
class KeptKey:
    """An idempotency key: the digest of its request, and the last sequence number and count of what was applied."""

    key: str
    request: str
    sequence: int
    changes: int


def checksum(change: LoggedChange) -> int:
    """CRC-32 of a change; it notices any altered bit."""
    sequence, image_id, vector, digest, location, captions, attributes, model = change
    texts = f"{sequence}\0{model}\0{vector is None}\0{image_id}\0{digest}\0{location}\0{captions}\0{attributes}"
    return zlib.crc32(texts.encode(), zlib.crc32(vector or b""))
