"""A preparation that is killed goes on where it was, ends with the same bytes, and never uses work of other data."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import prepare as module
from data.checked_images import AHEAD
from data.durable import only_process
from data.errors import SourceError
from data.prepare import JOURNAL, MADE_FROM, SHARDS, PrepareSettings, prepare
from data.sources import open_source

ROOT = Path(__file__).parents[1]
IMAGES = 150
GOOD = IMAGES - 1
SETTINGS = PrepareSettings(shard_size=10)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0)
    for number in range(GOOD):
        Image.fromarray(pixels.integers(0, 255, (12, 9, 3), np.uint8)).save(root / f"red house {number:03d}.png")
    (root / "a damaged one.png").write_bytes((root / "red house 000.png").read_bytes()[:60])
    return root


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    prepare(open_source(f"folder:{data}"), out, SETTINGS)
    return content(out)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def drive(data: Path, out: Path, decodes: int = 0, records: int = 0) -> subprocess.CompletedProcess[str]:
    """Prepare in a process that kills itself at one of its decodes or records."""
    arguments = (ROOT / "tests/prepare_driver.py", f"folder:{data}", out, SETTINGS.shard_size, decodes, records)
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_kills_at_random_points_change_no_byte_and_lose_little(data: Path, uninterrupted, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "out.preparing"
    chance = random.Random(20)
    known = 0
    for decodes, records in (
        (chance.randrange(110, 120), 0),
        (chance.randrange(1, 20), 0),
        (0, chance.randrange(60, 100)),
    ):
        killed = drive(data, out, decodes, records)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not out.exists()
        before, known = known, len((work / JOURNAL).read_bytes().splitlines())
        assert known >= before + decodes - AHEAD - 8, "what was under way is all that is lost"
    assert known == IMAGES, "the third run went on to the writing of shards"
    finished = list((work / SHARDS).glob("*.tfrecord"))
    assert len(finished) > 3

    last = drive(data, out)
    assert last.returncode == 0, last.stderr
    assert "going on with the unfinished work" in last.stderr
    decodes_again, records_again = map(int, last.stdout.split())
    assert decodes_again == 0
    assert records_again <= GOOD - SETTINGS.shard_size * (len(finished) - 3), "the last shards of splits may be smaller"
    assert content(out) == uninterrupted
    assert not work.exists()


def interrupt(data: Path, out: Path, settings: PrepareSettings = SETTINGS) -> Path:
    """Stop a preparation while it writes the shards; where its work is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "move_directory", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(open_source(f"folder:{data}"), out, settings)
    return out.with_name(f"{out.name}.preparing")


def test_a_line_that_was_not_finished_is_written_again(data: Path, uninterrupted, tmp_path: Path) -> None:
    work = interrupt(data, tmp_path / "out")
    journal = (work / JOURNAL).read_bytes()
    (work / JOURNAL).write_bytes(journal[:-7])
    prepare(open_source(f"folder:{data}"), tmp_path / "out", SETTINGS)
    assert content(tmp_path / "out") == uninterrupted

    work = interrupt(data, tmp_path / "power failure")
    (work / JOURNAL).write_bytes(journal[:3000] + b"\0" * 500)
    prepare(open_source(f"folder:{data}"), tmp_path / "power failure", SETTINGS)
    assert content(tmp_path / "power failure") == uninterrupted


def test_other_settings_keep_the_verdicts_and_drop_the_shards(data: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    work = interrupt(data, tmp_path / "out")
    other = PrepareSettings(seed=5, shard_size=7)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("data.checked_images.decode", lambda _: pytest.fail("every image was already checked"))
        prepare(open_source(f"folder:{data}"), tmp_path / "out", other)
    assert "other data or settings: kept what it knows of the images" in capsys.readouterr().err
    assert not work.exists()
    prepare(open_source(f"folder:{data}"), tmp_path / "anew", other)
    assert content(tmp_path / "out") == content(tmp_path / "anew")


def test_work_of_other_data_is_discarded(data: Path, uninterrupted, tmp_path: Path, capsys) -> None:
    (tmp_path / "few").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "few/blue.png")
    interrupt(tmp_path / "few", tmp_path / "out")
    prepare(open_source(f"folder:{data}"), tmp_path / "out", SETTINGS)
    assert "other data or settings: started anew" in capsys.readouterr().err
    assert content(tmp_path / "out") == uninterrupted


def test_an_image_that_changes_meanwhile_is_refused_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    image = tmp_path / "data/red.png"
    Image.new("RGB", (9, 9), "red").save(image, compress_level=0)
    work = interrupt(tmp_path / "data", tmp_path / "out")
    (work / SHARDS / "train-00000.tfrecord").unlink()
    Image.new("RGB", (9, 9), "blue").save(image, compress_level=0)
    with pytest.raises(SourceError, match="another content than when it was checked"):
        prepare(open_source(f"folder:{tmp_path / 'data'}"), tmp_path / "out", SETTINGS)
    assert not work.exists()
    prepare(open_source(f"folder:{tmp_path / 'data'}"), tmp_path / "out", SETTINGS)


def test_a_leak_keeps_the_verdicts_for_another_try(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "data" / split / "cats").mkdir(parents=True)
        Image.new("RGB", (9, 9), "red").save(tmp_path / "data" / split / "cats/one.png")
    with pytest.raises(SourceError, match="across prescribed splits"):
        prepare(open_source(f"imagefolder:{tmp_path / 'data'}"), tmp_path / "out", SETTINGS)
    assert len((tmp_path / "out.preparing" / JOURNAL).read_bytes().splitlines()) == 2
    prepare(open_source(f"imagefolder:{tmp_path / 'data'}"), tmp_path / "out", PrepareSettings(resplit=True))
    assert not (tmp_path / "out.preparing").exists()


def test_files_of_others_are_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out.preparing").mkdir()
    (tmp_path / "out.preparing/thesis.txt").write_text("precious")
    with pytest.raises(SourceError, match="no other files"):
        prepare(open_source(f"folder:{data}"), tmp_path / "out", SETTINGS)
    assert [path.name for path in (tmp_path / "out.preparing").iterdir()] == ["thesis.txt"]


def test_one_job_writes_at_a_time(data: Path, tmp_path: Path) -> None:
    work = interrupt(data, tmp_path / "out")
    with only_process(work, SourceError("", "", "")), pytest.raises(SourceError, match="running"):
        prepare(open_source(f"folder:{data}"), tmp_path / "out", SETTINGS)
    assert (work / MADE_FROM).exists()
