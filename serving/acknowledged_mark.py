"""A small file beside the log of changes that says which was the last to be acknowledged, by which a log that lost its
end is known; it is written after the fact and never waited for. Knows no log."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MARK = "changes.mark"
_REFUSED = b"!"


class AcknowledgedMark:
    """The mark in the file `path`, which is made when it is to be written."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644) if writable else None

    @property
    def writable(self) -> bool:
        """Whether this may be written, and is not closed."""
        return self._file is not None

    def read(self) -> tuple[int, bool]:
        """The last change that was acknowledged, and whether what follows it was refused."""
        try:
            text = self._path.read_bytes()
            return int(text[:20] or b"0"), text[20:21] == _REFUSED
        except (OSError, ValueError):
            return 0, False  # it only ever tells more

    def write(self, last: int, refused: bool = False) -> None:
        """Note the last change that was acknowledged; does nothing where this is not writable, or the disk fails."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._file, b"%020d" % last + (_REFUSED if refused else b" "), 0)

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
