"""Images are read in threads, yet arrive in order, a few at a time, with the bad ones named."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import ImageLimits, ImagePreprocessing, load_pixels
from data.loading import content_digests, decoded_batches, map_ordered
from data.pairs import ImageBytes, ImageFile


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (6, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_results_come_in_order_whoever_finishes_first() -> None:
    second_done = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second_done.wait(timeout=30), "the second item runs while the first one waits"
        if number == 1:
            second_done.set()
        return number * number

    assert list(map_ordered(work, range(20), ahead=4, workers=2)) == [n * n for n in range(20)]


def test_items_are_taken_a_few_ahead_only() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = map_ordered(str, items(), ahead=5)
    assert next(results) == "0"
    assert len(taken) <= 6
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 6


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_ordered(lambda number: 1 // number, [2, 1, 0, 1], ahead=2))


def loading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loading")]


def test_no_thread_is_left_by_an_iterator_that_is_closed_dropped_or_ends_in_an_error() -> None:
    started = threading.Event()

    def work(number: int) -> int:
        started.set()
        if number == 3:
            raise ZeroDivisionError
        return number

    closed = map_ordered(work, range(100), ahead=8, workers=3)
    next(closed)
    assert started.is_set()
    assert loading_threads()
    closed.close()  # type: ignore[attr-defined]
    assert loading_threads() == []

    dropped = map_ordered(work, range(100), ahead=8, workers=3)
    next(dropped)
    del dropped
    assert loading_threads() == []

    with pytest.raises(ZeroDivisionError):
        list(map_ordered(work, range(100), ahead=8, workers=3))
    assert loading_threads() == []


def test_an_error_of_the_items_themselves_reaches_the_caller() -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        raise OSError("the disk is gone")

    results: list[str] = []
    with pytest.raises(OSError, match="the disk is gone"):
        results.extend(map_ordered(str, items(), ahead=3))
    assert loading_threads() == []


def test_work_that_was_not_started_is_dropped_when_nobody_waits_for_it() -> None:
    release, done = threading.Event(), []

    def work(number: int) -> int:
        if number:
            release.wait(timeout=30)
        done.append(number)
        return number

    results = map_ordered(work, range(100), ahead=50, workers=1)
    assert next(results) == 0
    release.set()
    results.close()  # type: ignore[attr-defined]
    assert len(done) < 50


def test_digests_are_of_the_bytes_and_unreadable_images_say_why(tmp_path: Path) -> None:
    images = [ImageBytes(lambda: b"abc"), ImageFile(tmp_path / "none.jpg"), ImageBytes(lambda: bytes(100))]
    digests = list(content_digests(images, ImageLimits(max_bytes=50)))
    assert digests == [hashlib.sha256(b"abc").hexdigest(), "unreadable:missing", "unreadable:too_many_bytes"]


def test_batches_are_filled_with_good_images_and_name_the_bad() -> None:
    preprocessing = ImagePreprocessing(size=8)
    data = [png(0), b"bad", png(50), png(100), b"", png(150), png(200)]
    batches = list(decoded_batches([ImageBytes(lambda d=d: d) for d in data], preprocessing, batch_size=3))  # type: ignore[misc]
    assert [batch.positions for batch in batches] == [[0, 2, 3], [5, 6]]
    assert [[(row, error.reason) for row, error in batch.rejected] for batch in batches] == [
        [(1, "not_an_image")],
        [(4, "not_an_image")],
    ]
    for batch in batches:
        assert batch.pixels.dtype == np.float32
        for row, pixels in zip(batch.positions, batch.pixels, strict=True):
            np.testing.assert_array_equal(pixels, load_pixels(data[row], preprocessing))


def test_a_batch_of_bad_images_is_empty_but_shaped() -> None:
    (batch,) = decoded_batches([ImageBytes(lambda: b"bad")], ImagePreprocessing(size=8))
    assert batch.pixels.shape == (0, 8, 8, 3)
    assert list(decoded_batches([], ImagePreprocessing())) == []
