"""Vectors of images from files that other programs wrote, NumPy or Parquet, checked row by row; knows no model and no
index, and unpickles nothing.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from data.array_files import load_array
from data.attributes import attributes_from_json
from data.errors import SourceError
from serving.catalog import CatalogEntry
from serving.exact_index import UNIT_TOLERANCE
from serving.snapshot import IMPORTED
from serving.source_entries import DistinctIds, as_unicode, checked_attributes, is_storable_id

AT_ONCE = 4_096  # rows
ID_NAMES, VECTOR_NAMES, CAPTION_NAMES = ("image_id", "id"), ("vector", "embedding"), ("captions", "caption")

Rows = tuple[list[dict[str, Any]], np.ndarray]  # what is said of some images, and their vectors (B, D)


@dataclass
class VectorFile:
    """Rows of a file as entries and vectors, of `dimension` numbers each; `normalised` counts those made unit length.

    `SourceError` names the row of what cannot be taken: another dimension or type, a number that is not finite, a
    vector of zeros, an id that is repeated or cannot be stored. Example: `for entries, vectors in
    VectorFile.numpy(Path("x.npy"), Path("ids.txt"), 384)`.
    """

    name: str
    dimension: int
    count: int
    rows: Iterable[Rows]
    normalised: int = 0

    @classmethod
    def numpy(cls, vectors: Path, ids: Path, dimension: int) -> VectorFile:
        """`vectors` holds (N, D) floats; `ids` a line for each: an id, or in a .jsonl file an object."""
        try:
            array = load_array(vectors, mapped=True)
        except (OSError, ValueError, EOFError) as error:
            raise SourceError(
                f"a .npy file of numbers in {vectors}", f"{error}"[:200], "write it with numpy.save"
            ) from None
        if not isinstance(array, np.ndarray) or array.shape[1:] != (dimension,) or array.dtype.kind != "f":
            received = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive of arrays"
            raise SourceError(f"an array (N, {dimension}) of floats in {vectors}", received, "write such a one")
        return cls(f"{IMPORTED}{vectors}", dimension, len(array), _numpy_rows(array, ids))

    @classmethod
    def parquet(cls, path: Path, dimension: int) -> VectorFile:
        """Columns `image_id` or `id` and `vector` or `embedding`; as there are: `captions`, `attributes`, `digest`,
        `location`, as `export` writes them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"a Parquet file in {path}", f"{error}"[:200], "check the path") from None
        for names in (ID_NAMES, VECTOR_NAMES):
            if not set(names) & set(file.schema_arrow.names):
                columns = ", ".join(file.schema_arrow.names)
                raise SourceError(f"a column {' or '.join(names)} in {path}", columns, "rename a column")
        vector = next(name for name in VECTOR_NAMES if name in file.schema_arrow.names)
        kind = file.schema_arrow.field(vector).type
        if not pa.types.is_floating(getattr(kind, "value_type", None) or pa.null()):
            raise SourceError(f"lists of floats as {vector} in {path}", str(kind), "write such a column")
        return cls(f"{IMPORTED}{path}", dimension, file.metadata.num_rows, _parquet_rows(file, path, dimension))

    def __iter__(self) -> Iterator[tuple[list[CatalogEntry], np.ndarray]]:
        """Entries with the file as their origin, and vectors (B, D) float32 of unit length."""
        start = 0
        with DistinctIds() as ids:
            for rows, vectors in self.rows:
                entries = [self._entry(row, start + number, ids) for number, row in enumerate(rows)]
                yield entries, self._unit(vectors, start, entries)
                start += len(rows)

    def _entry(self, row: Mapping[str, Any], number: int, ids: DistinctIds) -> CatalogEntry:
        image_id = next((row[name] for name in ID_NAMES if name in row), None)
        if isinstance(image_id, int) and not isinstance(image_id, bool):
            image_id = str(image_id)
        if not isinstance(image_id, str) or not is_storable_id(image_id):
            raise self._refused(number, "an id of 1 to 1,024 characters", ascii(image_id))
        if not ids.add(image_id):
            raise self._refused(number, "ids that occur once", f"{image_id!r} again")
        captions = next((row[name] for name in CAPTION_NAMES if row.get(name)), ())
        captions = (captions,) if isinstance(captions, str) else captions
        attributes, digest, location = (row.get(name) or "" for name in ("attributes", "digest", "location"))
        if not isinstance(captions, list | tuple) or not all(isinstance(caption, str) for caption in captions):
            raise self._refused(number, "captions as text", repr(captions))
        if not isinstance(digest, str) or not re.fullmatch("([0-9a-f]{64})?", digest):
            raise self._refused(number, "a SHA-256 in hexadecimal, or nothing, as digest", repr(digest))
        if not isinstance(location, str):
            raise self._refused(number, "a path as location", repr(location))
        return CatalogEntry(
            image_id,
            digest,
            as_unicode(location),
            tuple(map(as_unicode, captions)),
            checked_attributes(image_id, self._attributes(attributes, number)),
            origin=as_unicode(self.name),
        )

    def _attributes(self, given: Any, number: int) -> dict[str, Any]:
        try:
            found = json.loads(given) if isinstance(given, str) and given else given or {}
            if isinstance(found, list):  # Arrow's maps
                found = dict(found)
            times = {name: value for name, value in found.items() if isinstance(value, datetime)}
            others = {name: value for name, value in found.items() if value is not None and name not in times}
            return {**attributes_from_json(others), **times}
        except (ValueError, TypeError, AttributeError, KeyError):
            raise self._refused(number, "attributes as an object", repr(given)[:200]) from None

    def _unit(self, vectors: np.ndarray, start: int, entries: list[CatalogEntry]) -> np.ndarray:
        vectors = np.array(vectors, np.float64)
        lengths = np.linalg.norm(vectors, axis=1)
        if len(wrong := np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))):
            row, length = int(wrong[0]), lengths[wrong[0]]
            received = "a vector of zeros" if length == 0 else "one that is not"
            raise self._refused(start + row, f"a vector of finite numbers for {entries[row].image_id!r}", received)
        other = np.abs(lengths - 1) >= UNIT_TOLERANCE  # others stay as they are: what was exported comes back the same
        vectors[other] /= lengths[other, np.newaxis]
        self.normalised += int(other.sum())
        return vectors.astype(np.float32)

    def _refused(self, number: int, expected: str, received: str) -> SourceError:
        return SourceError(f"{expected} in row {number:,} (from 0) of {self.name}", received, "correct or leave it out")


def _numpy_rows(array: np.ndarray, ids: Path) -> Iterator[Rows]:
    lines = _lines(ids)
    for start in range(0, len(array), AT_ONCE):
        vectors = array[start : start + AT_ONCE]
        rows = list(itertools.islice(lines, len(vectors)))
        if len(rows) < len(vectors):
            raise _other_count(ids, len(array), start + len(rows))
        yield rows, vectors
    if more := sum(1 for _ in lines):
        raise _other_count(ids, len(array), len(array) + more)


def _other_count(ids: Path, expected: int, received: int) -> SourceError:
    return SourceError(f"{expected:,} lines in {ids}, one for each vector", f"{received:,}", "give both the same rows")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    objects = path.suffix == ".jsonl"
    place = f"{'objects' if objects else 'UTF-8 text'} in {path}"
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                text = line.removesuffix("\n").removesuffix("\r")
                row = json.loads(text) if objects else {ID_NAMES[0]: text}
                if not isinstance(row, dict):
                    raise SourceError(place, f"{text[:80]!r} in line {number:,}", "correct the file")
                yield row
    except OSError as error:
        raise SourceError(f"a file with an id a line in {path}", f"{error.strerror}", "check the path") from None
    except ValueError as error:  # malformed JSON or UTF-8
        raise SourceError(place, f"{error}", "correct the file") from None


def _parquet_rows(file: Any, path: Path, dimension: int) -> Iterator[Rows]:
    import pyarrow.compute as pc

    known = (*ID_NAMES, *VECTOR_NAMES, *CAPTION_NAMES, "attributes", "digest", "location")
    columns = [name for name in file.schema_arrow.names if name in known]
    vector = next(name for name in VECTOR_NAMES if name in columns)
    start = 0
    for batch in file.iter_batches(AT_ONCE, columns=columns):
        column = batch.column(vector)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        if len(wrong := np.flatnonzero(lengths != dimension)):
            place = f"row {start + wrong[0]:,} (from 0) of {path}"
            raise SourceError(
                f"a vector of {dimension} numbers in {place}", f"{lengths[wrong[0]]}", "correct or leave it out"
            )
        numbers = column.flatten().to_numpy(zero_copy_only=False)  # missing ones as NaN
        yield batch.drop_columns([vector]).to_pylist(), numbers.reshape(len(column), dimension)
        start += len(column)
