"""What a data set is made of: an image with its captions, and a source of such pairs; knows no file format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

from data.errors import ImageError
from data.images import DEFAULT_LIMITS, ImageLimits

# What an attribute of an image may hold, under the limits of data/attributes.py; times have their offset from UTC.
AttributeValue = str | int | float | bool | datetime | list[str]


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own; nothing is read before `read`."""

    path: Path

    def read(self, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
        """The file's bytes; `ImageError` when it is absent, unreadable or larger than the limit."""
        try:
            if not self.path.is_file():
                raise ImageError("missing", "an image file", f"nothing at {self.path}", "check the path")
            size = self.path.stat().st_size
            if size > limits.max_bytes:
                raise ImageError(
                    "too_many_bytes",
                    f"at most {limits.max_bytes:,} bytes",
                    f"{size:,} bytes in {self.path}",
                    "store a smaller copy of the image",
                )
            return self.path.read_bytes()
        except OSError as error:
            raise ImageError("unreadable", "a readable file", f"{error}", "check its permissions") from error


@dataclass(frozen=True)
class ImageRange:
    """An image inside a file, as it is: `size` bytes from byte `offset` on; nothing is read before `read`."""

    path: Path
    offset: int
    size: int

    def read(self, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
        """The bytes; `ImageError` when the file is absent, unreadable or too short, or there are more than allowed."""
        if self.size > limits.max_bytes:
            raise _too_many_bytes(self.size, limits)
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise ImageError(
                "unreadable", "a readable file", f"{error}", "check the path and its permissions"
            ) from error
        if len(data) < self.size:
            received = f"the end of {self.path} after {len(data):,} bytes"
            raise ImageError("damaged", f"{self.size:,} bytes", received, "fetch or make the file again")
        return data


@dataclass(frozen=True)
class ImageBytes:
    """An image made or fetched on demand: drawn from a font, or read from a column of a table.

    `size` is its length in bytes where that is known without loading it, so that a larger one than allowed is refused
    before it takes memory.
    """

    load: Callable[[], bytes] = field(repr=False)
    size: int | None = None

    def read(self, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
        """The encoded image; `ImageError` when it is larger than the limit."""
        if self.size is not None and self.size > limits.max_bytes:
            raise _too_many_bytes(self.size, limits)
        data = self.load()
        if len(data) > limits.max_bytes:
            raise _too_many_bytes(len(data), limits)
        return data


EncodedImage = ImageFile | ImageRange | ImageBytes


def _too_many_bytes(received: int, limits: ImageLimits) -> ImageError:
    return ImageError(
        "too_many_bytes",
        f"at most {limits.max_bytes:,} bytes",
        f"{received:,} bytes",
        "store a smaller copy of the image",
    )


@dataclass(frozen=True)
class ImageTextPair:
    """One image and every text that describes it.

    `image_id` is stable and unique within its source. Pairs of one `group` (near-duplicates, panels of one picture)
    never fall into different splits. `split` is set where the data set itself prescribes it. `digest` is the SHA-256 of
    the image's bytes, or `unreadable:REASON`, once somebody has read them (`loading.with_digests`). `caption_weights`,
    0 to 1 for each caption, say how far it is trusted to belong to the image; none is 1 for all.
    """

    image_id: str
    image: EncodedImage
    captions: tuple[str, ...] = ()
    group: str | None = None
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    split: str | None = None
    digest: str | None = field(default=None, compare=False)
    caption_weights: tuple[float, ...] = ()

    @property
    def weights(self) -> tuple[float, ...]:
        """How far each caption is trusted, 0 to 1."""
        return self.caption_weights or (1.0,) * len(self.captions)


@runtime_checkable
class PairSource(Protocol):
    """Implementers give their pairs, in the same order every time, without loading the data set into memory."""

    @property
    def name(self) -> str:
        """How a user names this source on a command line, such as `jsonl:datasets/openstax`."""

    def __len__(self) -> int:
        """How many images there are."""

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Every pair; `SourceError` for a malformed row, with its place in the file."""
