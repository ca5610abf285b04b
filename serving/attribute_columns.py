"""The attributes of a snapshot's images in one memory-mapped Arrow file, and the rows that a filter leaves of them;
knows no index.

The file holds a record batch for each block of rows, and in it a row for each attribute's name and kind, with its
`Postings`. It is written in one pass whose memory is that of a block.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.attributes import is_unicode
from data.durable import naming_file
from data.errors import SnapshotError
from data.pairs import AttributeValue
from serving.attribute_postings import BLOCK_ROWS, ITEM, REAL, TEXT, BlockBuilder, Postings
from serving.filters import Filter
from serving.posting_blocks import PostingBlocks
from serving.vector_store import AttributeSummary

if TYPE_CHECKING:
    import pyarrow

# Recent filters' rows are kept, a bit for each; at a million images this is 500 filters.
CACHE_BYTES = 64 << 20


def write_columns(path: Path, attributes: Iterable[Mapping[str, AttributeValue]]) -> int:
    """Write the attributes of rows 0, 1, 2 … and return how many there were; `ValueError` as `BlockBuilder.add`."""
    import pyarrow as pa

    start = 0
    builder = BlockBuilder()
    with naming_file(path), pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _schema()) as writer:
        for held in attributes:
            builder.add(held)
            if builder.count == BLOCK_ROWS:
                writer.write_batch(_batch(start, builder.finish()))
                start, builder = start + BLOCK_ROWS, BlockBuilder()
        writer.write_batch(_batch(start, builder.finish()))
    return start + builder.count


class AttributeColumns:
    """The columns of `count` rows in the file `path`; safe to share between threads.

    `rows_of` gives the rows of images by their ids, unknown ones left out. `SnapshotError` for a file that is none.
    Example: `AttributeColumns(path, len(catalog), rows_of).rows_matching(parse("year >= 2010"))`.
    """

    def __init__(
        self, path: Path, count: int, rows_of: Callable[[Sequence[str]], Iterable[int]], cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._count, self._rows_of, self._cache_bytes = count, rows_of, cache_bytes
        self._blocks = _read(path)
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()  # by the filter's text, a bit for each row
        self._cached_bytes = 0

    def rows_matching(self, where: Filter) -> np.ndarray:
        """(N,) bool: the rows that `filters.matches` would take; the caller may change the array."""
        key = repr(where)  # unlike equality it tells 1 from True
        with self._lock:
            bits = self._cache.get(key)
            if bits is not None:
                self._cache.move_to_end(key)
        if bits is not None:
            return np.unpackbits(bits, count=self._count).view(bool)
        mask = self._blocks.matching(where, self._count, self._with_ids)
        if self._cache_bytes:
            self._keep(key, np.packbits(mask))
        return mask

    def summaries(self) -> list[AttributeSummary]:
        """See `PostingBlocks.summaries`."""
        return self._blocks.summaries()

    def _with_ids(self, image_ids: frozenset[str]) -> np.ndarray:
        return np.fromiter(self._rows_of(list(image_ids)), np.int64)

    def _keep(self, key: str, bits: np.ndarray) -> None:
        with self._lock:
            if key in self._cache:
                return
            self._cache[key] = bits
            self._cached_bytes += _size(key, bits)
            while self._cached_bytes > self._cache_bytes:
                self._cached_bytes -= _size(*self._cache.popitem(last=False))


def _size(key: str, bits: np.ndarray) -> int:
    return 4 * len(key) + bits.nbytes


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    return pa.schema(
        {
            "start": pa.int64(),  # the block's first row
            "attribute": pa.string(),
            "kind": pa.string(),
            "texts": pa.large_list(pa.large_string()),  # the values, in the column of their type
            "integers": pa.list_(pa.int64()),
            "reals": pa.list_(pa.float64()),
            "ends": pa.list_(pa.int32()),
            "rows": pa.list_(pa.uint16()),
        }
    )


def _batch(start: int, columns: Mapping[tuple[str, str], Postings]) -> pyarrow.RecordBatch:
    import pyarrow as pa

    schema, held = _schema(), list(columns.values())
    arrays = {
        "start": pa.array([start] * len(held), pa.int64()),
        "attribute": pa.array([attribute for attribute, _ in columns], pa.string()),
        "kind": pa.array([kind for _, kind in columns], pa.string()),
    }
    for name in ("texts", "integers", "reals"):
        lists = [postings.values if _values_column(kind) == name else [] for (_, kind), postings in columns.items()]
        arrays[name] = _lists(lists, schema.field(name).type)
    for name in ("ends", "rows"):
        arrays[name] = _lists([getattr(postings, name) for postings in held], schema.field(name).type)
    return pa.RecordBatch.from_arrays(list(arrays.values()), schema=schema)


def _lists(lists: Sequence[Sequence[Any]], kind: Any) -> Any:
    """An Arrow array of lists."""
    import pyarrow as pa

    offsets = np.cumsum([0, *map(len, lists)])
    flat = pa.concat_arrays(
        [pa.array([], kind.value_type), *(pa.array(each, kind.value_type) for each in map(_for_arrow, lists))]
    )
    if pa.types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(offsets.astype(np.int64), flat, kind)
    return pa.ListArray.from_arrays(offsets.astype(np.int32), flat, kind)


def _for_arrow(values: Sequence[Any]) -> Any:
    """Arrow takes lists and NumPy's arrays; a view of memory is one of the latter."""
    return np.asarray(values) if isinstance(values, memoryview) else values


def _read(path: Path) -> PostingBlocks:
    import pyarrow as pa

    blocks = PostingBlocks()
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            if reader.schema != _schema():
                raise pa.ArrowInvalid("other columns than this version writes")
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (OSError, pa.ArrowException) as error:
        received = f"{path.name} that Arrow refuses: {' '.join(str(error).split())[:200]}"
        raise SnapshotError("a file of attributes", received, "build the index again") from None
    for batch in batches:
        columns = {name: batch.column(name) for name in batch.schema.names}
        kinds = zip(columns["attribute"].to_pylist(), columns["kind"].to_pylist(), strict=True)
        block = {
            (attribute, kind): Postings(
                _values(columns[_values_column(kind)][row].values),
                columns["ends"][row].values.to_numpy(),
                columns["rows"][row].values.to_numpy(),
            )
            for row, (attribute, kind) in enumerate(kinds)
        }
        if block:
            blocks.add(columns["start"][0].as_py(), block)
    return blocks


def _values_column(kind: str) -> str:
    return "texts" if kind in (TEXT, ITEM) else "reals" if kind == REAL else "integers"


def _values(array: Any) -> Sequence[Any]:
    """An Arrow array as a sequence of Python values, which NumPy's would not compare exactly."""
    return _Texts(array) if str(array.type) == "large_string" else memoryview(array.to_numpy())


class _Texts(Sequence[str]):
    """Texts that are made when they are looked at."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, place: Any) -> Any:
        return self._array[place].as_py()

    def __iter__(self) -> Any:
        return iter(self._array.to_pylist())

    def places(self, wanted: set[str]) -> Iterable[int]:
        """Where the texts `wanted` stand, by Arrow's hashing."""
        import pyarrow as pa
        import pyarrow.compute as pc

        asked = pa.array([text for text in wanted if is_unicode(text)], pa.large_string())
        return np.flatnonzero(pc.is_in(self._array, value_set=asked).to_numpy(zero_copy_only=False)).tolist()
