"""Reads NumPy's .npy and .npz files, in any thread; knows nothing of what is in them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

R = TypeVar("R")

_ATTEMPTS = 50


def load_array(path: Path, mapped: bool = False) -> Any:
    """The array in an .npy file, read-only and not read yet if it is `mapped`; never objects.

    `OSError`, `ValueError` or `EOFError` for what is none. An .npz file gives what `numpy.load` gives.
    """
    return undisturbed(lambda: np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False))


def load_arrays(content: bytes | Path) -> dict[str, np.ndarray]:
    """The arrays in an .npz file, or in the bytes of one, by their names; never objects.

    `OSError`, `ValueError`, `EOFError` or `zipfile.BadZipFile` for what is none.
    """

    def read() -> dict[str, np.ndarray]:
        stored = np.load(io.BytesIO(content) if isinstance(content, bytes) else content, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ValueError("one array instead of an archive of them")
        with stored:
            return dict(stored)

    return undisturbed(read)


def undisturbed(read: Callable[[], R]) -> R:
    """What `read` gives, tried again when another thread came between.

    NumPy parses the header of a file as Python. Before 3.11.8, Python counts the depth of what it parses for all
    threads together, and raises `SystemError` when another thread, such as one that logs an exception, comes between
    (https://github.com/python/cpython/issues/106905).
    """
    for _ in range(_ATTEMPTS):
        try:
            return read()
        except SystemError as error:
            disturbed = error
    raise disturbed
