"""Karpathy's caption files with their splits and image directory; does not open the images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.errors import SourceError
from data.pairs import ImageTextPair
from data.sources.rows import (
    distinct,
    image_inside,
    malformed,
    optional_text,
    read_json,
    rows_of,
    split_name,
    text_field,
)


class Karpathy:
    """`karpathy:dataset.json,IMAGES_DIR`: `dataset_coco.json`, `dataset_flickr8k.json` or `dataset_flickr30k.json`.

    `image_id` is `filepath/filename`. The splits `train` and `restval` are train, as is usual for COCO.
    Format: https://cs.stanford.edu/people/karpathy/deepimagesent/ (Karpathy and Fei-Fei 2015).
    """

    def __init__(self, dataset: Path, images: Path) -> None:
        self.dataset, self.images = dataset, images
        self._pairs: dict[str, tuple[list[str], str]] = {}
        for place, row in rows_of(read_json(dataset), "images", dataset):
            folder = optional_text(row, "filepath", place)
            file = text_field(row, "filename", place)
            image_id = f"{folder}/{file}" if folder else file
            image_inside(images, image_id, place)
            split = text_field(row, "split", place)
            split = "train" if split == "restval" else split_name(split, place)
            captions = [
                text_field(sentence, "raw", where) for where, sentence in rows_of(row, "sentences", Path(place))
            ]
            if image_id in self._pairs:
                raise malformed(place, "each image once", f"{image_id} again")
            self._pairs[image_id] = (captions, split)
        if not self._pairs:
            raise SourceError(f"images in {dataset}", "none", "check that this is the right file")

    @property
    def name(self) -> str:
        """`karpathy:DATASET,IMAGES_DIR`."""
        return f"karpathy:{self.dataset},{self.images}"

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._pairs)

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Pairs in the order of the file."""
        for image_id, (captions, split) in self._pairs.items():
            image = image_inside(self.images, image_id, str(self.dataset))
            yield ImageTextPair(image_id, image, distinct(captions), split=split)
