"""Reads the JSON and text files of a published model, none of them trusted; knows no format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from data.errors import PretrainedError

# Far above any published file (Gemma's tokenizer.json has 34 MB), and little enough to read.
MAX_FILE_BYTES = 256 * 1024 * 1024


def read_bytes(path: Path) -> bytes:
    """A file's content; `PretrainedError` for one of more than `MAX_FILE_BYTES`."""
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise _too_large(path, size)
    return path.read_bytes()


def read_gzip(path: Path) -> bytes:
    """A gzip file's content, which may not be larger than `MAX_FILE_BYTES` either."""
    try:
        with gzip.open(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (EOFError, gzip.BadGzipFile) as error:
        raise PretrainedError(f"gzip in {path}", str(error), "copy the file again") from None
    if len(data) > MAX_FILE_BYTES:
        raise _too_large(path, len(data))
    return data


def read_text(path: Path) -> str:
    """A file of UTF-8."""
    return as_text(read_bytes(path), path)


def as_text(data: bytes, path: Path) -> str:
    """Bytes of `path` as UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PretrainedError(f"UTF-8 in {path}", str(error)[:200], "copy the file again") from None


def read_object(path: Path) -> dict[str, Any]:
    """A file of one JSON object."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise PretrainedError(f"JSON in {path}", str(error)[:200], "copy the file again") from None
    if not isinstance(value, dict):
        raise PretrainedError(f"a JSON object in {path}", type(value).__name__, "copy the file again")
    return value


def _too_large(path: Path, size: int) -> PretrainedError:
    return PretrainedError(f"at most {MAX_FILE_BYTES:,} bytes in {path}", f"{size:,}", "copy the file again")
