"""What operators ask of the index that is served: its snapshots, and jobs that build, publish, go back, verify and back
up; knows no gRPC.

Every job is a command that a person could type, in a process of its own, so that it can neither slow down nor end the
server.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from data import console
from data.errors import QueryError
from serving.index_bundle import bundle_of
from serving.operations import Ended, Job, Operation, OperationFailed, Operations
from serving.snapshot import SNAPSHOTS, current_name, read_manifest, snapshot_names

MAX_SOURCE_CHARACTERS = 4_096
_BACKUP_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
_PYTHON = (sys.executable, "-m")


class NotOffered(Exception):
    """This server cannot do this; the text says why, for the client."""


class IndexDamaged(Exception):
    """Parts of the index are not as they were written; `problems` says of each what was found."""

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__(f"not as they were written: {', '.join(problems)}")
        self.problems = problems


@dataclass(frozen=True)
class SnapshotDescription:
    """A published state of the index."""

    name: str
    live: bool
    image_count: int
    model_fingerprint: str
    source: str
    create_time: datetime


class IndexUpkeep:
    """Looks after the index at `index`, None when what is served is in no directory.

    `go_over` lets the server use what was published; `bundle` is the served model's, where it is not that in the index.
    Belongs to one event loop.
    """

    build_command: Sequence[str] = (*_PYTHON, "serving.build_index")  # what embeds a data set

    def __init__(
        self,
        index: Path | None,
        backups: Path | None = None,
        go_over: Callable[[], Awaitable[None]] | None = None,
        bundle: str = "",
    ) -> None:
        self.operations = Operations()
        self._index, self._backups, self._go_over, self._bundle = index, backups, go_over, bundle

    def snapshots(self) -> list[SnapshotDescription]:
        """The snapshots that are kept, newest first."""
        index = self._directory()
        live, found = current_name(index), []
        for name in snapshot_names(index)[::-1]:
            manifest, _ = read_manifest(index / SNAPSHOTS / name)
            made = datetime.fromisoformat(manifest.create_time)
            found.append(
                SnapshotDescription(
                    name, name == live, manifest.image_count, manifest.model_fingerprint, manifest.source, made
                )
            )
        return found

    def build(self, source: str) -> Operation:
        """Embed a data set by the served model, publish it and go over to it."""
        index = self._directory()
        if not 1 <= len(source) <= MAX_SOURCE_CHARACTERS or not source.isprintable():
            expected = f"the name of a data set, at most {MAX_SOURCE_CHARACTERS:,} characters"
            raise QueryError("source", expected, repr(source[:100]), "name it as in build_index --data")
        command = [
            *self.build_command,
            f"--bundle={self._bundle or bundle_of(index)}",
            f"--data={source}",
            f"--out={index}",
        ]
        return self._publish("BuildIndex", command)

    def publish(self) -> Operation:
        """Publish a snapshot that holds every change up to now."""
        return self._publish(
            "PublishIndex", [*_PYTHON, "serving.manage", "compact", "--gently", f"{self._directory()}"]
        )

    def roll_back(self, snapshot: str = "") -> Operation:
        """Make an earlier snapshot live again, by default the one that was live before."""
        index = self._directory()
        if snapshot and snapshot not in snapshot_names(index):
            raise QueryError("snapshot", "the name of a snapshot", repr(snapshot[:100]), "see ListSnapshots")
        return self._publish(
            "RollBackIndex", [*_PYTHON, "serving.manage", "rollback", f"{index}", *([snapshot] if snapshot else [])]
        )

    def verify(self) -> Operation:
        """Read every file and check digests and counts; it ends with `IndexDamaged` when a part is not as written."""
        command = [*_PYTHON, "serving.manage", "verify", "--json", f"{self._directory()}"]
        return self.operations.start("VerifyIndex", Job(command, result=_verified))

    def back_up(self, name: str) -> Operation:
        """Copy a consistent state to a new directory in the one for backups; its path is the result."""
        index = self._directory()
        if self._backups is None:
            raise NotOffered("the server was given no directory for backups")
        if not _BACKUP_NAME.fullmatch(name):
            expected = '1 to 100 letters, digits, "-", "_" and ".", not beginning with "."'
            raise QueryError("name", expected, repr(name[:100]), "choose another name")
        out = self._backups / name
        if out.exists():
            raise QueryError("name", "a new name", f"{name!r}, which is there already", "choose another name")
        command = [*_PYTHON, "serving.manage", "backup", f"{index}", f"{out}"]
        return self.operations.start("BackUpIndex", Job(command, result=lambda ended: _succeeded(ended, f"{out}")))

    async def close(self) -> None:
        """Stop the jobs that are under way."""
        await self.operations.close()

    def _publish(self, method: str, command: Sequence[str]) -> Operation:
        index = self._directory()
        job = Job(command, True, lambda ended: _succeeded(ended, current_name(index) or ""), self._go_over)
        return self.operations.start(method, job)

    def _directory(self) -> Path:
        if self._index is None:
            raise NotOffered("the index is not in a directory of this server; look after it where it is")
        return self._index


def _succeeded(ended: Ended, result: str) -> str:
    """`result`, or why there is none."""
    if ended.code == console.EXIT_OK:
        return result
    told = " ".join(ended.last_lines[-3:])[-500:].removeprefix("error: ") or f"exit code {ended.code}"
    raise OperationFailed(told, refused=ended.code == console.EXIT_REFUSED)


def _verified(ended: Ended) -> str:
    if ended.code == console.EXIT_FAILED:
        try:
            found = json.loads(ended.output)
        except ValueError:
            found = {}
        if problems := {part: problem for part, problem in found.items() if problem}:
            raise IndexDamaged(problems)
    return _succeeded(ended, "")
