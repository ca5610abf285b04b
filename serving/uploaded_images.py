"""Encoded images that clients uploaded, kept in the index by digest, for thumbnails and for the next model; knows no
vectors.

    INDEX/images/ab/SHA256

An image is on the disk before the change that names it, so for a moment nothing refers to it. Who keeps one holds a
shared lock of INDEX/images and makes the file young, also where it was there already; who removes old ones holds that
lock alone. So nobody is told that an image is kept which is then taken away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from data.durable import digest_bytes, sync_path, write_atomic

IMAGES = "images"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def keep_image(index: Path, data: bytes) -> str:
    """Put an encoded image on the disk and return its SHA-256; where it is already, it is only made young."""
    digest = digest_bytes(data)
    path = image_path(index, digest)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_path(path.parent.parent)
        sync_path(index)
    with _locked(index, fcntl.LOCK_SH):
        if path.is_file() and path.stat().st_size == len(data):
            os.utime(path)
        else:
            write_atomic(path, data)
    return digest


def image_path(index: Path, digest: str) -> Path:
    """Where the image with this digest is, if it was uploaded."""
    return index / IMAGES / digest[:2] / digest


def old_images(index: Path, before: float) -> Iterator[list[str]]:
    """The digests of the images that nobody has uploaded since `before`, seconds since 1970; by directory."""
    for directory in sorted((index / IMAGES).glob("??")):
        with os.scandir(directory) as found:
            yield [entry.name for entry in found if _DIGEST.fullmatch(entry.name) and entry.stat().st_mtime < before]


def remove_image(index: Path, digest: str, before: float) -> int:
    """Remove an image unless somebody has uploaded it since `before`; return how many bytes went."""
    path = image_path(index, digest)
    with _locked(index, fcntl.LOCK_EX):
        status = path.stat()
        if status.st_mtime >= before:
            return 0
        path.unlink()
    return status.st_size


def remove_parts(index: Path, before: float) -> None:
    """Remove what uploads that were killed before that moment left of files."""
    for path in (index / IMAGES).glob("??/.*.part"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                path.unlink()


@contextlib.contextmanager
def _locked(index: Path, how: int) -> Iterator[None]:
    descriptor = os.open(index / IMAGES, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
