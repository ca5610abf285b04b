"""Checks what an annotation file says about one image, and says where it is wrong; knows no file format."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any, AnyStr

from data.attributes import TIMESTAMP, is_unicode, parse_timestamp
from data.errors import SourceError
from data.pairs import AttributeValue, EncodedImage, ImageFile, ImageTextPair
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

# How tables call their captions, also numbered: `caption_1`, `caption_2` …
CAPTION_NAMES = ("caption", "captions", "text", "title")

# What Linux allows; longer ones cannot be looked up.
MAX_NAME_BYTES = 255
MAX_PATH_CHARACTERS = 2000

# A longer line is no row of a table; read whole it would take that much memory.
MAX_LINE_BYTES = 16 << 20


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


def bounded_lines(file: IO[AnyStr], place: str) -> Iterator[AnyStr]:
    """The lines of a file; `SourceError` for one that is longer than any row, before it takes memory."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            received = "a longer one: is it one JSON array instead of an object a line?"
            raise malformed(place, f"lines of at most {MAX_LINE_BYTES:,} bytes", received, "write one object a line")
        yield line


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
        if isinstance(entry, dict) and entry.keys() == {TIMESTAMP}:
            entry = _timestamp(entry[TIMESTAMP], f"{place}, attribute {key!r}")
        strings = isinstance(entry, list) and all(isinstance(item, str) for item in entry)
        if not (strings or isinstance(entry, str | int | float | datetime)) or entry in (math.inf, -math.inf):
            raise malformed(
                place, f"text, a number, true, false, a time or a list of texts in attribute {key!r}", entry
            )
        if not all(is_unicode(text) for text in (key, *(entry if strings else [entry])) if isinstance(text, str)):
            raise malformed(place, "valid Unicode in 'attributes'", ascii({key: entry}))
        kept[key] = entry
    return kept


def holds_captions(name: str) -> bool:
    """Whether a column or field of this name, in lower case, holds captions."""
    stem, _, number = name.rpartition("_")
    return name in CAPTION_NAMES or (stem in CAPTION_NAMES and number.isdigit())


def pair_of(
    image_id: str,
    image: EncodedImage,
    row: Mapping[str, Any],
    place: str,
    split: str | None = None,
    first_captions: Iterable[str] = (),
) -> ImageTextPair:
    """The pair of an image and a row of a format that prescribes no names of fields.

    Fields named as captions hold a string or a list of them; `group` and `split` are what they say, `split` being the
    default; every other field is an attribute. What an attribute cannot hold (boxes, vectors, null) is left out.
    """
    captions = list(first_captions)
    attributes: dict[str, AttributeValue] = {}
    for key, value in row.items():
        if holds_captions(key.lower()):
            captions += _texts(value, f"{place}, {key!r}")
        elif key not in ("group", "split") and _fits_attribute(value) and is_unicode(key):
            attributes[key] = value
    group = row.get("group")
    prescribed = optional_text(row, "split", place)
    return ImageTextPair(
        image_id,
        image,
        distinct(captions),
        str(group) if isinstance(group, int) else optional_text(row, "group", place),
        attributes,
        split_name(prescribed, place) if prescribed else split,
    )


def _texts(value: Any, place: str) -> list[str]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise malformed(place, "a string or a list of strings", value)
    return texts


def _fits_attribute(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) and is_unicode(item) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int | datetime) or (isinstance(value, str) and is_unicode(value))


def _timestamp(text: Any, place: str) -> datetime:
    try:
        return parse_timestamp(text)
    except (ValueError, TypeError, OverflowError):
        raise malformed(place, "a time with its offset, such as 2024-05-17T12:00:00Z", text) from None


def visible_files(directory: Path, pattern: str) -> Iterator[Path]:
    """Files below a directory whose names match, hidden ones and those in hidden folders left out."""
    for path in directory.rglob(pattern):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(directory).parts):
            yield path


def splits_of_files(paths: Iterable[PurePosixPath]) -> list[str | None]:
    """The split each data file names by a folder (`train/`) or in its own name (`val-00000-of-00004`).

    None for all where only one split is named: taken at its word it would leave nothing to validate on.
    """
    splits = [_split_of_file(path) for path in paths]
    return splits if len({split for split in splits if split}) > 1 else [None] * len(splits)


def _split_of_file(path: PurePosixPath) -> str | None:
    words = [part.lower() for part in path.parts[:-1]] + re.split("[^a-z]+", path.stem.lower())
    named = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return named.pop() if len(named) == 1 else None


def image_inside(root: Path, name: str, place: str) -> ImageFile:
    """The image at `name`, which must be a relative path that stays below `root`."""
    path = PurePosixPath(name)
    if "://" in name:
        raise malformed(
            place, "a path to an image", name, "download the images first; nothing is fetched from the network"
        )
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise malformed(place, f"a path below {root}", name, "write the path relative to that directory, without '..'")
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in path.parts)
    if longest > MAX_NAME_BYTES or len(name) > MAX_PATH_CHARACTERS:
        raise malformed(place, f"a path of names of at most {MAX_NAME_BYTES} bytes", name)
    return ImageFile(root / path)


def split_name(value: str, place: str) -> str:
    """`train`, `validation` or `test`, also under their usual short names."""
    name = SPLIT_NAMES.get(value.strip().lower())
    if name is None:
        raise malformed(place, "a split train, validation or test", value)
    return name
