"""Imports TensorFlow without the lines its libraries print when they load, and gives its file errors as Python's."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VARIABLE = "TF_CPP_MIN_LOG_LEVEL"
# "3" is what this module sets itself, and what a process started by such a one inherits.
_CHOSEN_BY_USER = os.environ.get(_VARIABLE, "3") != "3"


def load_tensorflow() -> None:
    """Import TensorFlow; what it writes to standard error meanwhile is shown only if the import fails.

    The lines come from C++ before its logging can be configured, so the descriptor itself is turned away. Set
    `TF_CPP_MIN_LOG_LEVEL=0` to see them.
    """
    if "tensorflow" in sys.modules:
        return
    # TensorFlow leaves these kernels off on processors without AVX-512, where attention takes twice the time without.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if _CHOSEN_BY_USER:
        import tensorflow  # noqa: F401

        return
    os.environ[_VARIABLE] = "3"
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()  # finds the devices, and says so, once
        except BaseException:
            aside.seek(0)
            os.write(kept, aside.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Raise TensorFlow's failure to write `path`, such as on a full disk, as the `OSError` that a file gives."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        number = errno.ENOSPC if isinstance(error, tf.errors.ResourceExhaustedError) else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
