"""A store of features gives every row as it was added, whoever else adds to it and wherever a process stops."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_process import ROOT

from dual_encoder.feature_store import FeatureStore, MappedRows, digests_of, take_rows


def digests(*numbers: int) -> np.ndarray:
    return digests_of([hashlib.sha256(b"%d" % number).hexdigest() for number in numbers])


def values(*numbers: int, width: int = 3) -> np.ndarray:
    return np.array(numbers, np.float32)[:, None] + np.arange(width, dtype=np.float32) / 10


def add(store: FeatureStore, *numbers: int) -> None:
    store.add(digests(*numbers), values(*numbers), np.zeros(len(numbers), bool))


def test_rows_come_back_in_the_order_they_are_asked_for_also_later(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    assert store.missing(digests(4, 5, 4)).tolist() == [0, 1]
    add(store, 4, 5)
    add(store, 6)
    for again in (store, FeatureStore(tmp_path)):
        assert again.missing(digests(6, 7, 4, 8, 7)).tolist() == [1, 3]
        np.testing.assert_array_equal(again.rows(digests(6, 4, 6, 5)), values(6, 4, 6, 5))
    assert np.load(tmp_path / "rows.npy", allow_pickle=False).tolist() == values(4, 5, 6).tolist(), "a plain array"


def test_rows_without_content_are_zeros_and_are_not_asked_for_again(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.add(digests(1), None, np.ones(1, bool))
    assert store.rows(digests(1)).shape == (1, 0), "nothing tells how long a row is"
    add(store, 2)
    store.add(digests(1), None, np.ones(1, bool))
    store.add(digests(3, 4), values(3, 4), np.array([False, True]))
    unreadable = digests_of(["unreadable:missing"])
    asked = np.concatenate([digests(1, 2, 3, 4), unreadable])
    assert FeatureStore(tmp_path).missing(asked).tolist() == []
    rows = FeatureStore(tmp_path).rows(asked)
    np.testing.assert_array_equal(rows, [[0] * 3, *values(2, 3), [0] * 3, [0] * 3])
    assert (rows.rows < 0).tolist() == [True, False, False, True, True]


@given(st.integers(0, 700), st.integers(0, 200))
def test_a_process_that_stops_anywhere_leaves_whole_rows(tmp_path_factory, kept: int, named: int) -> None:
    """Files cut anywhere, as by a kill or a full disk: what is left is right, and the rest can be added again."""
    directory = tmp_path_factory.mktemp("store")
    store = FeatureStore(directory)
    for start in (0, 2, 4):
        add(store, start, start + 1)
    os.truncate(directory / "rows.npy", min(kept, (directory / "rows.npy").stat().st_size))
    os.truncate(directory / "digests", min(named, (directory / "digests").stat().st_size))
    store = FeatureStore(directory)
    everything = range(6)
    missing = store.missing(digests(*everything)).tolist()
    assert missing == list(range(len(everything) - len(missing), 6))
    if missing:
        add(store, *missing)
    np.testing.assert_array_equal(FeatureStore(directory).rows(digests(*everything)), values(*everything))


ADDING = """
import sys
from pathlib import Path
from test_feature_store import FeatureStore, add, digests
store = FeatureStore(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.readline()
numbers = list(range(0, 60))[:: int(sys.argv[2])]
for place in store.missing(digests(*numbers)).tolist():
    add(store, numbers[place])
"""


def test_two_processes_add_to_one_store(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", ADDING, str(tmp_path)]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    both = [subprocess.Popen([*command, step], **pipe) for step in ("1", "-1")]  # type: ignore[call-overload]
    assert [process.stdout.readline() for process in both] == ["open\n"] * 2
    for process in both:  # both see an empty store
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    np.testing.assert_array_equal(FeatureStore(tmp_path).rows(digests(*range(60))), values(*range(60)))
    assert len(np.load(tmp_path / "rows.npy", allow_pickle=False)) == 60, "no row twice"


def test_a_large_store_is_read_from_its_file_and_not_into_memory(tmp_path: Path) -> None:
    count, width = 200_000, 64
    store = FeatureStore(tmp_path)
    names = digests_of([f"{number:064x}" for number in range(1, count + 1)])
    for start in range(0, count, 50_000):
        block = np.arange(start, start + 50_000, dtype=np.float32)
        store.add(names[start : start + 50_000], np.repeat(block[:, None], width, 1), np.zeros(50_000, bool))
    rows = FeatureStore(tmp_path).rows(names)
    assert isinstance(rows.array, np.memmap)
    before = resident_bytes()
    chosen = np.random.default_rng(0).integers(0, count, 1024)
    out = np.empty((1024, width), np.float32)
    take_rows(rows, chosen, out)
    np.testing.assert_array_equal(out[:, 0], chosen)
    np.testing.assert_array_equal(out[:, -1], chosen)
    # Of the 51 MB, only pages that hold a chosen row: 4 KB each, besides what the kernel reads around them.
    assert anonymous_bytes(before) < 4e6
    half = rows.only(range(0, count, 2))
    assert isinstance(half.array, np.memmap)
    assert half[np.array([3])][0, 0] == 6


def resident_bytes() -> int:
    """Memory of this process that is no file's."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024


def anonymous_bytes(before: int) -> int:
    return resident_bytes() - before


def test_a_full_disk_is_named_and_what_was_there_stays(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    add(store, 1, 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (160, limits[1]))
    try:
        with pytest.raises(OSError, match="rows.npy") as failed:
            add(store, *range(3, 40))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.errno is not None
    again = FeatureStore(tmp_path)
    np.testing.assert_array_equal(again.rows(digests(2, 1)), values(2, 1))
    add(again, 3)
    np.testing.assert_array_equal(again.rows(digests(3, 1)), values(3, 1))


def test_mapped_rows_are_read_as_an_array_is() -> None:
    rows = MappedRows(values(0, 1, 2, 3), np.array([3, 1, -1]))
    expected = np.array([*values(3, 1), [0] * 3], np.float32)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(rows[1:], expected[1:])
    np.testing.assert_array_equal(rows[-3], expected[0])
    np.testing.assert_array_equal(rows[[2, 0]], expected[[2, 0]])
    assert (len(rows), rows.shape, rows.dtype) == (3, (3, 3), np.float32)


def test_rows_asked_for_while_a_store_grows_are_joined(tmp_path: Path) -> None:
    store, names = FeatureStore(tmp_path), digests_of([f"{n:064x}" for n in range(1, 7)])
    numbers = np.arange(12, dtype=np.float32).reshape(6, 2)
    parts = []
    for chosen in ([0, 1, 2], [3, 4], [1, 5]):
        missing = store.missing(names[chosen])
        rows = np.array(chosen)[missing]
        store.add(names[rows], numbers[rows], np.zeros(len(rows), bool))
        parts.append(store.rows(names[chosen]))
    np.testing.assert_array_equal(MappedRows.joined(parts)[:], numbers[[0, 1, 2, 3, 4, 1, 5]])
