"""Vectors in a file: mapped into memory to be scanned, and read row by row to be compared; knows no index.

A search touches a few rows all over the file. Through the mapping each touch would bring the pages around it into the
process's resident memory, which after some thousand searches is most of the file; reading leaves them to the kernel's
cache, which gives them back when memory is short.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np

from data.array_files import load_array

FEW = 2_048  # rows that are read one by one; more are a scan


class MappedVectors(np.memmap):
    """(N, W) vectors of a .npy file, read-only. Slices of it are plain mappings."""

    descriptor: int | None = None  # the open file, of the array of all rows


def map_vectors(path: Path) -> MappedVectors:
    """The vectors in a .npy file; `OSError` or `ValueError` when it is none."""
    vectors = load_array(path, mapped=True).view(MappedVectors)
    descriptor = os.open(path, os.O_RDONLY)
    weakref.finalize(vectors, os.close, descriptor)
    vectors.descriptor = descriptor
    return vectors


def rows_of(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`vectors[rows]`; `OSError` when the file has been cut short."""
    if not isinstance(vectors, MappedVectors) or vectors.descriptor is None or len(rows) > FEW:
        return vectors[rows]
    size, start, read = vectors.strides[0], vectors.offset, os.pread
    taken = b"".join([read(vectors.descriptor, size, start + row * size) for row in rows.tolist()])
    if len(taken) != size * len(rows):
        raise OSError(f"rows {rows.min():,} to {rows.max():,} are not in the file of vectors any more")
    return np.frombuffer(taken, vectors.dtype).reshape(len(rows), vectors.shape[1])
