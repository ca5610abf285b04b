"""Checks what an annotation file says about one image, and says where it is wrong; knows no file format."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from data.errors import SourceError
from data.pairs import AttributeValue, ImageFile
from data.text import clean_caption

# How data sets call the three splits.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def malformed(
    place: str, expected: str, received: object, next_step: str = "correct it or remove the row"
) -> SourceError:
    """The error for a bad row; `place` is `FILE, line N` or `FILE, images[N]`."""
    shown = received if isinstance(received, str) else repr(received)
    return SourceError(f"{expected} in {place}", shown if len(shown) <= 200 else f"{shown[:200]}…", next_step)


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without a byte order mark."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"UTF-8 text in {path}", f"byte {error.object[error.start]:#04x} at {error.start:,}", "save it as UTF-8"
        ) from None
    except OSError as error:
        raise SourceError(
            "a readable file", f"{error.strerror}: {path}", "check the path and its permissions"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        value = parse_json(read_text(path))
    except ValueError as error:
        raise SourceError(f"JSON in {path}", f"{error}", "repair or download the file again") from None
    if not isinstance(value, dict):
        raise SourceError(f"a JSON object in {path}", type(value).__name__, "check that this is the right file")
    return value


def parse_json(text: str) -> Any:
    """JSON without NaN and infinity; `ValueError` when malformed."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def rows_of(table: Mapping[str, Any], key: str, path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """`(place, row)` of the list of objects under `key`."""
    rows = table.get(key)
    if not isinstance(rows, list):
        raise malformed(str(path), f"a list {key!r}", f"keys {sorted(table)[:10]}", "check that this is the right file")
    for position, row in enumerate(rows):
        place = f"{path}, {key}[{position}]"
        if not isinstance(row, dict):
            raise malformed(place, "an object", row)
        yield place, row


def text_field(row: Mapping[str, Any], key: str, place: str) -> str:
    """A non-empty string that is valid Unicode."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise malformed(place, f"a string {key!r}", value if key in row else f"keys {sorted(row)[:10]}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise malformed(place, f"valid Unicode in {key!r}", ascii(value)) from None
    return value


def optional_text(row: Mapping[str, Any], key: str, place: str) -> str | None:
    """A string, or None where the key is absent, null or blank."""
    value = row.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return text_field(row, key, place)


def captions_of(value: Any, place: str) -> tuple[str, ...]:
    """A list of strings, cleaned; blank and repeated ones are left out."""
    if not isinstance(value, list) or not all(isinstance(caption, str) for caption in value):
        raise malformed(place, "a list of strings 'captions'", value)
    return distinct(value)


def distinct(captions: Iterable[str]) -> tuple[str, ...]:
    """Cleaned captions in their order, without blank and repeated ones."""
    return tuple(dict.fromkeys(cleaned for caption in captions if (cleaned := clean_caption(caption))))


def attributes_of(value: Any, place: str) -> dict[str, AttributeValue]:
    """Attributes as a pair may hold them; null ones are left out."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise malformed(place, "an object 'attributes'", value)
    kept: dict[str, AttributeValue] = {}
    for key, entry in value.items():
        if entry is None:
            continue
        strings = isinstance(entry, list) and all(isinstance(item, str) for item in entry)
        if not (strings or isinstance(entry, str | int | float)) or (isinstance(entry, float) and math.isinf(entry)):
            raise malformed(place, f"text, a number, true, false or a list of texts in attribute {key!r}", entry)
        kept[key] = entry
    return kept


def image_inside(root: Path, name: str, place: str) -> ImageFile:
    """The image at `name`, which must be a relative path that stays below `root`."""
    path = PurePosixPath(name)
    if "://" in name:
        raise malformed(
            place, "a path to an image", name, "download the images first; nothing is fetched from the network"
        )
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise malformed(place, f"a path below {root}", name, "write the path relative to that directory, without '..'")
    return ImageFile(root / path)


def split_name(value: str, place: str) -> str:
    """`train`, `validation` or `test`, also under their usual short names."""
    name = SPLIT_NAMES.get(value.strip().lower())
    if name is None:
        raise malformed(place, "a split train, validation or test", value)
    return name
