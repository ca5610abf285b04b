"""A job that is killed, interrupted or out of disk leaves what was there before, and the same command goes on from what
it had finished."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from chain import Chain, Finished, link_copy, wait_for_file

from data.durable import directory_digests
from dual_encoder.bundle import WEIGHTS, open_bundle
from dual_encoder.trainer import CHECKPOINT
from serving.catalog import CatalogEntry
from serving.snapshot import current_name, open_snapshot

SMALL = ("--batch-size", 4, "--shard-size", 8)  # some twenty shards


def build(chain: Chain, index: Path) -> tuple[object, ...]:
    return ("serving.build_index", "--bundle", chain.bundle, "--data", chain.data, "--out", index, *SMALL)


def content(chain: Chain, index: Path) -> tuple[np.ndarray, list[CatalogEntry]]:
    """What is live in an index, every byte of it checked."""
    snapshot = open_snapshot(index, open_bundle(chain.bundle).fingerprint)
    try:
        return np.array(snapshot.vectors), list(snapshot.catalog)
    finally:
        snapshot.close()


def stop_half_way(chain: Chain, index: Path, number: signal.Signals) -> tuple[Finished, int]:
    """Start a build, send it a signal after its first shard, and return how it ended and how many shards it left."""
    job = chain.machine.start(*build(chain, index))
    wait_for_file(index / "work" / "shards", "*.npz", job)
    job.send_signal(number)
    output, errors = job.communicate(timeout=60)
    left = len(list((index / "work" / "shards").glob("*.npz")))
    assert 1 <= left < shards(chain)
    return Finished(job.returncode, output, errors), left


def shards(chain: Chain) -> int:
    return -(-len(chain.pairs) // SMALL[3])


def go_on(chain: Chain, index: Path) -> int:
    """Give the same command again, and return how many shards it kept."""
    said = chain.machine.done(*build(chain, index)).errors
    return int(re.search(r"from (\d+) shards of an earlier run", said)[1])


@pytest.fixture(scope="module")
def uninterrupted(chain, tmp_path_factory):
    index = tmp_path_factory.mktemp("uninterrupted")
    chain.machine.done(*build(chain, index))
    return content(chain, index)


def test_a_killed_build_goes_on_while_the_former_index_serves(chain: Chain, uninterrupted, tmp_path: Path):
    index = link_copy(chain.index, tmp_path / "index")
    live = current_name(index)
    with chain.machine.server(chain.bundle, index) as served:
        before = served.client.search("a red apple", k=20)
        killed, left = stop_half_way(chain, index, signal.SIGKILL)
        assert killed.code == -signal.SIGKILL
        assert current_name(index) == live
        content(chain, index)
        assert served.client.search("a red apple", k=20) == before

        assert go_on(chain, index) == left  # so only the shard that was under way is embedded again
        assert current_name(index) != live
        assert served.client.search("a red apple", k=20) == before
    vectors, entries = content(chain, index)
    np.testing.assert_array_equal(vectors, uninterrupted[0])
    assert entries == uninterrupted[1]
    assert not (index / "work").exists()


def test_an_interrupted_build_says_so_and_goes_on(chain: Chain, uninterrupted, tmp_path: Path):
    interrupted, left = stop_half_way(chain, tmp_path, signal.SIGINT)
    assert interrupted.code == 130
    assert interrupted.errors.splitlines()[-1] == "interrupted; what was finished is kept"
    assert "Traceback" not in interrupted.errors
    assert current_name(tmp_path) is None
    assert go_on(chain, tmp_path) == left
    np.testing.assert_array_equal(content(chain, tmp_path)[0], uninterrupted[0])


@pytest.mark.slow
def test_interrupted_training_goes_on_to_the_very_same_model(chain: Chain, tmp_path: Path):
    bundle = tmp_path / "model"
    command = ("dual_encoder.train", "--recipe", chain.recipe, "--data", chain.data, "--out", bundle)
    run = chain.machine.start(*command)
    for line in run.stderr:
        if line.startswith("epoch 2/"):
            break
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted; what was finished is kept"
    assert "Traceback" not in errors
    assert not bundle.exists()

    said = chain.machine.done(*command).errors
    assert int(re.search(r"going on from epoch (\d+), step", said)[1]) >= 3
    assert "epoch 2/" not in said
    assert open_bundle(bundle).fingerprint == open_bundle(chain.bundle).fingerprint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Gives a directory on a file system of its own with so many bytes free; called again, it changes how many."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def with_room(room: int) -> Path:
        status = os.statvfs(disk)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize if disk.is_mount() else 0
        options = f"size={used + room}" + (",remount" if disk.is_mount() else "")
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"may not mount a small file system here: {mounted.stderr.strip()}")
        return disk

    yield with_room
    if disk.is_mount():
        subprocess.run(["umount", disk], check=True)


def test_a_build_on_a_full_disk_says_where_and_goes_on_when_there_is_room(chain: Chain, uninterrupted, small_disk):
    index = small_disk(400_000_000) / "index"
    shutil.copytree(chain.index, index)
    live = current_name(index)
    vectors = uninterrupted[0].nbytes  # float16; shards have more than twice that, what is staged has twice
    catalog = (index / "snapshots" / live / "catalog.sqlite").stat().st_size
    for room, file in (
        (vectors, "shards/"),
        (vectors, "shards/|unordered.f16"),
        (vectors, "shards/|unordered.f16"),
        (vectors + 2 * catalog + vectors // 2, "vectors.npy"),
        (2 * vectors + 2 * catalog + 8_000, "index.faiss"),
    ):
        small_disk(room)
        said = chain.machine.run(*build(chain, index))
        assert said.code == 1
        pattern = rf"^error: No space left on device: {index}/work/\S*({file})"
        assert re.search(pattern, said.errors, re.MULTILINE), said
        assert "run the same command again" in said.errors
        assert current_name(index) == live
        content(chain, index)
    small_disk(400_000_000)
    assert go_on(chain, index) == shards(chain)
    np.testing.assert_array_equal(content(chain, index)[0], uninterrupted[0])


@pytest.mark.slow
def test_training_that_may_not_write_its_model_keeps_the_former_one_and_goes_on(chain: Chain, tmp_path: Path):
    bundle = link_copy(chain.bundle, tmp_path / "model")
    before = directory_digests(bundle)
    settings = ("--recipe", chain.recipe, "--epochs", 2, "--seed", 7)
    command = ("dual_encoder.train", *settings, "--data", chain.data, "--out", bundle)
    # A limit on the size of a file acts like a full disk: here the checkpoint fits and the weights do not.
    limit = (chain.bundle / WEIGHTS).stat().st_size // 2
    said = chain.machine.run(*command, prefix=("prlimit", f"--fsize={limit}", "--"))
    assert said.code == 1
    assert f"error: File too large: {tmp_path}/" in said.errors
    assert directory_digests(bundle) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.run"]
    assert 0 < (tmp_path / "model.run" / CHECKPOINT).stat().st_size < limit

    said = chain.machine.done(*command)
    assert "going on from epoch 3" in said.errors
    assert "loss" not in said.errors  # nothing is trained again
    assert open_bundle(bundle).fingerprint != open_bundle(chain.bundle).fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(("module", "room"), [("data.prepare", 1_200_000), ("dual_encoder.export", 60_000_000)])
def test_a_full_disk_leaves_nothing_half_written(chain: Chain, small_disk, module: str, room: int):
    out = small_disk(room) / "out"
    given = (
        ("--data", f"jsonl:{chain.machine.home / 'drawings'}") if "prepare" in module else ("--bundle", chain.bundle)
    )
    said = chain.machine.run(module, *given, "--out", out)
    assert said.code == 1
    assert f"error: No space left on device: {out.parent}" in said.errors
    # What prepare had done is kept beside, to go on from.
    assert {path.name for path in out.parent.iterdir()} <= {"out.preparing"}
    small_disk(500_000_000)
    chain.machine.done(module, *given, "--out", out)
