"""Everything that waits is committed at once; each submitter gets its own result or error."""

from __future__ import annotations

import threading

import pytest

from serving import group_commit
from serving.group_commit import GroupCommitter


def test_what_waits_during_a_commit_goes_together_into_the_next():
    groups, first, go_on = [], threading.Event(), threading.Event()

    def commit(items):
        groups.append(list(items))
        first.set()
        go_on.wait()
        return [item * 10 for item in items]

    committer = GroupCommitter(commit)
    futures = [committer.submit(1)]
    first.wait()
    futures += [committer.submit(number) for number in range(2, 6)]
    go_on.set()
    assert [future.result() for future in futures] == [10, 20, 30, 40, 50]
    assert groups == [[1], [2, 3, 4, 5]]
    committer.close()


def test_a_commit_takes_what_it_can_carry_in_order_and_one_item_however_heavy(monkeypatch):
    monkeypatch.setattr(group_commit, "MAX_GROUP", 10)
    groups, first, go_on = [], threading.Event(), threading.Event()

    def commit(items):
        groups.append(list(items))
        first.set()
        go_on.wait()
        return items

    committer = GroupCommitter(commit, weigh=lambda item: item)
    futures = [committer.submit(1)]
    first.wait()
    futures += [committer.submit(weight) for weight in (4, 6, 1, 30, 9, 2)]
    go_on.set()
    assert [future.result() for future in futures] == [1, 4, 6, 1, 30, 9, 2]
    assert groups == [[1], [4, 6], [1], [30], [9], [2]]
    committer.close()


def test_a_refusal_concerns_one_and_a_failure_all():
    def commit(items):
        if "break" in items:
            raise OSError("the disk")
        return [ValueError(item) if item == "bad" else item for item in items]

    committer = GroupCommitter(commit)
    assert committer.submit("good").result() == "good"
    with pytest.raises(ValueError, match="bad"):
        committer.submit("bad").result()
    with pytest.raises(OSError, match="the disk"):
        committer.submit("break").result()
    assert committer.submit("good").result() == "good"
    committer.close()


def test_closing_commits_what_waits_and_takes_no_more():
    done = []
    committer = GroupCommitter(lambda items: [done.append(item) for item in items])
    futures = [committer.submit(number) for number in range(100)]
    committer.close()
    assert all(future.done() for future in futures)
    assert done == list(range(100))
    with pytest.raises(RuntimeError):
        committer.submit(1)
