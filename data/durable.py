"""Writes that survive a crash, and digests that notice a changed byte; knows nothing of what the files mean."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.errors import UserError

CACHE_VARIABLE = "DUAL_ENCODER_CACHE"


def cache_directory(name: str) -> Path:
    """A directory for results that can be made again, under `$DUAL_ENCODER_CACHE` or `~/.cache/dual-encoder`."""
    root = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "dual-encoder"
    directory = Path(root) / name
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def canonical_json(value: Any) -> bytes:
    """The one byte string for a JSON value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_bytes(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of `canonical_json(value)`."""
    return digest_bytes(canonical_json(value))


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_digests(directory: Path, skip: frozenset[str] = frozenset()) -> dict[str, dict[str, Any]]:
    """`{relative path: {"bytes": …, "sha256": …}}` of every regular file below `directory`, sorted."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in skip:
            found[name] = {"bytes": path.stat().st_size, "sha256": digest_file(path)}
    return found


def changed_files(directory: Path, recorded: dict[str, dict[str, Any]]) -> list[str]:
    """Why `directory` differs from `recorded` digests, a phrase per file; empty when every byte is as recorded."""
    problems = []
    for name, entry in sorted(recorded.items()):
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            problems.append(f"{name} lies outside the directory")
        elif not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
        elif digest_file(path) != entry["sha256"]:
            problems.append(f"{name} has another content than when it was written")
    return problems


def sync_path(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Give an `OSError` that names no file, as that of a full disk, the name of the one being written."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data` so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with naming_file(path), os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # mkstemp's 0600 would keep a server under another user from reading it
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def readable_json(value: Any) -> bytes:
    """JSON for people: indented, keys sorted, a newline at the end."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON by `write_atomic`."""
    write_atomic(path, readable_json(value))


@contextmanager
def only_process(path: Path, refusal: UserError) -> Iterator[None]:
    """Hold the lock of a file or directory, which ends with the process; raise `refusal` when another holds it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def publish_directory(final: Path) -> Iterator[Path]:
    """Yield an empty directory beside `final`; on success it is flushed and takes the place of `final`, else removed.

    An existing `final` is exchanged for the new one in one step and then removed, so that a reader, or a crash, finds
    the old content or the new at every moment. (Where the file system cannot exchange, `final` is away for an instant.)
    """
    final = final.resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".part"))
    try:
        with naming_file(final):
            yield aside
        aside.chmod(0o755)
        move_directory(aside, final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def move_directory(aside: Path, final: Path) -> None:
    """Flush a directory on the same file system and put it in the place of `final`, as `publish_directory` does."""
    for path in aside.rglob("*"):
        sync_path(path)
    sync_path(aside)
    if final.exists():
        _replace_directory(aside, final)
    else:
        aside.replace(final)
    sync_path(final.parent)


def _replace_directory(new: Path, final: Path) -> None:
    """Put `new` at `final` and remove what was there."""
    if _exchange(new, final):
        sync_path(final.parent)
        shutil.rmtree(new)
        return
    old = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".old"))
    final.replace(old / "content")
    try:
        new.replace(final)
    except BaseException:
        (old / "content").replace(final)
        old.rmdir()
        raise
    shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically by Linux's renameat2; False where system or file system cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if library.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(error, os.strerror(error), str(other))
