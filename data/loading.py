"""Reads and decodes many images in threads, in order and with bounded memory; knows no model."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from data.console import progress
from data.digest_memo import DigestMemo, FileStamp
from data.durable import digest_bytes
from data.errors import ImageError
from data.images import DEFAULT_LIMITS, ImageLimits, ImagePreprocessing, load_resized, normalise_batch
from data.pairs import EncodedImage, ImageFile, ImageTextPair

A = TypeVar("A")
B = TypeVar("B")


@dataclass
class DecodedBatch:
    """Images that decoded, with their positions, and those met on the way that did not, with the reason."""

    positions: list[int] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=lambda: np.empty((0,)))  # (B, S, S, 3) float32
    rejected: list[tuple[int, ImageError]] = field(default_factory=list)


def available_cores() -> int:
    """The cores this process may use, which a container or `taskset` can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_ordered(function: Callable[[A], B], items: Iterable[A], ahead: int, workers: int | None = None) -> Generator[B]:
    """`map` in a thread pool, in order, with at most `ahead` results waiting; its threads have ended when it is closed.

    Pillow, file reads and hashing let other threads run meanwhile.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(workers or available_cores(), thread_name_prefix="loading") as pool:
        waiting: deque[Future[B]] = deque()
        try:
            for item in itertools.islice(remaining, max(1, ahead)):
                waiting.append(pool.submit(function, item))
            while waiting:
                result = waiting.popleft().result()
                for item in itertools.islice(remaining, 1):
                    waiting.append(pool.submit(function, item))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def content_digests(images: Iterable[EncodedImage], limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[str]:
    """SHA-256 of each image's bytes, or `unreadable:REASON`; a file that did not change is read once only."""

    def digest(image: EncodedImage) -> str:
        try:
            return digest_bytes(image.read(limits))
        except ImageError as error:
            return f"unreadable:{error.reason}"

    remaining = iter(images)
    with DigestMemo() as memo:
        while chunk := list(itertools.islice(remaining, 512)):
            stamps = [FileStamp.of(image.path) if isinstance(image, ImageFile) else None for image in chunk]
            known = memo.recall([stamp if stamp and stamp.size <= limits.max_bytes else None for stamp in stamps])
            read = map_ordered(digest, (image for image, found in zip(chunk, known, strict=True) if not found), 64)
            digests = [found or next(read) for found in known]
            memo.note(stamps, [None if found else new for found, new in zip(known, digests, strict=True)])
            yield from digests


def with_digests(pairs: Iterable[ImageTextPair]) -> list[ImageTextPair]:
    """The pairs with the digests of their images, read where nobody has yet."""
    pairs = list(pairs)
    missing = [position for position, pair in enumerate(pairs) if pair.digest is None]
    found = content_digests(pairs[position].image for position in missing)
    for position, digest in zip(missing, progress(found, "reading images", len(missing), quiet=True), strict=True):
        pairs[position] = dataclasses.replace(pairs[position], digest=digest)
    return pairs


def decoded_batches(
    images: Iterable[EncodedImage],
    preprocessing: ImagePreprocessing,
    batch_size: int = 32,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Iterator[DecodedBatch]:
    """Read and decode images, `batch_size` good ones at a time, while the caller works on the batch before.

    At most two batches wait, as bytes; they become float32 when they are asked for.
    """

    def load(image: EncodedImage) -> np.ndarray | ImageError:
        try:
            return load_resized(image.read(limits), preprocessing, limits)
        except ImageError as error:
            return error

    batch, good = DecodedBatch(), []
    for position, result in enumerate(map_ordered(load, images, ahead=2 * batch_size)):
        if isinstance(result, ImageError):
            batch.rejected.append((position, result))
            continue
        batch.positions.append(position)
        good.append(result)
        if len(good) == batch_size:
            batch.pixels = normalise_batch(good, preprocessing)
            yield batch
            batch, good = DecodedBatch(), []
    if good or batch.rejected:
        batch.pixels = normalise_batch(good, preprocessing)
        yield batch
