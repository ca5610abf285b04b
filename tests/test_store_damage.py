"""A torn, altered or missing file, or a disk that fails, gives a clear error or the right answer, never a wrong one."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from stored_index import publish_batch
from vector_store_contract import DIMENSION, INITIAL, exact_answer, unit_vector, upsert

from data.errors import UserError
from serving.embedded_store import EmbeddedStore
from serving.vector_store import Delete

ROOT = Path(__file__).resolve().parent.parent
IMAGES = {image.image_id: image for image in INITIAL} | {f"new-{n}": upsert(f"new-{n}", n) for n in range(40)}
del IMAGES["img-007"]

# What a store cannot do without; other files are locks, or say how a build went.
DECISIVE = {"CURRENT", "manifest.json", "catalog.sqlite", "columns.arrow", "vectors.npy", "queries.npy", "index.faiss",
            "changes.sqlite", "changes.sqlite-wal"}  # fmt: skip


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """The index of a process that died: its last changes stand in SQLite's WAL file only."""
    index, copy = tmp_path_factory.mktemp("damage") / "index", tmp_path_factory.mktemp("damage") / "crashed"
    publish_batch(index, INITIAL, DIMENSION)
    with closing(EmbeddedStore.open(index)) as store:
        store.apply([upsert(f"new-{n}", n) for n in range(20)])
        for number in range(20, 40):
            store.apply([upsert(f"new-{number}", number)])
        store.apply([Delete("img-007")])
        shutil.copytree(index, copy)
    assert (copy / "changes.sqlite-wal").stat().st_size > 10_000
    return copy


def answers(index: Path) -> tuple:
    """All that a store says."""
    with closing(EmbeddedStore.open(index)) as store, store.view() as view:
        page = view.page("", 1_000)
        hits = [view.search(unit_vector(seed)[np.newaxis], 10)[0] for seed in range(3)]
        return page, view.vectors([image.image_id for image in page]).tobytes(), hits


def test_the_undamaged_store_holds_everything(crashed, tmp_path):
    shutil.copytree(crashed, tmp_path / "index")
    page, _, hits = answers(tmp_path / "index")
    assert {image.image_id for image in page} == IMAGES.keys()
    assert [hit.image_id for hit in hits[2]] == [name for _, name in exact_answer(IMAGES, unit_vector(2), 10)]


@pytest.mark.parametrize("sort", ["flipped", "truncated", "zeroed", "missing"])
def test_damage_is_refused_or_changes_no_answer(crashed, tmp_path, sort):
    shutil.copytree(crashed, tmp_path / "whole")
    expected = answers(tmp_path / "whole")
    rng, refused = random.Random(sort), set()
    files = sorted(path.relative_to(crashed) for path in crashed.rglob("*") if path.is_file())
    for number in range(len(files) * (1 if sort == "missing" else 4)):
        index, name = tmp_path / str(number), files[number % len(files)]
        shutil.copytree(crashed, index)
        damage(index / name, sort, rng)
        try:
            found = answers(index)
        except (UserError, OSError):
            refused.add(name.name)
        else:
            assert found == expected, (name, sort)
        shutil.rmtree(index)
    if sort in ("missing", "truncated"):
        assert refused >= DECISIVE


def damage(path: Path, sort: str, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content)) if content else 0
    if sort == "missing":
        path.unlink()
        return
    if sort == "truncated":
        content = content[:place]
    elif sort == "zeroed":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    elif content:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


DRIVER = """
import shutil, sys
from pathlib import Path
from serving.embedded_store import EmbeddedStore
from vector_store_contract import upsert, unit_vector

index, fails, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
store = EmbeddedStore.open(index)
store.apply([upsert("before", 1)])
for attempt in range(3):
    fails.write_text("x" if how == "writing" else "")
    try:
        store.apply([upsert("lost", 2)])
    except OSError as error:
        assert "changes.sqlite" in str(error), error
    else:
        sys.exit("acknowledged what is not on the disk")
    with store.view() as view:
        assert view.get(["before", "lost"])[1] is None
        assert view.search(unit_vector(1)[None], 1)[0][0].image_id == "before"
    fails.unlink()
    if not attempt:
        shutil.copytree(index, index.with_name("crashed"))
store.apply([upsert("after", 3)])
store.close()
"""


@pytest.mark.parametrize("how", ["flushing", "writing"])
def test_on_a_disk_that_fails_nothing_is_acknowledged_nor_comes_alive_later(tmp_path, how):
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, for a disk that fails")
    library = tmp_path / "failing_disk.so"
    source = ROOT / "tests" / "failing_disk.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    index, fails = tmp_path / "index", tmp_path / "fails"
    publish_batch(index, INITIAL[:5], DIMENSION)
    environment = {
        **os.environ, "LD_PRELOAD": str(library), "FAILING_DISK": str(fails), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }  # fmt: skip
    subprocess.run(
        [sys.executable, "-c", DRIVER, str(index), str(fails), how], env=environment, check=True, timeout=120
    )
    for place, there in ((index, ["before", "after"]), (tmp_path / "crashed", ["before"])):
        with closing(EmbeddedStore.open(place)) as store, store.view() as view:
            assert [image.image_id for image in view.page("", 100) if image.image_id[:4] != "img-"] == sorted(there)
