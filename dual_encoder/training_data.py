"""From a source to the lists that training and evaluation work on; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.durable import digest_json
from data.errors import SourceError
from data.loading import with_digests
from data.pairs import ImageTextPair
from data.text import clean_caption


@dataclass(frozen=True)
class CaptionTable:
    """Captions of a list of images, flat: caption c belongs to image `image_row[c]`, trusted as `weights[c]` says."""

    captions: list[str]
    image_row: list[int]
    weights: list[float]

    @classmethod
    def of(cls, pairs: Sequence[ImageTextPair]) -> CaptionTable:
        """Every caption that has content, in the order of the images."""
        flat = [
            (caption, row, weight)
            for row, pair in enumerate(pairs)
            for caption, weight in zip(pair.captions, pair.weights, strict=True)
            if clean_caption(caption)
        ]
        captions, rows, weights = (list(column) for column in zip(*flat, strict=True)) if flat else ([], [], [])
        return cls(captions, rows, weights)

    def rows_of_images(self, images: int) -> list[list[int]]:
        """For each image, the positions of its captions."""
        rows: list[list[int]] = [[] for _ in range(images)]
        for caption, image in enumerate(self.image_row):
            rows[image].append(caption)
        return rows


def captioned(pairs: Sequence[ImageTextPair], what: str) -> list[ImageTextPair]:
    """Those with at least one caption; `SourceError` when there are none."""
    kept = [pair for pair in pairs if is_captioned(pair)]
    if not kept:
        raise no_captions(len(pairs), what)
    return kept


def is_captioned(pair: ImageTextPair) -> bool:
    """Whether one of the captions has content."""
    return any(clean_caption(caption) for caption in pair.captions)


def no_captions(images: int, what: str) -> SourceError:
    """The error that no image of a split has a caption."""
    return SourceError(
        f"captioned images in the {what} split",
        f"{images} images, none with a caption" if images else "no image",
        "add captions, or see python -m data.prepare --help for how a data set is split",
    )


def image_groups(pairs: Sequence[ImageTextPair]) -> list[int]:
    """A number for each image, the same for images of one group; an image without a group has its own."""
    numbers: dict[tuple[str, str], int] = {}
    keys = [("image", pair.image_id) if pair.group is None else ("group", pair.group) for pair in pairs]
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def data_digest(splits: dict[str, list[ImageTextPair]], groups: bool = False) -> str:
    """What names the pairs a run saw: ids, images, captions, their weights, splits, and `groups` where they decide."""
    return digest_json(
        {
            name: [
                [p.image_id, p.digest, *([p.group] if groups else []), *p.captions, *map(repr, p.caption_weights)]
                for p in with_digests(pairs)
            ]
            for name, pairs in splits.items()
        }
    )
