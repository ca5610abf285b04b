"""Tells what is in an index, and checks every byte of it; changes nothing and knows no model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.durable import digest_file
from data.errors import UserError
from serving.change_log import ChangeLog
from serving.embedded_store import EmbeddedStore
from serving.exact_index import check_vectors
from serving.index_bundle import BUNDLES
from serving.publish import found_themselves
from serving.snapshot import SNAPSHOTS, Snapshot, current_name, open_snapshot, read_manifest, snapshot_names
from serving.uploaded_images import IMAGES


def inspect(index: Path) -> dict[str, Any]:
    """What there is: the live state, the log, the snapshots, and sizes in bytes; as JSON."""
    with closing(EmbeddedStore.open(index, writable=False)) as store, store.view() as view:
        described = view.describe()
        found = {
            "snapshot": described.snapshot,
            "revision": view.revision,
            "images": described.image_count,
            "dimension": described.dimension,
            "index": described.kind,
            "model": described.model_name,
            "model_fingerprint": described.model_fingerprint,
            "source": described.source,
            "create_time": described.create_time.isoformat(),
            "changes_above_snapshot": view.changes,
        }
    names = snapshot_names(index)
    return {
        **found,
        "certificate": dict(read_manifest(index / SNAPSHOTS / described.snapshot)[0].index),
        "snapshots": names,
        "bundle_in_index": (index / BUNDLES / described.model_fingerprint).is_dir(),
        "bytes": {name: _size(index / name) for name in ("snapshots", "bundles", "images")}
        | {"log": sum(path.stat().st_size for path in index.glob("changes.sqlite*"))},
    }


def snapshots(index: Path) -> list[dict[str, Any]]:
    """The snapshots there are, oldest first: name, whether it is live, images, last change in it, model, source."""
    live, found = current_name(index), []
    for name in snapshot_names(index):
        manifest, _ = read_manifest(index / SNAPSHOTS / name)
        found.append(
            {
                "name": name,
                "live": name == live,
                "images": manifest.image_count,
                "sequence": manifest.sequence,
                "model": manifest.model_name,
                "source": manifest.source,
            }
        )
    return found


def verify(index: Path) -> list[tuple[str, str]]:
    """Read everything there is; for each part its name and "" or what is wrong with it."""
    checks: list[tuple[str, Callable[[], None]]] = [("CURRENT", lambda: _check_current(index))]
    checks += [(f"snapshot {name}", partial(_check_snapshot, index, name)) for name in snapshot_names(index)]
    checks += [
        ("changes", lambda: _check_log(index)),
        ("state", lambda: _check_state(index)),
        ("bundles", lambda: _check_bundles(index)),
        ("uploaded images", lambda: _check_images(index)),
    ]
    return [(name, _problem(check)) for name, check in checks]


def _problem(check: Callable[[], None]) -> str:
    try:
        check()
    except (UserError, OSError, ValueError) as error:
        return str(error)
    return ""


def _check_current(index: Path) -> None:
    name = current_name(index)
    if name not in snapshot_names(index):
        raise UserError("the name of a snapshot in CURRENT", str(name), "roll back, or build the index again")


def _check_snapshot(index: Path, name: str) -> None:
    with closing(open_snapshot(index, name=name)) as snapshot:
        if len(snapshot.vectors):
            check_vectors(snapshot.vectors, snapshot.manifest.dimension)
        if (found := found_themselves(snapshot)) < 1:
            raise UserError("images that find themselves", f"{found:.0%} of a sample", "rebuild the index")
        _check_order(snapshot)


def _check_order(snapshot: Snapshot) -> None:
    """Rows stand in the order of their ids, and the columns have the attributes that the catalog has."""
    before, rows = "", 0
    for entry in snapshot.catalog:
        if entry.row != rows or (rows and entry.image_id <= before):
            raise UserError(
                "rows in the order of their ids", f"{entry.image_id!r} in row {entry.row}", "rebuild the index"
            )
        before, rows = entry.image_id, rows + 1


def _check_log(index: Path) -> None:
    with closing(ChangeLog.open(index, writable=False)) as log:
        log.check()


def _check_state(index: Path) -> None:
    """The number of images that the state says is that of those it lists, and each has a vector."""
    with closing(EmbeddedStore.open(index, writable=False)) as store, store.view() as view:
        listed, after = 0, ""
        while page := view.page(after, 1_000):
            ids = [image.image_id for image in page]
            listed, after = listed + len(ids), ids[-1]
            if not np.isfinite(view.vectors(ids)).all():
                raise UserError("finite vectors", f"others from {ids[0]!r} on", "rebuild the index")
        if listed != len(view):
            raise UserError(f"{len(view):,} images", f"{listed:,} that are listed", "rebuild the index")


def _check_bundles(index: Path) -> None:
    from dual_encoder.bundle import open_bundle

    for path in sorted((index / BUNDLES).glob("*")):
        open_bundle(path)


def _check_images(index: Path) -> None:
    for path in sorted((index / IMAGES).glob("*/*")):
        with suppress(FileNotFoundError):  # it was removed meanwhile, for nothing names it any more
            if not path.name.endswith(".part") and digest_file(path) != path.name:
                raise UserError(f"{path} as it was written", "another content", "upload the image again")


def _size(directory: Path) -> int:
    size = 0
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # removed meanwhile
            size += path.stat().st_size if path.is_file() else 0
    return size
