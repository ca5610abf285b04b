"""The model's bundle inside its index, so that one directory is all that serving, a backup and a restore need; knows no
vectors."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from data.durable import publish_directory
from data.errors import BundleError, SnapshotError
from dual_encoder.bundle import MANIFEST, Bundle, open_bundle
from serving.snapshot import CURRENT, SNAPSHOTS, current_name, read_manifest, snapshot_names

BUNDLES = "bundles"


def keep_bundle(index: Path, bundle: Bundle) -> Path:
    """Put `bundle` into `index` under its fingerprint, files as hard links where that is possible; return where it is.

    One that is there already stays if it is whole and the same, figures and calibration included.
    """
    path = index / BUNDLES / bundle.fingerprint
    with suppress(BundleError):
        if open_bundle(path).manifest["digest"] == bundle.manifest["digest"]:
            return path
    with publish_directory(path) as aside:
        for name in (MANIFEST, *bundle.manifest["files"]):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            _link(bundle.path / name, aside / name)
    return path


def bundle_of(index: Path) -> Path:
    """Where the bundle of the live snapshot is; `SnapshotError` when the index has none."""
    name = current_name(index)
    if name is None:
        raise SnapshotError(
            f"an index directory with a file {CURRENT}",
            f"{index} without it" if index.is_dir() else f"nothing at {index}",
            "build one: python -m serving.build_index --help",
        )
    path = index / BUNDLES / read_manifest(index / SNAPSHOTS / name)[0].model_fingerprint
    if not path.is_dir():
        raise SnapshotError(f"the model's bundle in {path}", "nothing", "name it with --bundle")
    return path


def remove_bundles(index: Path) -> None:
    """Remove the bundles that no snapshot is of."""
    with suppress(SnapshotError):  # a damaged snapshot might be of any of them
        kept = {read_manifest(index / SNAPSHOTS / name)[0].model_fingerprint for name in snapshot_names(index)}
        for path in (index / BUNDLES).glob("*"):
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
