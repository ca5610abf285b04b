"""Makes a new snapshot of what an index holds, while others search and change it; knows no model."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import subprocess
import sys
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

from data.array_files import load_array
from data.errors import SnapshotError

_log = logging.getLogger(__name__)


def start_compaction(index: Path) -> subprocess.Popen[bytes]:
    """Start `compact` in a process of its own at a low priority, so that no search waits for it."""
    return subprocess.Popen([sys.executable, "-m", "serving.manage", "compact", "--gently", str(index)])


class BackgroundCompaction:
    """Starts a compaction, one at a time, whenever `after` changes stand above the snapshot."""

    def __init__(self, index: Path, after: int) -> None:
        self._index, self._after = index, after
        self._job: subprocess.Popen[bytes] | None = None
        self._due, self._seen = after, 0
        self._taken_over = False  # whether changes have become fewer since the job began

    def look(self, changes: int) -> None:
        """Start one if `changes` above the snapshot are enough; cheap, for after every commit."""
        self._taken_over |= changes < self._seen
        self._seen = changes
        if self._job is None:
            if changes >= self._due:
                self._job, self._taken_over = start_compaction(self._index), False
        elif (code := self._job.poll()) is not None:
            if code:
                _log.warning("a compaction of %s failed; the next one follows later", self._index)
                self._job, self._due = None, changes + self._after
            elif self._taken_over:
                self._job, self._due = None, self._after

    def close(self) -> None:
        """Stop a compaction that is under way; the index stays as it is."""
        if self._job is not None and self._job.poll() is None:
            self._job.terminate()
            self._job.wait()


def compact(index: Path, threads: int = 0) -> str:
    """Publish a snapshot that holds every change up to now; return its name. Builds with `threads`, 0 for all cores.

    Changes acknowledged meanwhile stand above it. Waits for another compaction, and makes no other snapshot when that
    took every change along. `SnapshotError` when the index is damaged, or a build is under way.
    """
    from serving.builder_lock import only_builder
    from serving.carry_over import newest_readable, open_log, stage
    from serving.index_recall import Tuning
    from serving.publish import index_staged, publish, staging
    from serving.snapshot import current_name
    from serving.staged_snapshot import StagedSnapshot

    with ExitStack() as stack:
        waited = stack.enter_context(only_builder(index, "compaction"))
        directory = stack.enter_context(staging(index))
        log = stack.enter_context(closing(open_log(index)))
        snapshot = newest_readable(index, log)
        if snapshot is None:
            raise SnapshotError(
                "an index with a snapshot", f"none in {index}", "build it: python -m serving.build_index"
            )
        stack.enter_context(closing(snapshot))
        if waited and snapshot.manifest.sequence == log.last and snapshot.name == current_name(index):
            return snapshot.name
        staged = stack.enter_context(closing(StagedSnapshot(directory, snapshot.manifest.width)))
        sequence = stage(staged, snapshot, log, snapshot.manifest.model_fingerprint)
        count = staged.finish()
        manifest = dataclasses.replace(
            snapshot.manifest,
            image_count=count,
            index=index_staged(
                directory, snapshot.queries, snapshot.manifest.dimension, Tuning.of(snapshot.manifest.index), threads
            ),
            create_time=datetime.now(UTC).isoformat(),
            sequence=sequence,
            former=snapshot.name,
        )
        return publish(index, directory, manifest)


def rebuild(index: Path) -> str:
    """Publish the live snapshot again with a search index and columns made anew; return its name.

    Its catalog and vectors must be whole, the other files need not be there. `SnapshotError` when they are not, or
    when a build is under way.
    """
    import numpy as np

    from data.durable import changed_files
    from serving.builder_lock import only_builder
    from serving.index_recall import Tuning
    from serving.publish import index_staged, publish, staging
    from serving.snapshot import QUERIES, SNAPSHOTS, current_name, read_manifest
    from serving.staged_snapshot import CATALOG, VECTORS

    with only_builder(index, "rebuild"), staging(index) as directory:
        name = current_name(index)
        if name is None:
            raise SnapshotError(
                "an index with a snapshot", f"none in {index}", "build it: python -m serving.build_index"
            )
        path = index / SNAPSHOTS / name
        manifest, files = read_manifest(path)
        if problems := changed_files(path, {file: files[file] for file in (CATALOG, VECTORS)}):
            raise SnapshotError("a catalog and vectors as they were written", "; ".join(problems), "restore a backup")
        for file in (CATALOG, VECTORS):
            shutil.copyfile(path / file, directory / file)
        queries = np.empty((0, manifest.width), np.float16)
        if not changed_files(path, {QUERIES: files[QUERIES]}):
            queries = load_array(path / QUERIES)
        certificate = index_staged(directory, queries, manifest.dimension, Tuning.of(manifest.index))
        now = datetime.now(UTC).isoformat()
        return publish(index, directory, dataclasses.replace(manifest, index=certificate, create_time=now, former=name))
