"""Decodes images that nobody trusts in processes of their own, so that a decoder that crashes, hangs or is taken over
harms no one; knows no model.

Example: `pixels = await IsolatedDecoder().pixels(data, runtime.preprocessing)`.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import ImageError, UserError
from data.images import DEFAULT_LIMITS, ImagePreprocessing, normalise
from serving.decoding_worker import ANSWER, PIXELS, REFUSED, REQUEST, THUMBNAIL
from serving.work_pool import WorkPool

# The slowest image within the limits takes about 3 s on a busy core.
SECONDS = 20.0
START_SECONDS = 60.0
MAX_WAITING = 256

# Where this project's packages are: all that a worker can import beside what is installed.
_ROOT = Path(__file__).resolve().parent.parent

_log = logging.getLogger(__name__)


class IsolatedDecoder:
    """As many worker processes as there are cores, started at once and ready a moment later.

    One that dies or takes too long is replaced, and its image is refused as any that does not decode.
    """

    def __init__(self, workers: int | None = None, seconds: float = SECONDS, max_waiting: int = MAX_WAITING) -> None:
        count = workers or len(os.sched_getaffinity(0))
        self._seconds = seconds
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        for _ in range(count):
            worker = _Worker()
            self._workers.append(worker)
            self._idle.put(worker)
        self._threads = WorkPool("decoding", max_waiting, count)

    async def pixels(self, data: bytes, preprocessing: ImagePreprocessing, deadline: float | None = None) -> np.ndarray:
        """Encoded image to a backbone's input, (S, S, 3) float32, the same as `data.images.load_pixels` gives.

        `ImageError`; `Overloaded` when too much waits, `TimeoutError` when `deadline` (event-loop time) passes first.
        """
        if len(data) > DEFAULT_LIMITS.max_bytes:  # no need to send it
            limit = f"at most {DEFAULT_LIMITS.max_bytes:,} bytes"
            raise ImageError("too_many_bytes", limit, f"{len(data):,} bytes", "send a smaller copy")
        return await self._threads.run(lambda: self._decoded(data, preprocessing), deadline)

    async def thumbnail(self, data: bytes, side: int, quality: int, deadline: float | None = None) -> bytes:
        """A WebP of at most `side` pixels a side, the same as `data.thumbnails.thumbnail` gives; raises as `pixels`."""

        def made() -> bytes:
            worker = self._idle.get()
            try:
                return worker.thumbnail(data, side, quality, self._seconds)
            finally:
                self._idle.put(worker)

        return await self._threads.run(made, deadline)

    @property
    def process_ids(self) -> list[int]:
        """Those of the workers."""
        return [worker.process_id for worker in self._workers]

    def check(self) -> None:
        """Wait until the workers are ready; `UserError` when this machine does not let them run. Before other use."""
        try:
            for worker in self._workers:
                worker.wait_until_ready()
        except (OSError, EOFError) as error:
            next_step = "see the lines above; check that processes may be started"
            raise UserError("processes to decode images in", f"none ({error or 'it ended'})", next_step) from None

    def close(self) -> None:
        """Stop threads and processes."""
        self._threads.close()
        for worker in self._workers:
            worker.close()

    def _decoded(self, data: bytes, preprocessing: ImagePreprocessing) -> np.ndarray:
        worker = self._idle.get()
        try:
            resized = worker.decode(data, preprocessing, self._seconds)
        finally:
            self._idle.put(worker)
        return normalise(resized, preprocessing)


class _Worker:
    """One process and the socket to it; used by one thread at a time."""

    def __init__(self) -> None:
        self._start()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def decode(self, data: bytes, preprocessing: ImagePreprocessing, seconds: float) -> np.ndarray:
        """The resized image, (S, S, 3) uint8."""
        kind, answer = self._asked(data, preprocessing.to_config(), seconds)
        size = preprocessing.size
        if kind == PIXELS and len(answer) == 3 * size * size:
            return np.frombuffer(answer, np.uint8).reshape(size, size, 3)
        raise self._refusal(kind, answer)

    def thumbnail(self, data: bytes, side: int, quality: int, seconds: float) -> bytes:
        """The image as a small WebP."""
        kind, answer = self._asked(data, {"thumbnail": [side, quality]}, seconds)
        if kind == THUMBNAIL and answer[:4] == b"RIFF" and answer[8:12] == b"WEBP":
            return bytes(answer)
        raise self._refusal(kind, answer)

    def _asked(self, data: bytes, wanted: dict[str, Any], seconds: float) -> tuple[int, bytearray]:
        settings = json.dumps(wanted).encode()
        if self._process.poll() is not None:  # while it did nothing, so that this image is not at fault
            self._replace("ended")
        try:
            self.wait_until_ready()
            self._deadline = time.monotonic() + seconds
            self._send(REQUEST.pack(len(settings), len(data)) + settings)
            self._send(data)
            return self._receive()
        except TimeoutError:
            self._replace("took too long")
            raise _refused("takes too long", "one that decodes in time") from None
        except (OSError, EOFError):
            self._replace("ended")
            raise _refused("ends its decoder", "one that decodes") from None

    def _refusal(self, kind: int, answer: bytearray) -> ImageError:
        """What the worker says instead of an image."""
        if kind == REFUSED and (error := _told(answer)) is not None:
            return error
        self._replace("said what no worker says")  # one that was taken over may say anything
        return _refused("confuses its decoder", "one that decodes")

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        """Never by a fork of this process: its threads and what it holds are no business of the worker."""
        self._socket, theirs = socket.socketpair()
        # Nothing is inherited but what Python needs to find its packages.
        environment = {"PYTHONPATH": str(_ROOT), "PATH": os.defpath, "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "serving.decoding_worker", str(os.getpid())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd=_ROOT,
                env=environment,
                start_new_session=True,
            )
        self._ready = False

    def wait_until_ready(self) -> None:
        """Return when it can decode; an `OSError` or `EOFError` when it cannot be started."""
        if not self._ready:
            self._deadline = time.monotonic() + START_SECONDS
            self._receive()
            self._ready = True

    def _replace(self, what: str) -> None:
        self.close()
        _log.warning("a process that decodes images %s and is replaced (exit %s)", what, self._process.returncode)
        self._start()

    def _send(self, data: bytes) -> None:
        self._limit_time()
        self._socket.sendall(data)

    def _receive(self) -> tuple[int, bytearray]:
        kind, size = ANSWER.unpack(self._read(ANSWER.size))
        return kind, self._read(min(size, 1 << 26))

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view, at = memoryview(data), 0
        while at < size:
            self._limit_time()
            count = self._socket.recv_into(view[at:])
            if not count:
                raise EOFError
            at += count
        return data

    def _limit_time(self) -> None:
        """Give the socket what is left of the time."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._socket.settimeout(remaining)


def _refused(received: str, expected: str) -> ImageError:
    return ImageError("damaged", f"an image, {expected}", f"one that {received}", "fetch or save it again")


def _told(answer: bytearray) -> ImageError | None:
    try:
        reason, expected, received, next_step = json.loads(answer)
        return ImageError(reason, expected, received, next_step)
    except (ValueError, TypeError, AttributeError):
        return None
