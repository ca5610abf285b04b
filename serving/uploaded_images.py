"""Encoded images that clients uploaded, kept in the index by digest, for thumbnails and for the next model; knows no
vectors."""

from __future__ import annotations

from pathlib import Path

from data.durable import digest_bytes, write_atomic

IMAGES = "images"


def keep_image(index: Path, data: bytes) -> str:
    """Put an encoded image on the disk and return its SHA-256; nothing to do where it is already."""
    digest = digest_bytes(data)
    path = image_path(index, digest)
    if not path.is_file() or path.stat().st_size != len(data):
        write_atomic(path, data)
    return digest


def image_path(index: Path, digest: str) -> Path:
    """Where the image with this digest is, if it was uploaded."""
    return index / IMAGES / digest[:2] / digest
