"""Small copies of images for reports; knows no report."""

from __future__ import annotations

import io
from collections.abc import Iterable

from data.errors import ImageError
from data.images import decode
from data.loading import map_ordered
from data.pairs import ImageTextPair

SIDE = 112  # pixels of a thumbnail's longer side


def thumbnail(data: bytes, side: int = SIDE, quality: int = 60) -> bytes:
    """An encoded image as WebP of at most `side` pixels a side; `ImageError` when it does not decode."""
    image = decode(data, enough=2 * side)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def thumbnails(pairs: Iterable[ImageTextPair], wanted: set[str]) -> dict[str, bytes]:
    """Thumbnails by image id of those `wanted` that decode; no other image is read."""

    def small(pair: ImageTextPair) -> tuple[str, bytes | None]:
        try:
            return pair.image_id, thumbnail(pair.image.read())
        except ImageError:
            return pair.image_id, None

    found = map_ordered(small, (pair for pair in pairs if pair.image_id in wanted), ahead=16)
    return {image_id: data for image_id, data in found if data is not None}
