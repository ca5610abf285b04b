"""A CSV or TSV table of images and captions, several rows of one image merged; does not open the images."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import SourceError
from data.pairs import AttributeValue, ImageTextPair
from data.sources.rows import distinct, holds_captions, image_inside, malformed, read_text, split_name

IMAGE_COLUMNS = ("image", "image_path", "filename", "file", "path")
DELIMITERS = ",;\t|"

# Numbers as people write them; "007" and "1e5" are codes.
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,14})")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?")


@dataclass
class _Image:
    """What the rows of one image have said so far."""

    path: str
    place: str
    captions: list[str] = field(default_factory=list)
    prescribed: dict[str, str] = field(default_factory=dict)  # group, split
    cells: dict[str, list[str]] = field(default_factory=dict)  # attribute → its distinct values


class CsvTable:
    """`csv:FILE`: a header, a column of image paths relative to the table, columns of captions.

    The image column is `image`, `image_path`, `filename`, `file` or `path`; caption columns are `caption`, `captions`,
    `text`, `title`, `caption_1`, `caption_2` …; `id`, `group` and `split` are what they say; every other column is an
    attribute (numbers and true/false where the whole column is). `image_id` is the `id`, else the path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header, rows = _read(path)
        self._images = _merge(path, header, rows)
        if not self._images:
            raise SourceError(f"rows in {path}", "a header only", "add a row for each image")
        self._typed = _column_types(self._images.values())

    @property
    def name(self) -> str:
        """`csv:FILE`."""
        return f"csv:{self.path}"

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._images)

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Pairs in the order in which the images first appear."""
        for image_id, image in self._images.items():
            attributes: dict[str, AttributeValue] = {}
            for name, cells in image.cells.items():
                attributes[name] = _typed(cells[0], self._typed[name]) if len(cells) == 1 else cells
            yield ImageTextPair(
                image_id,
                image_inside(self.path.parent, image.path, image.place),
                distinct(image.captions),
                image.prescribed.get("group"),
                attributes,
                image.prescribed.get("split"),
            )


def _read(path: Path) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """The header in lower case, and `(place, cells)` of every row that is not blank."""
    text = read_text(path)
    first_line = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=first_line.count)
    # strict: a quote that is never closed would otherwise swallow the rest of the table.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)

    def rows() -> Iterator[tuple[str, list[str]]]:
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise malformed(f"{path}, line {start}", "a well-formed row", f"{error}") from None
            if any(cell.strip() for cell in cells):
                yield f"{path}, line {start}", cells

    found = rows()
    _, header = next(found, ("", []))
    return [cell.strip().lower() for cell in header], found


def _merge(path: Path, header: Sequence[str], rows: Iterator[tuple[str, list[str]]]) -> dict[str, _Image]:
    image_column = next((name for name in IMAGE_COLUMNS if name in header), None)
    if image_column is None or len(set(header)) < len(header) or "" in header:
        expected = f"a header of distinct names, one of them {', '.join(IMAGE_COLUMNS)}"
        raise malformed(f"{path}, line 1", expected, ", ".join(header) or "an empty file", "add or correct the header")
    images: dict[str, _Image] = {}
    for place, cells in rows:
        if len(cells) != len(header):
            raise malformed(place, f"{len(header)} cells as in the header", f"{len(cells)} cells: {cells}")
        row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        image_path = row.pop(image_column)
        if not image_path:
            raise malformed(place, f"a path in column {image_column!r}", "an empty cell")
        image_inside(path.parent, image_path, place)
        image = images.setdefault(row.pop("id", "") or image_path, _Image(image_path, place))
        _add_row(image, image_path, row, place)
    return images


def _add_row(image: _Image, image_path: str, row: dict[str, str], place: str) -> None:
    if image.path != image_path:
        raise malformed(
            place, f"{image.path} as for the same id before", image_path, "give each image an id of its own"
        )
    for name, cell in row.items():
        if not cell:
            continue
        if holds_captions(name):
            image.captions.append(cell)
        elif name in ("group", "split"):
            value = split_name(cell, place) if name == "split" else cell
            if image.prescribed.setdefault(name, value) != value:
                raise malformed(place, f"one {name} for {image_path}", f"{image.prescribed[name]} and {value}")
        elif cell not in (cells := image.cells.setdefault(name, [])):
            cells.append(cell)


def _column_types(images: Iterable[_Image]) -> dict[str, type]:
    """For each attribute column the narrowest of bool, int, float and str that holds every value as it is written."""
    columns: dict[str, list[str]] = {}
    for image in images:
        for name, cells in image.cells.items():
            columns.setdefault(name, []).extend(cells)
    return {name: _narrowest(cells) for name, cells in columns.items()}


def _narrowest(cells: Sequence[str]) -> type:
    if all(cell.lower() in ("true", "false") for cell in cells):
        return bool
    if all(map(_INTEGER.fullmatch, cells)):
        return int
    if all(map(_DECIMAL.fullmatch, cells)):
        return float
    return str


def _typed(cell: str, kind: type) -> AttributeValue:
    return cell.lower() == "true" if kind is bool else kind(cell)
