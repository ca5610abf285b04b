"""Copies an index as it is at one moment while others search and change it, and puts a copy back; knows no vectors.

A backup is a directory, or a tar file, with the live snapshot, its bundle, the log, the uploaded images, and last
`backup.json` with the digest of every file in it.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from data.durable import changed_files, digest_file, naming_file, publish_directory, readable_json, sync_path
from data.errors import SnapshotError, UserError
from serving.change_log import ChangeLog
from serving.index_bundle import BUNDLES
from serving.log_file import LOG
from serving.snapshot import CURRENT, SNAPSHOTS, open_snapshot
from serving.uploaded_images import IMAGES

MANIFEST, FORMAT = "backup.json", 1
TAR = ".tar"


def back_up(index: Path, out: Path) -> int:
    """Write a backup of `index` to `out`, a directory or a file that ends in .tar; return how many bytes it holds.

    Everything acknowledged before the call is in it. `UserError` when `out` exists already.
    """
    if out.exists():
        raise UserError("a new place for the backup", f"{out}, which exists", "choose another one, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    recorded: dict[str, dict[str, object]] = {}
    with _new_copy(out) as put, tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        for name, path in _contents(index, Path(temporary)):
            try:
                entry: dict[str, object] = {"bytes": path.stat().st_size, "sha256": digest_file(path)}
                put(name, path)
            except FileNotFoundError:
                if name.startswith(f"{IMAGES}/"):
                    continue  # nothing named it any more, neither the snapshot that is held nor a change above it
                raise
            recorded[name] = entry
        content = readable_json({"format": FORMAT, "files": recorded})
        (Path(temporary) / MANIFEST).write_bytes(content)
        put(MANIFEST, Path(temporary) / MANIFEST)
    return sum(int(str(entry["bytes"])) for entry in recorded.values())


def restore(backup: Path, index: Path) -> None:
    """Put a backup back as `index`, which must not exist or be empty; every digest is checked before it is there.

    `SnapshotError` for a backup that is incomplete or altered, or that holds a link or a path that leads out of it.
    """
    if index.exists() and (not index.is_dir() or any(index.iterdir())):
        raise UserError(f"an empty place at {index}", "one with files", "choose another one, or move them away")
    if not backup.exists():
        raise SnapshotError("a backup", f"nothing at {backup}", "check the path")
    with publish_directory(index) as aside:
        if backup.is_dir():
            _copy_directory(backup, aside)
        else:
            _extract(backup, aside)
        _check(aside)
        (aside / MANIFEST).unlink()


def _contents(index: Path, temporary: Path) -> Iterator[tuple[str, Path]]:
    """The name of each file in the backup, and where it is read.

    First the snapshot is held, then the log is copied: it has every change above. Images are on the disk before the
    changes that name them, so those that the copy needs are there.
    """
    with closing(open_snapshot(index)) as snapshot, closing(ChangeLog.open(index, writable=False)) as log:
        log.back_up(temporary / LOG)
        yield LOG, temporary / LOG
        (temporary / CURRENT).write_text(f"{snapshot.name}\n")
        yield CURRENT, temporary / CURRENT
        bundle = index / BUNDLES / snapshot.manifest.model_fingerprint
        for directory in (index / SNAPSHOTS / snapshot.name, bundle, index / IMAGES):
            for path in sorted(directory.rglob("*")):
                if path.is_file() and not path.name.endswith(".part"):
                    yield path.relative_to(index).as_posix(), path


class _Put(Protocol):
    def __call__(self, name: str, path: Path) -> None: ...


@contextmanager
def _new_copy(out: Path) -> Iterator[_Put]:
    """Something that takes files by name, and is at `out` when the block ends without an error."""
    if out.suffix != TAR:
        with publish_directory(out) as aside:

            def copy(name: str, path: Path) -> None:
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, aside / name)

            yield copy
        return
    part = out.with_name(f".{out.name}.part")
    try:
        with naming_file(out), tarfile.open(part, "w") as tar:
            yield lambda name, path: tar.add(path, name, recursive=False)
        sync_path(part)
        part.replace(out)
        sync_path(out.parent)
    finally:
        part.unlink(missing_ok=True)


def _copy_directory(backup: Path, aside: Path) -> None:
    for path in sorted(backup.rglob("*")):
        name = path.relative_to(backup).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise _refused(backup, f"{name}, which is a link or no file")
        if path.is_file():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, aside / name)


def _extract(backup: Path, aside: Path) -> None:
    try:
        with tarfile.open(backup, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if not (member.isreg() or member.isdir()) or name.is_absolute() or ".." in name.parts:
                    raise _refused(backup, f"{member.name!r}, which is a link, no file, or leads out of it")
                content = tar.extractfile(member)
                if content is not None:
                    (aside / name).parent.mkdir(parents=True, exist_ok=True)
                    _write(content, aside / name)
    except tarfile.TarError as error:
        raise _refused(backup, str(error)) from None


def _write(content: IO[bytes], path: Path) -> None:
    with naming_file(path), path.open("xb") as file:  # a name that comes twice is an error
        shutil.copyfileobj(content, file, io.DEFAULT_BUFFER_SIZE * 16)


def _check(aside: Path) -> None:
    """Exactly the files that the manifest names, each as it was written, and an index that opens."""
    try:
        manifest = json.loads((aside / MANIFEST).read_bytes())
        files, version = manifest["files"], manifest["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise _refused(aside, f"no {MANIFEST} that can be read") from None
    if version != FORMAT:
        raise SnapshotError(
            f"a backup of format {FORMAT}", f"format {version}", "restore it with the version that made it"
        )
    names = {path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()}
    problems = changed_files(aside, files) + [f"{name} is none of its files" for name in names - {*files, MANIFEST}]
    if problems:
        raise _refused(aside, "; ".join(sorted(problems)[:3]))
    _open(aside)


def _open(index: Path) -> None:
    from serving.embedded_store import EmbeddedStore

    EmbeddedStore.open(index, writable=False).close()


def _refused(place: Path, received: str) -> SnapshotError:
    return SnapshotError("a backup as it was made", received, "use another backup")
