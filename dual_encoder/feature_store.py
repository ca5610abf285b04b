"""Rows of numbers on disk by the digest of what they were computed from, mapped into memory; knows no backbone.

A store is a directory with one growing `rows.npy`, any reader's array, and `digests`, which names its rows. What is
there is never written again: rows are added at the end and reach the disk before their digests do, so that a process
that is killed, or two at the same time, leave only whole rows. Equal content has one row, whichever data set it is of.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.array_files import undisturbed
from data.console import say
from data.durable import naming_file

_RECORD = np.dtype([("digest", "S32"), ("empty", "u1")])  # empty: there is nothing to compute a row from
Digests = np.ndarray  # (N,) S32, zeros where there is no digest


class MappedRows:
    """Some rows (N, …) of an array in a file, read when they are asked for; a row without content is zeros."""

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self.array, self.rows = array, rows  # of which -1 has no content
        self.shape, self.dtype = (len(rows), *array.shape[1:]), array.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Any) -> np.ndarray:
        if isinstance(chosen, int | np.integer):
            return self[[int(chosen)]][0]
        places = np.arange(len(self))[chosen]
        out = np.empty((len(places), *self.shape[1:]), self.dtype)
        take_rows(self, places, out)
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def only(self, chosen: Sequence[int]) -> MappedRows:
        """Some of these rows, still in their file."""
        return MappedRows(self.array, self.rows[np.asarray(chosen, np.int64)])

    @classmethod
    def joined(cls, parts: Sequence[MappedRows]) -> MappedRows:
        """Rows of one store that were asked for one after another, which the latest array holds all of."""
        latest = max(parts, key=lambda part: len(part.array) if part.shape[1] else 0)
        return cls(latest.array, np.concatenate([part.rows for part in parts]))


def take_rows(array: np.ndarray | MappedRows, rows: np.ndarray, out: np.ndarray) -> None:
    """Write `array[rows]` to `out`, without a copy in between."""
    if isinstance(array, MappedRows):
        rows = array.rows[rows]
        take_rows(array.array, rows, out)
        out[rows < 0] = 0
    else:
        np.take(array, rows, axis=0, out=out, mode="clip")  # without a mode, NumPy gathers into a copy first


class FeatureStore:
    """The store in `directory`, made where there is none; one that does not make sense is begun anew."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._rows, self._digests = directory / "rows.npy", directory / "digests"
        self._known = np.empty(0, _RECORD)
        self._refresh()
        self._foreign: set[bytes] = set()  # what other processes have added since

    def missing(self, digests: Digests) -> np.ndarray:
        """The first positions, in order, of digests that have no row; those that are zeros never have one."""
        absent = np.flatnonzero((self._find(digests) < 0) & (digests != b""))
        _, first = np.unique(digests[absent], return_index=True)
        return absent[np.sort(first)]

    def add(self, digests: Digests, rows: np.ndarray | None, empty: np.ndarray) -> None:
        """Append rows (N, …) of digests that were `missing`, and flush them.

        Those that another process has added meanwhile are left out. `empty` (N,) bool marks rows without content; None
        for rows is nothing but such, which cannot begin a store.
        """
        with self._alone():
            before = len(self._known)
            self._refresh()
            self._foreign.update(self._known["digest"][before:].tolist())
            if rows is None and not len(self._known):
                return
            shape, dtype = (rows.shape[1:], rows.dtype) if rows is not None else self._row()
            new = np.array([digest not in self._foreign for digest in digests.tolist()])
            records = np.empty(int(new.sum()), _RECORD)
            records["digest"], records["empty"] = digests[new], empty[new]
            body = np.zeros((len(records), *shape), dtype) if rows is None else np.ascontiguousarray(rows[new])
            known = np.concatenate([self._known, records])
            header = _header(dtype, (len(known), *shape))
            with _from(self._rows, len(header) + len(self._known) * _row_bytes(shape, dtype)) as file:
                file.write(body.tobytes())
                file.seek(0)
                file.write(header)
            with _from(self._digests, self._known.nbytes) as file:
                file.write(records.tobytes())
            self._known = known

    def rows(self, digests: Digests) -> MappedRows:
        """The rows of digests; one that is zeros, unknown or of an empty row has no content."""
        found = self._find(digests)
        if not len(self._known):
            return MappedRows(np.zeros((1, 0), np.float32), found)
        found[self._known["empty"][found] != 0] = -1
        shape, dtype, offset = _read_header(self._rows)
        rows = (len(self._known), *shape[1:])
        return MappedRows(np.memmap(self._rows, dtype, "r", offset, rows), found)

    def _find(self, digests: Digests) -> np.ndarray:
        """The row of each digest, -1 where there is none."""
        if not len(self._known):
            return np.full(len(digests), -1)
        names = np.ascontiguousarray(self._known["digest"])
        order = np.argsort(names, kind="stable")
        place = np.minimum(np.searchsorted(names, digests, sorter=order), len(names) - 1)
        return np.where((names[order[place]] == digests) & (digests != b""), order[place], -1)

    def _refresh(self) -> None:
        """Learn which rows there are now."""
        try:
            shape, dtype, offset = _read_header(self._rows)
            whole = (self._rows.stat().st_size - offset) // _row_bytes(shape[1:], dtype)
            count = min(self._digests.stat().st_size // _RECORD.itemsize, whole)
            self._known = np.fromfile(self._digests, _RECORD, count)
        except FileNotFoundError:
            self._known = np.empty(0, _RECORD)
        except (ValueError, EOFError):
            say(f"damaged cached features are computed again: {self._rows}")
            self._known = np.empty(0, _RECORD)

    def _row(self) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of one row."""
        shape, dtype, _ = _read_header(self._rows)
        return shape[1:], dtype

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process adds rows."""
        with (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def digests_of(hexadecimal: Sequence[str]) -> Digests:
    """SHA-256 digests as a store takes them; what is none, such as `unreadable:REASON`, is zeros."""
    return np.array([bytes.fromhex(text) if len(text) == 64 else b"" for text in hexadecimal], "S32")


@contextlib.contextmanager
def _from(path: Path, offset: int) -> Iterator[IO[bytes]]:
    """A file to be written from `offset` on, what was there being no part of it; flushed to the disk at the end."""
    with naming_file(path), path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(offset)
        file.seek(offset)
        yield file
        file.flush()
        os.fsync(file.fileno())


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Of an .npy file; its length is the same for any number of rows, for NumPy leaves room for them to grow."""
    buffer = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def _read_header(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and offset of the rows; `ValueError` for a file that a store did not write."""

    def read() -> tuple[tuple[int, ...], np.dtype, int]:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("not of this version")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if fortran or dtype.hasobject or len(shape) < 2:
                raise ValueError("not rows of numbers")
            return shape, dtype, file.tell()

    return undisturbed(read)


def _row_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape)) * dtype.itemsize
