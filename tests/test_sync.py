"""`--sync` embeds what is new in the source, forgets what is gone, and does nothing where nothing has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import ColourRuntime, picture

import dual_encoder.runtime
import serving.index_bundle
from data.errors import SnapshotError, SourceError
from data.sources import open_source
from serving import build_index
from serving.embedded_store import EmbeddedStore
from serving.snapshot import current_name, open_snapshot
from serving.sync import Differences, differences
from serving.vector_store import Delete, Upsert

COUNT = 12


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> ColourRuntime:
    """The model that the command loads, whatever bundle it is told."""
    runtime = ColourRuntime()
    monkeypatch.setattr(dual_encoder.runtime.Runtime, "load", lambda *_, **__: runtime)
    monkeypatch.setattr(serving.index_bundle, "bundle_of", lambda index: index / "bundle")
    return runtime


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with good pictures and a bad one."""
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for number in range(COUNT):
        (folder / "trip" / f"red {number}.png").write_bytes(picture("red", seed=number))
    (folder / "torn.png").write_bytes(picture("blue")[:90])
    return folder


@pytest.fixture
def index(photos: Path, runtime: ColourRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUAL_ENCODER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert build_index.main(["--bundle", "x", "--data", "folder:photos", "--out", "index"]) == 0
    return tmp_path / "index"


def ids(index: Path) -> set[str]:
    snapshot = open_snapshot(index)
    found = {entry.image_id for entry in snapshot.catalog}
    snapshot.close()
    return found


def sync(index: Path, *options: str) -> int:
    return build_index.main(["--sync", "--out", str(index), *options])


def test_nothing_to_do_makes_no_snapshot_and_loads_no_model(
    index: Path, runtime: ColourRuntime, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    live = current_name(index)
    monkeypatch.setattr(dual_encoder.runtime.Runtime, "load", None)
    monkeypatch.chdir("/")  # a relative source is found again all the same
    assert sync(index) == 0
    assert current_name(index) == live
    said = capsys.readouterr().err
    assert "0 images added, 0 changed, 0 removed in folder:photos" in said
    assert f"nothing to do; {COUNT} images" in said


def test_added_changed_moved_and_removed_images_are_brought_over(
    index: Path, photos: Path, runtime: ColourRuntime, capsys: pytest.CaptureFixture
):
    (photos / "green.png").write_bytes(picture("green"))
    (photos / "trip" / "red 0.png").write_bytes(picture("blue"))
    (photos / "trip" / "red 1.png").unlink()
    (photos / "trip" / "red 2.png").rename(photos / "moved.png")
    (photos / "trip" / "red 3.txt").write_text("another caption")
    before = runtime.embedded
    assert sync(index) == 0
    assert runtime.embedded - before == 2
    said = capsys.readouterr().err
    assert "2 images added, 2 changed, 2 removed" in said
    assert f"2 images embedded, {COUNT - 2} known from the index" in said
    assert ids(index) == {"green.png", "moved.png", *(f"trip/red {n}.png" for n in range(COUNT) if n not in (1, 2))}
    assert json.loads((index / "report.json").read_text())["known"] == COUNT - 2
    live = current_name(index)
    assert sync(index) == 0
    assert current_name(index) == live


def test_what_was_changed_online_is_no_difference(index: Path, photos: Path, runtime: ColourRuntime):
    store = EmbeddedStore.open(index)
    vector = runtime.embed_images([picture("blue")])[0]
    store.apply([Delete("trip/red 0.png"), Upsert("trip/red 1.png", vector), Upsert("online", vector)])
    store.close()
    live = current_name(index)
    assert sync(index) == 0
    assert current_name(index) == live
    (photos / "trip" / "red 0.png").unlink()
    (photos / "trip" / "red 1.png").unlink()
    assert not differences(index, open_source(f"folder:{photos}"), [])
    (photos / "trip" / "red 2.png").unlink()
    assert differences(index, open_source(f"folder:{photos}"), []) == Differences(removed=1)
    assert sync(index) == 0
    assert ids(index) == {"online", *(f"trip/red {n}.png" for n in range(1, COUNT) if n != 2)}
    assert not differences(index, open_source(f"folder:{photos}"), [])


def test_a_skipped_image_counts_once_it_is_mended(index: Path, photos: Path, runtime: ColourRuntime):
    (photos / "torn.png").write_bytes(picture("blue"))
    assert differences(index, open_source(f"folder:{photos}"), []) == Differences(added=1)
    (photos / "trip" / "red 0.png").write_bytes(b"")
    assert sync(index, "--strict") == build_index.EXIT_SKIPPED
    assert ids(index) == {"torn.png", *(f"trip/red {n}.png" for n in range(1, COUNT))}


def test_a_source_that_is_gone_or_empty_removes_nothing(index: Path, photos: Path, runtime: ColourRuntime):
    live = current_name(index)
    for file in photos.rglob("*.png"):
        file.unlink()
    with pytest.raises(SourceError, match="images"):
        sync(index)
    (photos / "trip").rmdir()
    photos.rmdir()
    with pytest.raises(SourceError, match="nothing at photos"):
        sync(index)
    assert current_name(index) == live


def test_there_must_be_an_index_and_nothing_that_it_knows_may_be_named(index: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SnapshotError, match="an index in"):
        sync(index.parent / "none")
    assert not (index.parent / "none").exists()
    with pytest.raises(SystemExit, match="2"):
        sync(index, "--data", "folder:elsewhere", "--replace-online")
    assert "leave out --data, --replace-online" in capsys.readouterr().err
