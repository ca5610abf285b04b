"""Parquet files with images in a column, as Hugging Face writes them; reads captions by row group, images on demand."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from data.console import say
from data.errors import ImageError, SourceError
from data.pairs import ImageBytes, ImageFile, ImageTextPair
from data.sources.image_folder import printable
from data.sources.rows import image_inside, malformed, pair_of, splits_of_files, text_field, visible_files

IMAGE_COLUMNS = ("image", "img", "jpg", "image_bytes", "image_path", "file_name", "filename", "file", "path")
REPAIR = "fetch or write the file again"
TEXT_ROWS = 1000  # read at a time
IMAGE_ROWS = 16  # decoded at a time
# Batches of images kept, for threads that read a little apart from each other.
KEPT_BATCHES = 8
# Page by page: by default pyarrow reads a whole column of a row group ahead, which may be gigabytes of images.
STREAMED = {"buffer_size": 1 << 20, "pre_buffer": False}


@dataclass(frozen=True)
class _Table:
    """One Parquet file: which of its columns hold what."""

    path: Path
    name: str  # relative to the data set, without .parquet
    group_rows: tuple[int, ...]
    image_column: str
    has_bytes: bool  # else the image column holds paths
    read: tuple[str, ...]  # dotted names of the other columns that are read


class Parquet:
    """`parquet:FILE_OR_DIR`: a row an image, in a column `image` of encoded bytes, `{bytes, path}` or paths.

    Columns `caption`, `captions`, `text`, `title`, `caption_1` … hold a string or a list of strings; `id`, `group` and
    `split` are what they say; other columns of text, numbers, times or lists of text are attributes, the rest is
    left out. `image_id` is the `id`, else the path of a path column, else the file's name and row (counted from 0).
    Files or folders named after splits (`train-00000-of-00004.parquet`) prescribe them.

    Parquet cannot be entered at a row: images read in order cost one pass, in random order up to a row group each.
    Reading holds a few dozen images and one or two pages, each of up to 1,024 rows as pyarrow writes them by default.
    Format: https://huggingface.co/docs/datasets/image_dataset, https://parquet.apache.org/docs/file-format/
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        paths = sorted(visible_files(path, "*.parquet")) if path.is_dir() else [path]
        if not paths:
            raise SourceError(f"Parquet files (*.parquet) below {path}", "none", "check the path")
        self._root = path if path.is_dir() else path.parent
        relative = [PurePosixPath(file.relative_to(self._root).as_posix()) for file in paths]
        self._splits = splits_of_files(relative)
        named = zip(paths, relative, strict=True)
        self._tables = [_describe(file, printable(str(name.with_suffix("")))) for file, name in named]
        self._images = _ImageReader()
        if not len(self):
            raise SourceError(f"rows in {path}", "none", "check that this is the right file")

    @property
    def name(self) -> str:
        """`parquet:FILE_OR_DIR`."""
        return f"parquet:{self.path}"

    def __len__(self) -> int:
        """How many images there are."""
        return sum(sum(table.group_rows) for table in self._tables)

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Pairs in the order of the files."""
        seen: set[str] = set()
        for table, split in zip(self._tables, self._splits, strict=True):
            number = -1
            for group, rows in enumerate(table.group_rows):
                row = -1
                for row, values in enumerate(_text_rows(table, group)):
                    number += 1
                    place = f"{table.path}, row {number}"
                    named = _id_of(table, values, place)
                    if named is not None:
                        if named in seen:
                            raise malformed(place, "each id once", f"{named} again", "put all captions into one row")
                        seen.add(named)
                    image = _image_of(table, values, self._images, group, row, place)
                    yield pair_of(named or f"{table.name}/{number}", image, values, place, split)
                if row + 1 != rows:
                    raise malformed(f"{table.path}", f"{rows:,} rows in row group {group}", f"{row + 1:,}", REPAIR)


def _id_of(table: _Table, values: dict[str, Any], place: str) -> str | None:
    """The row's own id, taken out of `values`."""
    named = values.pop("id", None)
    if named is None or named == "":
        return None if table.has_bytes else text_field(values, table.image_column, place)
    if not isinstance(named, str | int):
        raise malformed(place, "text or a number in column 'id'", named)
    return text_field({"id": str(named)}, "id", place)


def _image_of(
    table: _Table, values: dict[str, Any], images: _ImageReader, group: int, row: int, place: str
) -> ImageFile | ImageBytes:
    """The row's image, unread; its path leaves `values`, or becomes the attribute `path` where it names bytes."""
    image = values.pop(table.image_column, None)
    if not table.has_bytes:
        return image_inside(table.path.parent, text_field({"image": image}, "image", place), place)
    path = image.get("path") if isinstance(image, dict) else None
    if path:
        values.setdefault("path", path)
    return ImageBytes(_Row(images, table, group, row, path, place))


def _describe(path: Path, name: str) -> _Table:
    """Read the footer and choose the columns."""
    pa = _pyarrow()
    with _errors(path), pa.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        groups = tuple(file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
    place = f"{path}"
    if len(set(schema.names)) < len(schema.names):
        raise malformed(place, "distinct column names", ", ".join(schema.names), "rename the columns")
    lower = {column.lower(): column for column in schema.names}
    image = next((lower[column] for column in IMAGE_COLUMNS if column in lower), None)
    if image is None:
        received = ", ".join(schema.names) or "no columns"
        raise malformed(place, f"a column of images ({', '.join(IMAGE_COLUMNS)})", received, "rename the column")
    kind = schema.field(image).type
    columns = [column for column in schema.names if column != image and _is_simple(schema.field(column).type)]
    left_out = sorted(set(schema.names) - {image, *columns})
    if left_out:
        say(f"{path}: left out columns that are neither text nor numbers: {', '.join(left_out)}")
    if pa.types.is_struct(kind):
        parts = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
        if not _is_binary(parts.get("bytes", pa.null())):
            raise malformed(place, f"bytes in column {image!r}", f"{kind}", "write the images as encoded bytes")
        has_path = _is_text(parts.get("path", pa.null()))
        return _Table(path, name, groups, image, True, (*columns, *([f"{image}.path"] if has_path else [])))
    if _is_binary(kind) or _is_text(kind):
        binary = _is_binary(kind)
        return _Table(path, name, groups, image, binary, (*columns, *([] if binary else [image])))
    expected = f"bytes, a struct {{bytes, path}} or paths in column {image!r}"
    raise malformed(place, expected, f"{kind}", "write the images as encoded bytes")


def _text_rows(table: _Table, group: int) -> Iterator[dict[str, Any]]:
    """Every column but the images of one row group, a row at a time."""
    if not table.read:
        yield from ({} for _ in range(table.group_rows[group]))
        return
    parquet = _pyarrow().parquet
    with _errors(table.path), parquet.ParquetFile(table.path, **STREAMED) as file:
        for batch in file.iter_batches(TEXT_ROWS, row_groups=[group], columns=list(table.read)):
            yield from _in_utc(batch).to_pylist()


def _in_utc(batch: Any) -> Any:
    """A batch whose times are in UTC, to the microsecond; those without a zone, and dates at midnight, count as UTC."""
    pa = _pyarrow()
    moment = pa.timestamp("us", "UTC")
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("s"))
        if pa.types.is_timestamp(column.type):
            column = column.cast(moment, safe=column.type.unit != "ns")  # nanoseconds are cut off
        columns[name] = column
    return pa.RecordBatch.from_pydict(columns)


class _ImageReader:
    """Walks the image columns batch by batch and keeps the last few; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[_Batch] = deque(maxlen=KEPT_BATCHES)
        self._walk: Iterator[_Batch] = iter(())
        self._where: tuple[Path, int] | None = None  # the file and row group of the walk
        self._next = 0  # the first row that it has still to give

    def read(self, table: _Table, group: int, row: int) -> bytes | None:
        """The bytes of one row, None where they are null."""
        with self._lock:
            for batch in reversed(self._kept):
                if batch.holds(table.path, group, row):
                    return batch.bytes_of(row)
            if self._where != (table.path, group) or self._next > row:
                self._walk, self._where, self._next = _batches(table, group), (table.path, group), 0
            for batch in self._walk:
                self._kept.append(batch)
                self._next = batch.first + len(batch.images)
                if batch.holds(table.path, group, row):
                    return batch.bytes_of(row)
            self._where = None
        raise ImageError("damaged", f"row {row} of row group {group}", f"fewer in {table.path}", REPAIR)


@dataclass(frozen=True)
class _Batch:
    """Some consecutive images of a row group, encoded."""

    path: Path
    group: int
    first: int  # row of the group
    images: Any  # an arrow array

    def holds(self, path: Path, group: int, row: int) -> bool:
        return (path, group) == (self.path, self.group) and self.first <= row < self.first + len(self.images)

    def bytes_of(self, row: int) -> bytes | None:
        value = self.images[row - self.first].as_py()
        return value["bytes"] if isinstance(value, dict) else value


def _batches(table: _Table, group: int) -> Iterator[_Batch]:
    first = 0
    with _pyarrow().parquet.ParquetFile(table.path, **STREAMED) as file:
        columns = [table.image_column]
        for batch in file.iter_batches(IMAGE_ROWS, row_groups=[group], columns=columns, use_threads=False):
            yield _Batch(table.path, group, first, batch.column(0))
            first += batch.num_rows


@dataclass(frozen=True)
class _Row:
    """Reads the image of one row: its bytes, else the file that its path names beside the table."""

    images: _ImageReader = field(compare=False, repr=False)
    table: _Table
    group: int
    row: int
    path: str | None
    place: str

    def __call__(self) -> bytes:
        pa = _pyarrow()
        try:
            data = self.images.read(self.table, self.group, self.row)
        except (OSError, pa.ArrowException) as error:
            raise ImageError("unreadable", f"an image in {self.place}", f"{error}", REPAIR) from error
        if data is not None:
            return data
        if not self.path:
            raise ImageError("missing", f"an image in {self.place}", "null", "remove the row")
        try:
            return image_inside(self.table.path.parent, self.path, self.place).read()
        except SourceError as error:
            next_step = "write the images' bytes into the table, or paths relative to it"
            raise ImageError("missing", error.expected, error.received, next_step) from None


def _is_binary(kind: Any) -> bool:
    types = _pyarrow().types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_text(kind: Any) -> bool:
    types = _pyarrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_simple(kind: Any) -> bool:
    """Whether a column may hold captions or attributes."""
    types = _pyarrow().types
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_text(kind.value_type)
    numbers = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
    return _is_text(kind) or numbers or types.is_timestamp(kind) or types.is_date(kind)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """What pyarrow raises on a file that is no Parquet, or a damaged one, as `SourceError`."""
    pa = _pyarrow()
    try:
        yield
    except (OSError, OverflowError, UnicodeDecodeError, pa.ArrowException) as error:
        received = " ".join(str(error).split())[:300]
        raise SourceError(f"a readable Parquet file at {path}", received, REPAIR) from None


def _pyarrow() -> Any:
    """`pyarrow` with its `parquet` module, imported when a Parquet file is first opened."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SourceError("the package pyarrow", "none", "install requirements.txt") from None
    return pyarrow
