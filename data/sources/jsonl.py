"""A directory of `captions.jsonl`, `images/` and perhaps `splits.json`; reads one row at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import SourceError
from data.pairs import AttributeValue, ImageTextPair
from data.sources.rows import (
    attributes_of,
    bounded_lines,
    captions_of,
    image_inside,
    malformed,
    optional_text,
    parse_json,
    read_json,
    split_name,
    text_field,
)

# Text that must stay with a picture wherever it is shown, kept as attributes.
ATTRIBUTION = ("source", "credit")


class Jsonl:
    """`jsonl:DIR`: rows with `image` (path below DIR), `captions`, and optionally `group`, `attributes`, `split`,
    `source` and `credit`.

    `image_id` is the path as the row gives it. `source` and `credit` become attributes, so that attribution survives.
    `splits.json` maps split names to lists of image paths.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.parent if directory.is_file() else directory
        self.rows = self.directory / "captions.jsonl"
        if not self.rows.is_file():
            raise SourceError(f"captions.jsonl in {self.directory}", "no such file", "check the path")
        self._splits = _read_splits(self.directory / "splits.json")
        self._length: int | None = None

    @property
    def name(self) -> str:
        """`jsonl:DIR`."""
        return f"jsonl:{self.directory}"

    def __len__(self) -> int:
        """How many rows there are."""
        if self._length is None:
            with self.rows.open("rb") as file:
                self._length = sum(1 for line in bounded_lines(file, str(self.rows)) if line.strip())
        return self._length

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Pairs in the order of the file."""
        lines_of: dict[str, int] = {}
        with self.rows.open("rb") as file:
            for number, line in enumerate(bounded_lines(file, str(self.rows)), start=1):
                if not line.strip():
                    continue
                place = f"{self.rows}, line {number}"
                pair = self._pair(_object(line, place), place)
                if pair.image_id in lines_of:
                    received = f"{pair.image_id} again, as in line {lines_of[pair.image_id]}"
                    raise malformed(place, "each image once", received, "put all its captions into one row")
                lines_of[pair.image_id] = number
                yield pair
        if not lines_of:
            raise SourceError(f"rows in {self.rows}", "an empty file", "check the path")

    def _pair(self, row: dict[str, Any], place: str) -> ImageTextPair:
        image_id = text_field(row, "image", place)
        attributes: dict[str, AttributeValue] = attributes_of(row.get("attributes"), place)
        for key in ATTRIBUTION:
            text = optional_text(row, key, place)
            if text is not None:
                attributes.setdefault(key, text)
        split = optional_text(row, "split", place)
        return ImageTextPair(
            image_id,
            image_inside(self.directory, image_id, place),
            captions_of(row.get("captions", []), place),
            optional_text(row, "group", place),
            attributes,
            split_name(split, place) if split else self._splits.get(image_id),
        )


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = parse_json(line.decode("utf-8-sig"))
    except ValueError as error:
        raise malformed(place, "a JSON object", f"{error}") from None
    if not isinstance(row, dict):
        raise malformed(place, "a JSON object", row)
    return row


def _read_splits(path: Path) -> dict[str, str]:
    """`{image path: split}`; empty when there is no such file."""
    if not path.is_file():
        return {}
    splits: dict[str, str] = {}
    for name, images in read_json(path).items():
        split = split_name(name, str(path))
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise malformed(str(path), f"a list of image paths under {name!r}", images)
        for image in images:
            if splits.setdefault(image, split) != split:
                raise malformed(str(path), "each image in one split", f"{image} in {splits[image]} and {split}")
    return splits
