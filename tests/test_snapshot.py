"""A snapshot is whole or refused: no changed byte, missing file or other model's index ever answers a query."""

from __future__ import annotations

import contextlib
import json
import shutil

import numpy as np
import pytest
from fakes import ColourRuntime, ListSource

from data.durable import digest_bytes
from data.errors import FingerprintMismatch, SnapshotError
from serving.index_job import BuildSettings, build_index
from serving.publish import roll_back
from serving.snapshot import CURRENT, SNAPSHOTS, current_name, open_snapshot, snapshot_names

RUNTIME = ColourRuntime()
FILES = ["manifest.json", "catalog.sqlite", "vectors.npy", "queries.npy", "columns.arrow", "index.faiss"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    out = tmp_path_factory.mktemp("published") / "index"
    build_index(RUNTIME, ListSource(), out)
    return out


@pytest.fixture
def index(published, tmp_path):
    shutil.copytree(published, tmp_path / "index")
    return tmp_path / "index"


def live(index):
    return index / SNAPSHOTS / current_name(index)


def test_opens_what_was_published(index):
    snapshot = open_snapshot(index, RUNTIME.fingerprint)
    assert snapshot.name == current_name(index)
    assert (len(snapshot.catalog), len(snapshot.index), snapshot.vectors.shape) == (40, 40, (40, 8))
    assert snapshot.manifest.source == "colours:40"
    assert snapshot.manifest.model_name == "colours"
    assert not snapshot.vectors.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        snapshot.vectors[0] = 0
    np.testing.assert_allclose(np.linalg.norm(snapshot.vectors.astype(np.float32), axis=1), 1, atol=1e-3)
    snapshot.close()


def test_other_users_may_read_what_was_published(published):
    files = [path for path in published.rglob("*") if path.is_file()]
    beside = {"CURRENT", "LOCK", "report.json", "skipped.jsonl", "changes.sqlite"}
    assert {path.name for path in files} == {*FILES, *beside}
    assert all(path.stat().st_mode & 0o004 for path in files)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
def test_any_changed_byte_is_refused_and_the_file_named(index, name, place):
    path = live(index) / name
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match=name.replace(".", r"\.")):
        open_snapshot(index, RUNTIME.fingerprint)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_shortened_file_is_refused_and_named(index, name):
    path = live(index) / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(SnapshotError, match=name):
        open_snapshot(index, RUNTIME.fingerprint)
    path.unlink()
    with pytest.raises(SnapshotError, match=name):
        open_snapshot(index, RUNTIME.fingerprint)


def test_another_models_index_is_refused_with_the_command_that_builds_it_again(index):
    with pytest.raises(FingerprintMismatch) as refusal:
        open_snapshot(index, "other", bundle="my bundle")
    text = str(refusal.value)
    assert "other" in text
    assert RUNTIME.fingerprint in text
    command = f"python -m serving.build_index --bundle 'my bundle' --data colours:40 --out {index}"
    assert refusal.value.next_step.endswith(command)


def test_the_command_to_build_again_names_the_splits(tmp_path):
    build_index(RUNTIME, ListSource(), tmp_path, BuildSettings(splits=("test",)))
    with pytest.raises(FingerprintMismatch, match="--data colours:40 --split test --out"):
        open_snapshot(tmp_path, "other")


def test_nothing_published_and_a_damaged_current_are_told_apart(index, tmp_path):
    with pytest.raises(SnapshotError, match="nothing at"):
        open_snapshot(tmp_path / "absent", RUNTIME.fingerprint)
    (index / CURRENT).unlink()
    with pytest.raises(SnapshotError, match=CURRENT):
        open_snapshot(index, RUNTIME.fingerprint)
    for name in ("../../etc", "", "20260101T000000Z-zz", "\x00\xff"):
        (index / CURRENT).write_text(name)
        with pytest.raises(SnapshotError, match=CURRENT):
            open_snapshot(index, RUNTIME.fingerprint)


@pytest.mark.parametrize("format_version", [1, 3])
def test_a_snapshot_of_another_format_is_refused_with_the_command_that_builds_it_again(index, format_version):
    fields = json.loads((live(index) / "manifest.json").read_text())
    content = json.dumps({**fields, "format_version": format_version}).encode()
    name = f"20260101T000000Z-{digest_bytes(content)[:16]}"
    shutil.copytree(live(index), index / SNAPSHOTS / name)
    (index / SNAPSHOTS / name / "manifest.json").write_bytes(content)
    (index / CURRENT).write_text(name)
    command = f"python -m serving.build_index --bundle BUNDLE --data colours:40 --out {index}"
    with pytest.raises(SnapshotError, match=f"format {format_version}.*{command}"):
        open_snapshot(index, RUNTIME.fingerprint)


def test_publishing_keeps_the_former_snapshot_and_no_older_one(tmp_path):
    names = [build_index(RUNTIME, ListSource(), tmp_path).snapshot for _ in range(3)]
    assert len(set(names)) == 3
    assert {path.name for path in (tmp_path / SNAPSHOTS).iterdir()} == set(names[1:])
    assert current_name(tmp_path) == names[2]


def test_a_snapshot_goes_when_its_last_reader_has_left(tmp_path):
    build_index(RUNTIME, ListSource(), tmp_path)
    snapshot = open_snapshot(tmp_path, RUNTIME.fingerprint)
    for _ in range(2):
        build_index(RUNTIME, ListSource(), tmp_path)
    assert snapshot.path.exists()
    assert snapshot.catalog.by_rows([3])[0].row == 3
    snapshot.close()
    build_index(RUNTIME, ListSource(), tmp_path)
    assert not snapshot.path.exists()


def test_a_rollback_makes_the_former_snapshot_live_and_back(tmp_path):
    first, second = (build_index(RUNTIME, ListSource(), tmp_path).snapshot for _ in range(2))
    assert roll_back(tmp_path) == first == current_name(tmp_path)
    with pytest.raises(SnapshotError, match=f"a snapshot older than the live one, {first}.*newer: {second}"):
        roll_back(tmp_path)
    assert roll_back(tmp_path, second) == second == current_name(tmp_path)


def test_each_rollback_goes_further_back_and_past_what_is_damaged(tmp_path):
    with contextlib.ExitStack() as held:  # readers keep every snapshot
        names = []
        for _ in range(4):
            names.append(build_index(RUNTIME, ListSource(), tmp_path).snapshot)
            held.enter_context(contextlib.closing(open_snapshot(tmp_path, RUNTIME.fingerprint)))
        assert roll_back(tmp_path) == names[2]
    (tmp_path / SNAPSHOTS / names[1] / "vectors.npy").write_bytes(b"damage")
    assert roll_back(tmp_path) == names[0] == current_name(tmp_path)
    with pytest.raises(SnapshotError, match="a snapshot older than the live one"):
        roll_back(tmp_path)
    assert current_name(tmp_path) == names[0]


def test_what_was_rolled_back_from_is_not_what_a_rollback_goes_to(tmp_path):
    with contextlib.ExitStack() as held:
        first = build_index(RUNTIME, ListSource(), tmp_path).snapshot
        bad = build_index(RUNTIME, ListSource(), tmp_path).snapshot
        held.enter_context(contextlib.closing(open_snapshot(tmp_path, RUNTIME.fingerprint)))
        assert roll_back(tmp_path) == first
        build_index(RUNTIME, ListSource(), tmp_path)
        assert bad in snapshot_names(tmp_path)
        assert roll_back(tmp_path) == first


@pytest.mark.parametrize("file", ["manifest.json", "vectors.npy"])
def test_one_goes_back_from_a_snapshot_that_is_damaged(tmp_path, file):
    first, second = (build_index(RUNTIME, ListSource(), tmp_path).snapshot for _ in range(2))
    (tmp_path / SNAPSHOTS / second / file).write_bytes(b"damage")
    assert roll_back(tmp_path) == first == current_name(tmp_path)


def test_a_rollback_to_a_damaged_snapshot_is_refused(tmp_path):
    first, second = (build_index(RUNTIME, ListSource(), tmp_path).snapshot for _ in range(2))
    with (tmp_path / SNAPSHOTS / first / "vectors.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"damage")
    with pytest.raises(SnapshotError, match="vectors"):
        roll_back(tmp_path)
    assert current_name(tmp_path) == second


def test_what_fails_its_verification_is_not_published(index, tmp_path, monkeypatch):
    from serving import publish as publishing

    before = sorted((index / SNAPSHOTS).iterdir()), current_name(index)
    monkeypatch.setattr(publishing, "found_themselves", lambda snapshot: 0.5)
    with pytest.raises(SnapshotError, match="find themselves"):
        build_index(RUNTIME, ListSource(), index)
    assert (sorted((index / SNAPSHOTS).iterdir()), current_name(index)) == before


def test_building_again_repairs_a_damaged_current(index):
    (index / CURRENT).write_text("garbage")
    build_index(RUNTIME, ListSource(), index)
    open_snapshot(index, RUNTIME.fingerprint).close()
