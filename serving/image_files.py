"""Where the encoded image of a digest can be read: what a catalog calls its location, and the file behind it; knows no
vectors.

A location is the path of a file, or `PATH#OFFSET+SIZE` for an image that stands inside one, such as a shard.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from data.durable import digest_bytes
from data.errors import ImageError
from data.images import DEFAULT_LIMITS, ImageLimits
from data.pairs import EncodedImage, ImageFile, ImageRange
from serving.uploaded_images import image_path

_RANGE = re.compile(r"(?s)(.+)#(\d{1,18})\+(\d{1,18})")


def location_of(image: EncodedImage) -> str:
    """What to note in a catalog, or "" for an image that is in no file as it is."""
    if isinstance(image, ImageFile):
        return str(image.path.resolve())
    if isinstance(image, ImageRange):
        return f"{image.path.resolve()}#{image.offset}+{image.size}"
    return ""


def image_at(location: str) -> ImageFile | ImageRange | None:
    """The inverse of `location_of`; None where nothing is."""
    try:
        if not location or Path(location).is_file():
            return ImageFile(Path(location)) if location else None
        found = _RANGE.fullmatch(location)
        if found and Path(found[1]).is_file():
            return ImageRange(Path(found[1]), int(found[2]), int(found[3]))
    except (OSError, ValueError):  # a name that no file can have
        pass
    return None


def find_image(index: Path | None, digest: str, location: str) -> ImageFile | ImageRange | None:
    """The image with this digest: uploaded to `index`, or at its location and unchanged."""
    return next((image for image, _ in _found(index, digest, location)), None)


def read_image(index: Path | None, digest: str, location: str, limits: ImageLimits = DEFAULT_LIMITS) -> bytes | None:
    """The bytes of the image with this digest, read once and checked."""
    return next((data for _, data in _found(index, digest, location, limits)), None)


def _found(
    index: Path | None, digest: str, location: str, limits: ImageLimits = DEFAULT_LIMITS
) -> Iterator[tuple[ImageFile | ImageRange, bytes]]:
    uploaded = ImageFile(image_path(index, digest)) if index is not None and digest else None
    for image in (uploaded, image_at(location)):
        if digest and image is not None:
            with contextlib.suppress(ImageError):
                data = image.read(limits)
                if digest_bytes(data) == digest:
                    yield image, data
