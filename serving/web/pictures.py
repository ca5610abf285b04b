"""The pictures of indexed images, as they are and small, and how large they are; knows no HTTP.

Belongs to one event loop. What it reads is checked against the digest in the index, so that a file that was replaced is
not shown.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import ImageError
from data.images import upright_size
from data.pairs import ImageFile
from data.thumbnails import thumbnail
from serving.image_files import image_at, read_image
from serving.isolated_decoding import IsolatedDecoder
from serving.single_flight import SingleFlight
from serving.uploaded_images import image_path
from serving.vector_store import StoredImage
from serving.web.thumbnail_cache import ThumbnailCache
from serving.work_pool import WorkPool

SIDE = 480  # pixels of a thumbnail's longer side: enough for rows of 240 on a screen with two pixels a point
QUALITY = 75
_KEPT = 256  # thumbnails in memory, about 20 kB each
_KNOWN_SIZES = 100_000
_SCALED_AT_ONCE = 1  # so that images to search by find a free decoder

# The first bytes of the formats that are decoded, and so shown; nothing else leaves the server.
_MAGIC = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"GIF8", "image/gif"))


class PictureNotFound(Exception):
    """The index knows the image, but its file cannot be read, has changed, or is no picture any more."""


@dataclass(frozen=True)
class Size:
    """Width and height in pixels, of the picture turned upright."""

    width: int
    height: int


class Pictures:
    """Reads pictures in threads of its own, and scales them by `decoder` or, without one, in these threads too.

    `index` is the directory of uploaded images, if there is one.
    """

    def __init__(self, cache: ThumbnailCache, decoder: IsolatedDecoder | None = None) -> None:
        self._cache, self._decoder = cache, decoder
        self._turn = asyncio.Semaphore(_SCALED_AT_ONCE)
        self._workers = WorkPool("pictures")
        self._flights: SingleFlight[str, bytes] = SingleFlight(_KEPT)
        self._sizes: dict[str, Size | None] = {}
        self._lock = threading.Lock()

    async def thumbnail(self, image: StoredImage, index: Path | None, deadline: float | None = None) -> bytes:
        """A WebP of at most `SIDE` pixels a side; `PictureNotFound`."""
        name = thumbnail_name(image)

        async def make() -> bytes:
            if data := await self._workers.run(lambda: self._cache.get(name), deadline):
                return data
            original = await self._workers.run(lambda: _read(image, index), deadline)
            try:
                small = await self._scaled(original, deadline)
            except ImageError as error:
                raise PictureNotFound(str(error)) from None
            await self._workers.run(lambda: self._cache.put(name, small))
            return small

        return await self._flights.get(name, lambda: asyncio.ensure_future(make()), deadline)

    async def _scaled(self, original: bytes, deadline: float | None) -> bytes:
        if self._decoder is None:
            return await self._workers.run(lambda: thumbnail(original, SIDE, QUALITY), deadline)
        async with self._turn:
            return await self._decoder.thumbnail(original, SIDE, QUALITY, deadline)

    async def original(
        self, image: StoredImage, index: Path | None, deadline: float | None = None
    ) -> tuple[bytes, str]:
        """The encoded picture and its media type; `PictureNotFound`."""
        data = await self._workers.run(lambda: _read(image, index), deadline)
        media_type = next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            media_type = "image/webp"
        if media_type is None:
            raise PictureNotFound("not of a format that is shown")
        return data, media_type

    async def sizes(
        self, images: Sequence[StoredImage], index: Path | None, deadline: float | None = None
    ) -> list[Size | None]:
        """How large each is, from its header alone; None where there is no picture."""
        known = [self._sizes.get(image.digest, ...) for image in images]
        if ... in known:
            missing = [image for image, size in zip(images, known, strict=True) if size is ...]
            found = await self._workers.run(lambda: [_size(image, index) for image in missing], deadline)
            with self._lock:
                if len(self._sizes) > _KNOWN_SIZES:
                    self._sizes.clear()
                self._sizes.update({i.digest: size for i, size in zip(missing, found, strict=True) if size})
            new = iter(found)
            known = [next(new) if size is ... else size for size in known]
        return [size if isinstance(size, Size) else None for size in known]

    def close(self) -> None:
        """Stop the threads."""
        self._workers.close()


def thumbnail_name(image: StoredImage) -> str:
    """Names what `thumbnail` gives: another picture, size or quality has another name."""
    return f"{image.digest}-{SIDE}-{QUALITY}"


def _read(image: StoredImage, index: Path | None) -> bytes:
    data = read_image(index, image.digest, image.location)
    if data is None:
        raise PictureNotFound("no file with this digest")
    return data


def _size(image: StoredImage, index: Path | None) -> Size | None:
    uploaded = image_path(index, image.digest) if index is not None and image.digest else None
    found = ImageFile(uploaded) if uploaded is not None and uploaded.is_file() else image_at(image.location)
    if found is None or not image.digest:
        return None
    try:
        return Size(*upright_size(found.path if isinstance(found, ImageFile) else found.read()))
    except ImageError:
        return None
