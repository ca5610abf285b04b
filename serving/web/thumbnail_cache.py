"""Thumbnails on the disk by name, those used last, up to a number of bytes; knows no image.

Everything in it can be deleted at any time, also by another server that uses the same directory.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections import OrderedDict
from pathlib import Path

_KEPT_AT_FULL = 0.9  # of the cap, so that a full cache is not emptied at every new thumbnail


class ThumbnailCache:
    """WebP files in one directory; safe to share between threads."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory, self.max_bytes = directory, max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] | None = None  # by name, used last at the end; None until it is looked at
        self._total = 0

    def get(self, name: str) -> bytes | None:
        """The thumbnail, if it is kept and whole."""
        path = self._path(name)
        try:
            data = path.read_bytes()
            # Not flushed when it was written, a file may be cut short after a power failure.
            if data[:4] != b"RIFF" or int.from_bytes(data[4:8], "little") != len(data) - 8:
                return None
            os.utime(path)
        except OSError:
            return None
        with self._lock:
            if self._sizes is not None and name in self._sizes:
                self._sizes.move_to_end(name)
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keep a thumbnail, and drop those not used for longest when there is no room; a full disk keeps nothing."""
        path = self._path(name)
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            return
        with self._lock:
            sizes = self._known()
            self._total += len(data) - sizes.pop(name, 0)
            sizes[name] = len(data)
            if self._total > self.max_bytes:
                self._drop(sizes)

    def _path(self, name: str) -> Path:
        return self.directory / name[:2] / name

    def _known(self) -> OrderedDict[str, int]:
        """What is there, by the time of its last use; looked up once."""
        if self._sizes is None:
            found = []
            for path in self.directory.glob("??/*"):
                with contextlib.suppress(OSError):
                    status = path.stat()
                    found.append((status.st_mtime_ns, path.name, status.st_size))
            self._sizes = OrderedDict((name, size) for _, name, size in sorted(found))
            self._total = sum(self._sizes.values())
        return self._sizes

    def _drop(self, sizes: OrderedDict[str, int]) -> None:
        while sizes and self._total > _KEPT_AT_FULL * self.max_bytes:
            name, size = sizes.popitem(last=False)
            self._total -= size
            with contextlib.suppress(OSError):
                self._path(name).unlink(missing_ok=True)
