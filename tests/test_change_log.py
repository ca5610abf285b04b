"""The log gives back what was appended, all of a transaction or nothing, also on a disk that is full or fails."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from data.errors import SnapshotError
from serving import change_log
from serving.change_log import ChangeLog
from serving.log_file import LOG, MIGRATIONS
from serving.logged_change import KeptKey, LoggedChange


@pytest.fixture
def log(tmp_path):
    ChangeLog.create(tmp_path)
    opened = ChangeLog.open(tmp_path, writable=True)
    yield opened
    opened.close()


def changes(first: int, count: int, size: int = 64) -> list[LoggedChange]:
    return [
        LoggedChange(n, f"id-{n}", bytes([n % 256]) * size, "d", "/l", '["c"]', '{"a": 1}', 1)
        for n in range(first, first + count)
    ]


def test_gives_back_what_was_appended_also_to_another_process(tmp_path, log):
    stored = [*changes(2, 5), LoggedChange(7, "id-3", None, model=1)]
    log.append(stored[:4])
    with closing(ChangeLog.open(tmp_path, writable=False)) as reader:
        before = reader.data_version
        log.append(stored[4:])
        assert reader.data_version != before
        assert list(reader.after(1)) == stored
        assert list(reader.after(4)) == stored[3:]
        assert list(reader.after(7)) == []
        with pytest.raises(OSError, match="readonly"):
            reader.append(changes(8, 1))
    assert log.check() == 6


@pytest.mark.parametrize("count", [31, 32, 33, 100])
def test_commits_of_any_size_keep_every_change_once_and_in_order(log, count):
    stored = changes(2, count)
    log.append(stored)
    assert list(log.after(1)) == stored
    assert log.check() == count


def test_keys_are_kept_until_they_are_too_old_or_too_many(log, monkeypatch):
    monkeypatch.setattr(change_log, "_FORGET_EVERY", 1)
    monkeypatch.setattr(change_log, "KEPT_KEYS", 3)
    for number in range(2, 8):
        log.append(changes(number, 1), [KeptKey(f"k{number}", "digest", number, 1)])
    assert [log.kept_key(f"k{number}") is not None for number in range(2, 8)] == [False] * 3 + [True] * 3
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + change_log.KEPT_KEY_SECONDS + 10)
    log.append(changes(8, 1), [KeptKey("k8", "digest", 8, 1)])
    assert log.kept_key("k7") is None
    assert log.kept_key("k8") == KeptKey("k8", "digest", 8, 1)


def test_pruned_changes_are_missed_only_by_who_needs_them(log):
    log.append(changes(2, 10))
    log.prune(5)
    assert [change.sequence for change in log.after(5)] == list(range(6, 12))
    with pytest.raises(SnapshotError, match="needed"):
        list(log.after(4))
    log.prune(11)
    log.append(changes(12, 1))  # numbers go on


def test_an_altered_row_and_a_gap_are_refused(tmp_path, log):
    log.append(changes(2, 20))
    log.close()
    for statement in (
        "UPDATE changes SET attributes = '{}' WHERE sequence = 9",
        "UPDATE changes SET vector = NULL WHERE sequence = 9",
        "DELETE FROM changes WHERE sequence = 9",
    ):
        with closing(sqlite3.connect(tmp_path / LOG)) as connection:
            connection.execute("BEGIN")
            connection.execute(statement)
            connection.commit()
        with closing(ChangeLog.open(tmp_path, writable=False)) as damaged:
            assert len(list(damaged.after(9))) == 12
            with pytest.raises(SnapshotError, match="change 9 missing or altered"):
                damaged.check()


def test_a_later_layout_is_refused(tmp_path, log):
    log.close()
    with closing(sqlite3.connect(tmp_path / LOG)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(SnapshotError, match="layout"):
        ChangeLog.open(tmp_path, writable=True)


def test_a_copy_is_complete_while_others_append(tmp_path, log):
    log.append(changes(2, 100))
    (tmp_path / "copy").mkdir()
    with closing(ChangeLog.open(tmp_path, writable=False)) as reader:
        reader.back_up(tmp_path / "copy" / LOG)
    log.append(changes(102, 1))
    with closing(ChangeLog.open(tmp_path / "copy", writable=False)) as copy:
        assert copy.check() == 100


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one and a half megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"may not mount a small file system here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_on_a_full_disk_nothing_is_applied_and_the_log_goes_on_when_there_is_room(small_disk: Path):
    ChangeLog.create(small_disk)
    with closing(ChangeLog.open(small_disk, writable=True)) as log:
        log.append(changes(2, 10))
        (small_disk / "filler").write_bytes(bytes(900_000))
        with pytest.raises(OSError, match="changes") as refusal:
            log.append(changes(12, 1_000, size=4_000))
        assert refusal.value.errno == errno.ENOSPC
        assert [change.sequence for change in log.after(1)] == list(range(2, 12))
        with closing(ChangeLog.open(small_disk, writable=False)) as reader:
            assert reader.check() == 10
        (small_disk / "filler").unlink()
        log.append(changes(12, 3))
        assert log.check() == 13


def test_a_flush_that_fails_leaves_nothing_behind_even_if_the_process_dies_at_once(tmp_path, log):
    """What was written of the transaction must not come alive later."""
    log.append(changes(2, 3))

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "a disk")

    with pytest.raises(OSError, match="a disk"):
        log.append(changes(5, 500), allowed=fail)
    for suffix in ("", "-wal", "-shm"):  # what a crash would leave
        source = tmp_path / f"{LOG}{suffix}"
        if source.exists():
            (tmp_path / "crashed").mkdir(exist_ok=True)
            (tmp_path / "crashed" / source.name).write_bytes(source.read_bytes())
    with closing(ChangeLog.open(tmp_path / "crashed", writable=True)) as crashed:
        assert crashed.last == 4
    log.append(changes(5, 1))
    assert log.check() == 4
