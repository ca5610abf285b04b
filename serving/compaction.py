"""Folds the changes of an index into a new snapshot, while others search and change it; knows no model.

`python -m serving.compaction INDEX` does it in a process of its own, at low priority.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

from data import console
from data.errors import SnapshotError

# The lowest: a compaction may take longer, a search may not.
NICENESS = 19


def compact(index: Path) -> str:
    """Publish a snapshot that holds every change up to now; return its name.

    Changes acknowledged meanwhile stand above it. `SnapshotError` when the index is damaged, or another job publishes.
    """
    from serving.carry_over import newest_readable, open_log, stage
    from serving.publish import index_staged, only_builder, publish, staging
    from serving.staged_snapshot import StagedSnapshot

    with ExitStack() as stack:
        stack.enter_context(only_builder(index))
        directory = stack.enter_context(staging(index))
        log = stack.enter_context(closing(open_log(index)))
        snapshot = newest_readable(index, log)
        if snapshot is None:
            raise SnapshotError(
                "an index with a snapshot", f"none in {index}", "build it: python -m serving.build_index"
            )
        stack.enter_context(closing(snapshot))
        staged = stack.enter_context(closing(StagedSnapshot(directory, snapshot.manifest.dimension)))
        sequence = stage(staged, snapshot, log)
        count = staged.finish()
        manifest = dataclasses.replace(
            snapshot.manifest,
            image_count=count,
            index=index_staged(directory, snapshot.queries),
            create_time=datetime.now(UTC).isoformat(),
            sequence=sequence,
            former=snapshot.name,
        )
        return publish(index, directory, manifest)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments and compact."""
    parser = argparse.ArgumentParser(prog="python -m serving.compaction", description=__doc__)
    parser.add_argument("index", type=Path, metavar="INDEX", help="directory of the index")
    arguments = parser.parse_args(argv)
    os.nice(NICENESS)
    name = compact(arguments.index)
    console.say(f"snapshot {name}")
    return console.EXIT_OK


if __name__ == "__main__":
    console.run(main)
