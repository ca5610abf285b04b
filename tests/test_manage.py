"""An index can be looked into, checked, copied while it changes, put back, rebuilt and exported by one command each."""

from __future__ import annotations

import json
import shutil
import tarfile
from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pytest
from stored_index import FINGERPRINT, publish_batch
from vector_store_contract import DIMENSION, INITIAL, unit_vector, upsert

from data.errors import SnapshotError, UserError
from serving import backup
from serving.backup import back_up, restore
from serving.change_log import ChangeLog
from serving.embedded_store import EmbeddedStore
from serving.manage import main
from serving.snapshot import SNAPSHOTS, current_name
from serving.uploaded_images import image_path, keep_image
from serving.vector_store import Delete, StoredImage


@pytest.fixture
def index(tmp_path):
    place = tmp_path / "index"
    publish_batch(place, INITIAL[:10], DIMENSION)
    with closing(EmbeddedStore.open(place)) as store:
        store.apply([upsert("new", 101, digest=keep_image(place, b"an image")), Delete("img-003")])
    return place


def contents(index) -> list[StoredImage]:
    with closing(EmbeddedStore.open(index, FINGERPRINT, writable=False)) as store, store.view() as view:
        return view.page("", 1_000)


def said(capsys, *command: object) -> tuple[int, str]:
    code = main([str(word) for word in command])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_inspect_tells_the_live_state(index, capsys):
    code, text = said(capsys, "inspect", index, "--json")
    found = json.loads(text)
    assert code == 0
    assert (found["images"], found["changes_above_snapshot"], found["model_fingerprint"]) == (10, 2, FINGERPRINT)
    assert found["snapshot"] == current_name(index)
    assert found["bytes"]["images"] == len(b"an image")
    assert said(capsys, "inspect", index)[0] == 0


def test_compact_rollback_and_snapshots(index, capsys):
    before = contents(index)
    first = current_name(index)
    assert said(capsys, "compact", index)[0] == 0
    second = current_name(index)
    assert second != first
    _, text = said(capsys, "snapshots", index)
    assert first in text
    assert second in text
    assert said(capsys, "rollback", index)[0] == 0
    assert current_name(index) == first
    assert contents(index) == before


def test_deleted_images_are_gone(index, capsys):
    assert said(capsys, "delete", index, "img-001", "nobody")[0] == 0
    assert [image.image_id for image in contents(index)][:2] == ["img-000", "img-002"]


def test_verify_finds_every_sort_of_damage(index, capsys):
    assert said(capsys, "verify", index)[0] == 0
    live = index / SNAPSHOTS / current_name(index)
    for path in (*(path for path in live.iterdir()), image_path(index, keep_image(index, b"an image"))):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        code, text = said(capsys, "verify", index)
        assert code == 1, path
        assert path.name in text or "snapshot" in text
        path.write_bytes(content)
    assert said(capsys, "verify", index)[0] == 0


@pytest.mark.parametrize("name", ["copy", "copy.tar"])
def test_a_backup_made_during_changes_is_restored_as_it_was(index, tmp_path, monkeypatch, name):
    before = contents(index)
    real = ChangeLog.back_up
    with closing(EmbeddedStore.open(index)) as store:

        def back_up_and_change(log, path):
            real(log, path)
            store.apply([Delete("img-005"), upsert("later", 102)])

        monkeypatch.setattr(ChangeLog, "back_up", back_up_and_change)
        back_up(index, tmp_path / name)
    restore(tmp_path / name, tmp_path / "restored")
    assert contents(tmp_path / "restored") == before
    assert image_path(tmp_path / "restored", before[-1].digest).read_bytes() == b"an image"
    with closing(EmbeddedStore.open(tmp_path / "restored")) as store:
        store.apply([upsert("goes on", 103)])
    assert said_verify(tmp_path / "restored") == 0


def said_verify(index) -> int:
    return main(["verify", str(index)])


def test_a_backup_goes_to_a_new_place_and_back_to_an_empty_one(index, tmp_path):
    back_up(index, tmp_path / "copy")
    with pytest.raises(UserError, match="exists"):
        back_up(index, tmp_path / "copy")
    with pytest.raises(UserError, match="an empty place"):
        restore(tmp_path / "copy", index)
    with pytest.raises(SnapshotError, match="nothing at"):
        restore(tmp_path / "absent", tmp_path / "restored")


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "link", "no manifest"])
def test_a_backup_that_is_not_as_it_was_made_is_refused_and_nothing_put_anywhere(index, tmp_path, damage):
    copy = tmp_path / "copy"
    back_up(index, copy)
    vectors = next(copy.glob("snapshots/*/vectors.npy"))
    if damage == "changed":
        content = vectors.read_bytes()
        vectors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        vectors.unlink()
    elif damage == "added":
        (copy / "more").write_bytes(b"x")
    elif damage == "link":
        vectors.rename(tmp_path / "elsewhere")
        vectors.symlink_to(tmp_path / "elsewhere")
    else:
        (copy / backup.MANIFEST).unlink()
    with pytest.raises(SnapshotError):
        restore(copy, tmp_path / "restored")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "elsewhere") == ["copy", "index"]


@pytest.mark.parametrize("member", ["../outside", "/tmp/outside-of-the-backup", "link", "device"])
def test_a_tar_file_cannot_reach_out_of_its_place(index, tmp_path, member):
    back_up(index, tmp_path / "copy.tar")
    with tarfile.open(tmp_path / "copy.tar", "a") as tar:
        info = tarfile.TarInfo(member)
        if member == "link":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        elif member == "device":
            info.type = tarfile.CHRTYPE
        tar.addfile(info)
    with pytest.raises(SnapshotError, match="leads out"):
        restore(tmp_path / "copy.tar", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    assert not (tmp_path / "outside").exists()


def test_a_torn_tar_file_is_refused(index, tmp_path):
    back_up(index, tmp_path / "copy.tar")
    content = (tmp_path / "copy.tar").read_bytes()
    for size in (0, 100, len(content) // 2, len(content) - 12_000):
        (tmp_path / "torn.tar").write_bytes(content[:size])
        with pytest.raises(SnapshotError):
            restore(tmp_path / "torn.tar", tmp_path / "restored")


def test_rebuild_makes_lost_search_files_anew(index, capsys):
    before = contents(index)
    live = index / SNAPSHOTS / current_name(index)
    for name in ("index.faiss", "columns.arrow", "queries.npy"):
        (live / name).unlink()
    with pytest.raises(SnapshotError):
        contents(index)
    assert said(capsys, "rebuild", index)[0] == 0
    assert contents(index) == before
    shutil.rmtree(live)
    assert said(capsys, "verify", index)[0] == 0
    (index / SNAPSHOTS / current_name(index) / "vectors.npy").write_bytes(b"x")
    with pytest.raises(SnapshotError, match=r"vectors\.npy"):
        main(["rebuild", str(index)])


def test_an_export_holds_every_image_and_vector(index, tmp_path, capsys):
    images = contents(index)
    assert said(capsys, "export", index, tmp_path / "numpy")[0] == 0
    assert said(capsys, "export", index, tmp_path / "table.parquet")[0] == 0
    vectors = np.load(tmp_path / "numpy" / "vectors.npy", allow_pickle=False)
    lines = [json.loads(line) for line in (tmp_path / "numpy" / "images.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "table.parquet").to_pylist()
    assert [line["image_id"] for line in lines] == [row["image_id"] for row in table] == [i.image_id for i in images]
    assert [json.loads(row["attributes"]) for row in table] == [line["attributes"] for line in lines]
    assert lines[-1]["version"] == images[-1].version
    np.testing.assert_array_equal(vectors[-1], unit_vector(101).astype(np.float16))
    np.testing.assert_array_equal(np.array([row["vector"] for row in table], np.float32), vectors)
    with pytest.raises(UserError, match="exists"):
        main(["export", str(index), str(tmp_path / "numpy")])
