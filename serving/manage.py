"""Looks after an index: what is in it, whether it is whole, backups, snapshots, compaction, export; knows no query.

Example: `python -m serving.manage verify index`. Everything may run while a server answers from the same index.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data import console

if TYPE_CHECKING:
    from dual_encoder.runtime import Runtime

# A compaction may take longer, a search may not; but it must come to an end while searches keep every core busy, which
# at the lowest priority of all it would not.
NICENESS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments and run a command."""
    arguments = _parser().parse_args(argv)
    return arguments.command(arguments) or console.EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving.manage", description="Look after an index.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("index", type=Path, metavar="INDEX", help="directory of the index")
        added.set_defaults(command=run)
        return added

    inspecting = command("inspect", _inspect, "say what is in it: images, model, changes, snapshots, bytes")
    inspecting.add_argument("--json", action="store_true", help="print JSON instead of a table")
    verifying = command(
        "verify", _verify, "read every byte and check digests, counts and order; exit 1 when anything is wrong"
    )
    verifying.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command("snapshots", _snapshots, "list the snapshots, oldest first")
    rollback = command("rollback", _rollback, "make an earlier snapshot live again; changes after it stay")
    rollback.add_argument(
        "name", nargs="?", help="of a snapshot; by default the newest good one older than the live one"
    )
    rollback.add_argument(
        "--discard-vectors", action="store_true",
        help="when its model is another one, give up later changes that have no image to embed",
    )  # fmt: skip
    compacting = command("compact", _compact, "fold the changes above the snapshot into a new one")
    compacting.add_argument("--gently", action="store_true", help="at the lowest priority")
    command("rebuild", _rebuild, "make the search index and columns anew from the vectors and the catalog")
    backup = command("backup", _backup, "copy the state as it is now, while others use it")
    backup.add_argument("out", type=Path, metavar="BACKUP", help="a new directory, or a new file that ends in .tar")
    restoring = command("restore", _restore, "put a backup back, into an empty place")
    restoring.add_argument("backup", type=Path, metavar="BACKUP")
    exporting = command("export", _export, "write images and vectors for other programs")
    exporting.add_argument("out", type=Path, metavar="OUT", help="a new directory (NumPy, JSON lines) or .parquet file")
    deleting = command("delete", _delete, "delete images by their ids; not while a server has the index open to write")
    deleting.add_argument("ids", nargs="+", metavar="ID")
    return parser


def _inspect(arguments: argparse.Namespace) -> None:
    from serving.inspection import inspect

    found = inspect(arguments.index)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        rows = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in found.items()]
        console.print_table(str(arguments.index), ["what", "value"], rows)


def _verify(arguments: argparse.Namespace) -> int:
    from serving.inspection import verify

    found = verify(arguments.index)
    if arguments.json:
        print(json.dumps(dict(found), indent=2))
    else:
        rows = [[part, problem or "as it was written"] for part, problem in found]
        console.print_table(str(arguments.index), ["part", "found"], rows)
    return console.EXIT_FAILED if any(problem for _, problem in found) else console.EXIT_OK


def _snapshots(arguments: argparse.Namespace) -> None:
    from serving.inspection import snapshots

    columns = ["name", "live", "images", "sequence", "model", "source"]
    rows = [[str(found[column]) for column in columns] for found in snapshots(arguments.index)]
    console.print_table(str(arguments.index), columns, rows)


def _rollback(arguments: argparse.Namespace) -> None:
    from serving.index_bundle import BUNDLES
    from serving.publish import roll_back
    from serving.reembedding import Reembedding

    index = arguments.index

    def load(fingerprint: str) -> Runtime:
        from dual_encoder.runtime import Runtime

        return Runtime.load(index / BUNDLES / fingerprint)

    def embed_by(fingerprint: str) -> Reembedding:
        return Reembedding(index, lambda: load(fingerprint), arguments.discard_vectors)

    console.say(f"live: {roll_back(index, arguments.name, embed_by)}")


def _compact(arguments: argparse.Namespace) -> None:
    from serving.compaction import compact

    if arguments.gently:
        os.nice(NICENESS)
    # Threads at a low priority that work on one thing wait for whichever of them gets no core.
    console.say(f"live: {compact(arguments.index, threads=1 if arguments.gently else 0)}")


def _rebuild(arguments: argparse.Namespace) -> None:
    from serving.compaction import rebuild

    console.say(f"live: {rebuild(arguments.index)}")


def _backup(arguments: argparse.Namespace) -> None:
    from serving.backup import back_up

    console.say(f"{back_up(arguments.index, arguments.out):,} bytes in {arguments.out}")


def _restore(arguments: argparse.Namespace) -> None:
    from serving.backup import restore

    restore(arguments.backup, arguments.index)
    console.say(f"restored: {arguments.index}")


def _export(arguments: argparse.Namespace) -> None:
    from serving.export import export

    console.say(f"{export(arguments.index, arguments.out):,} images in {arguments.out}")


def _delete(arguments: argparse.Namespace) -> None:
    from serving.embedded_store import EmbeddedStore
    from serving.vector_store import Delete

    store = EmbeddedStore.open(arguments.index)
    try:
        receipt = store.apply([Delete(image_id) for image_id in arguments.ids])
    finally:
        store.close()
    console.say(f"deleted; the last change is number {receipt.sequence:,}")


if __name__ == "__main__":
    console.run(main)
