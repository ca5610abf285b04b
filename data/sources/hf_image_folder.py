"""A Hugging Face `imagefolder`: images with a metadata table, or in a folder for each class; opens no image."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from data.errors import SourceError
from data.pairs import AttributeValue, ImageFile, ImageTextPair
from data.sources.image_folder import EXTENSIONS, caption_from_name, image_names, printable
from data.sources.rows import (
    SPLIT_NAMES,
    bounded_lines,
    distinct,
    image_inside,
    malformed,
    pair_of,
    parse_json,
    text_field,
)

METADATA = ("metadata.jsonl", "metadata.csv")
FILE_COLUMN = "file_name"
# A folder that a repository may put around its splits.
WRAPPER = "data"


class HfImageFolder:
    """`imagefolder:DIR`: what `datasets.load_dataset("imagefolder", data_dir=DIR)` reads; `image_id` is the path.

    Rows of `metadata.jsonl` or `metadata.csv`, in DIR or any folder below, name an image by `file_name`, relative to
    the table; `caption`, `captions`, `text`, `title` are its captions, other columns attributes. Images that no row
    names are left out. Without metadata, the name of the folder that holds an image is its caption and its attribute
    `label`. Folders named after two or more splits prescribe them.
    Format: https://huggingface.co/docs/datasets/image_dataset
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise SourceError("a directory of images", f"{directory}", "check the path")
        self.directory = directory
        self._tables = list(_metadata_files(directory))
        self._names = [] if self._tables else sorted(image_names(directory))
        if not self._tables and not self._names:
            received = f"neither {' nor '.join(METADATA)} nor images ({', '.join(sorted(EXTENSIONS))})"
            raise SourceError(f"images below {directory}", received, "check the path")
        self._prescribes = len({SPLIT_NAMES[name] for name in _folders(directory) if name in SPLIT_NAMES}) > 1
        self._length: int | None = None

    @property
    def name(self) -> str:
        """`imagefolder:DIR`."""
        return f"imagefolder:{self.directory}"

    def __len__(self) -> int:
        """How many images there are."""
        if self._length is None:
            self._length = sum(1 for table in self._tables for _ in _rows(table)) if self._tables else len(self._names)
        return self._length

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Pairs in the order of the metadata, else of their paths."""
        return self._described() if self._tables else self._classified()

    def _described(self) -> Iterator[ImageTextPair]:
        seen: set[str] = set()
        for table in self._tables:
            folder = PurePosixPath(table.parent.relative_to(self.directory).as_posix())
            for place, row in _rows(table):
                file = text_field(row, FILE_COLUMN, place)
                image_inside(table.parent, file, place)
                path = folder / file
                image_id = printable(str(path))
                if image_id in seen:
                    raise malformed(place, "each image once", f"{file} again", "put all its captions into one row")
                seen.add(image_id)
                described = {key: value for key, value in row.items() if key != FILE_COLUMN}
                yield pair_of(image_id, ImageFile(self.directory / path), described, place, self._split(path))
        if not seen:
            raise SourceError(f"rows in {self._tables[0]}", "none", "add a row for each image")

    def _classified(self) -> Iterator[ImageTextPair]:
        for name in self._names:
            path = PurePosixPath(name)
            folders = _below_splits(path.parts[:-1])
            label = printable(folders[-1]) if folders else ""
            attributes: dict[str, AttributeValue] = {"label": label} if label else {}
            captions = distinct([caption_from_name(label)])
            image = ImageFile(self.directory / path)
            yield ImageTextPair(printable(name), image, captions, attributes=attributes, split=self._split(path))

    def _split(self, path: PurePosixPath) -> str | None:
        parts = path.parts[:-1]
        folder = parts[1] if len(parts) > 1 and parts[0] == WRAPPER else parts[0] if parts else ""
        return SPLIT_NAMES.get(folder.lower()) if self._prescribes else None


def _folders(directory: Path) -> Iterator[str]:
    """Names, in lower case, of the folders where splits may stand."""
    for parent in (directory, directory / WRAPPER):
        if parent.is_dir():
            yield from (entry.name.lower() for entry in parent.iterdir() if entry.is_dir())


def _below_splits(folders: tuple[str, ...]) -> tuple[str, ...]:
    """The folders that say what is in the picture."""
    if folders[:1] == (WRAPPER,):
        folders = folders[1:]
    return folders[1:] if folders and folders[0].lower() in SPLIT_NAMES else folders


def _metadata_files(directory: Path) -> Iterator[Path]:
    """Every metadata table, in the order of the folders; two in one folder are refused."""
    for parent, folders, files in os.walk(directory):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        found = [file for file in METADATA if file in files]
        if len(found) > 1:
            raise SourceError(f"one metadata file in {parent}", " and ".join(found), "remove one of them")
        yield from (Path(parent) / file for file in found)


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(place, row)` of a table, one row at a time."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            lines = bounded_lines(file, str(table))
            yield from _csv_rows(lines, table) if table.suffix == ".csv" else _json_rows(lines, table)
    except UnicodeDecodeError as error:
        raise SourceError(
            f"UTF-8 text in {table}", f"byte {error.object[error.start]:#04x}", "save it as UTF-8"
        ) from None
    except OSError as error:
        raise SourceError("a readable file", f"{error.strerror}: {table}", "check its permissions") from error


def _json_rows(lines: Iterator[str], table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{table}, line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise malformed(place, "a JSON object", f"{error}") from None
        if not isinstance(row, dict):
            raise malformed(place, "a JSON object", row)
        yield place, row


def _csv_rows(lines: Iterator[str], table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Cells as text; blank ones are left out."""
    # strict: a quote that is never closed would otherwise swallow the rest of the table.
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    while True:
        place = f"{table}, line {reader.line_num + 1}"
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            break
        except csv.Error as error:
            raise malformed(place, "a well-formed row", f"{error}") from None
        if not header:
            header = cells
            if FILE_COLUMN not in header or len(set(header)) < len(header):
                received = ", ".join(header) or "a blank line"
                raise malformed(place, f"a header of distinct names, one of them {FILE_COLUMN}", received)
        elif any(cells):
            if len(cells) != len(header):
                raise malformed(place, f"{len(header)} cells as in the header", f"{len(cells)} cells: {cells}")
            yield place, {name: cell for name, cell in zip(header, cells, strict=True) if cell}
