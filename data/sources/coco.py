"""MS COCO caption annotations with their image directory; does not open the images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.errors import SourceError
from data.pairs import AttributeValue, ImageTextPair
from data.sources.rows import distinct, image_inside, malformed, optional_text, read_json, rows_of, text_field

# Where a picture came from, which must stay with it.
ORIGINS = ("flickr_url", "coco_url")


class Coco:
    """`coco:ANNOTATIONS.json,IMAGES_DIR`: the format of `captions_val2017.json`; `image_id` is the file name.

    Format: https://cocodataset.org/#format-data (section "Image Captioning").
    """

    def __init__(self, annotations: Path, images: Path) -> None:
        self.annotations, self.images = annotations, images
        table = read_json(annotations)
        self._files: dict[int | str, str] = {}  # COCO's image number → file name
        self._origins: dict[str, str] = {}
        for place, row in rows_of(table, "images", annotations):
            file = text_field(row, "file_name", place)
            image_inside(images, file, place)
            if _number(row, "id", place) in self._files or file in self._origins:
                raise malformed(place, "each image once", f"id {row['id']}, {file} again")
            self._files[row["id"]] = file
            self._origins[file] = next((url for key in ORIGINS if (url := optional_text(row, key, place))), "")
        self._captions: dict[str, list[str]] = {file: [] for file in self._origins}
        for place, row in rows_of(table, "annotations", annotations):
            number = _number(row, "image_id", place)
            if number not in self._files:
                raise malformed(place, "an image_id of 'images'", number)
            self._captions[self._files[number]].append(text_field(row, "caption", place))
        if not self._captions:
            raise SourceError(f"images in {annotations}", "none", "check that this is the right file")

    @property
    def name(self) -> str:
        """`coco:ANNOTATIONS,IMAGES_DIR`."""
        return f"coco:{self.annotations},{self.images}"

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._captions)

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Pairs in the order of `images`."""
        for file, captions in self._captions.items():
            attributes: dict[str, AttributeValue] = {"source": self._origins[file]} if self._origins[file] else {}
            image = image_inside(self.images, file, str(self.annotations))
            yield ImageTextPair(file, image, distinct(captions), attributes=attributes)


def _number(row: dict[str, object], key: str, place: str) -> int | str:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise malformed(place, f"a number {key!r}", value if key in row else f"keys {sorted(row)[:10]}")
    return value
