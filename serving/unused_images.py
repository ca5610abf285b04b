"""Removes uploaded images that nothing in an index names any more; knows no vectors and no way to publish.

What names an image is a snapshot, kept for a rollback or held by a reader, or a change in the log after the oldest of
them. An upload whose change is not in the log yet is known by its age.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from data.durable import changed_files
from data.errors import SnapshotError
from serving.catalog import Catalog
from serving.change_log import ChangeLog
from serving.snapshot import SNAPSHOTS, read_manifest, snapshot_names
from serving.staged_snapshot import CATALOG
from serving.uploaded_images import IMAGES, old_images, remove_image, remove_parts

# Longer than any upload waits for the disk after its image was kept.
GRACE_SECONDS = 24 * 3600.0

_log = logging.getLogger(__name__)


def remove_unused_images(index: Path) -> int:
    """Remove uploaded images that nothing names, and no upload of the last day; return how many bytes that freed.

    Nobody may publish meanwhile: hold the index's lock. When a snapshot or the log is damaged, or the disk fails, some
    or all of them stay for the next time, with a warning.
    """
    if not (index / IMAGES).is_dir():
        return 0
    before = time.time() - GRACE_SECONDS  # first: what the log does not name yet is younger
    freed = 0
    try:
        with ExitStack() as opened:
            catalogs, logged = _references(index, opened)
            for digests in old_images(index, before):
                for digest in _unnamed(set(digests) - logged, catalogs):
                    freed += remove_image(index, digest, before)
        remove_parts(index, before)
    except (SnapshotError, OSError) as error:
        _log.warning("uploaded images that are not used any more stay in %s: %s", index, error)
    return freed


def _references(index: Path, opened: ExitStack) -> tuple[list[Catalog], set[str]]:
    """The catalogs of all snapshots, each found as it was written, and the digests in the changes after the oldest."""
    catalogs, sequences = [], []
    for name in snapshot_names(index):
        path = index / SNAPSHOTS / name
        manifest, files = read_manifest(path)
        if problems := changed_files(path, {CATALOG: files[CATALOG]}):
            raise SnapshotError("catalogs as they were written", "; ".join(problems), "verify the index")
        catalogs.append(opened.enter_context(closing(Catalog(path / CATALOG))))
        sequences.append(manifest.sequence)
    log = opened.enter_context(closing(ChangeLog.open(index, writable=False)))
    return catalogs, {change.digest for change in log.after(min(sequences, default=log.pruned))}


def _unnamed(digests: set[str], catalogs: list[Catalog]) -> Iterator[str]:
    for catalog in catalogs:
        digests -= catalog.digests_among(digests)
    yield from sorted(digests)
