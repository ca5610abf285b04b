"""The command that builds an index does so by other engines: embeddings by Ray, the store in Milvus."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from fakes import COLOURS, ColourRuntime, picture

import dual_encoder.runtime
from data.errors import UserError
from serving import build_index, server
from serving.embedding_job import EmbeddingJob
from serving.milvus_store import MilvusStore
from serving.queries import SearchOptions, TextQuery
from serving.ray_embedding import RayEmbeddingJob, RaySettings
from serving.server_settings import ServerSettings
from serving.snapshot import open_snapshot
from serving.unit_loader import unit_loader
from serving.vector_store import StoreUnreachable

pytestmark = pytest.mark.usefixtures("kept_streams")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> ColourRuntime:
    """The model that the commands load, whatever bundle they are told."""
    runtime = ColourRuntime()
    monkeypatch.setattr(dual_encoder.runtime.Runtime, "load", lambda *_, **__: runtime)
    return runtime


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUAL_ENCODER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for seed, colour in enumerate(COLOURS):
        (tmp_path / "photos" / f"{colour} thing.png").write_bytes(picture(colour, seed))
    (tmp_path / "photos" / "torn.png").write_bytes(b"torn")
    return tmp_path / "photos"


def build(photos: Path, out: Path, *options: str, bundle: str = "x") -> int:
    return build_index.main(["--bundle", bundle, "--data", f"folder:{photos}", "--out", str(out), *options])


def test_an_index_in_milvus_is_built_and_served_by_the_same_commands(
    runtime: ColourRuntime, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    address = f"milvus://{tmp_path}/store.db?name=photos"
    assert build(photos, tmp_path / "work", "--store", address, "--shard-size", "4") == 0
    said = capsys.readouterr().err
    assert "8 images indexed in milvus://" in said
    assert "Traceback" not in said
    with unit_loader(ServerSettings(store=address, bundle="x", isolated_decoding=False)) as loader:
        engine = loader.load()
    answer = asyncio.run(engine.search(TextQuery("something blue"), SearchOptions(k=3)))
    assert answer.hits[0].image_id == "blue thing.png"
    with engine.store.view() as view:
        assert view.describe().source == f"folder:{photos}"
        (stored,) = view.get(["red thing.png"])
        np.testing.assert_array_equal(
            view.vectors(["red thing.png"])[0],
            runtime.embed_images([picture("red", 0)])[0].astype(np.float16),
        )
    assert (stored.captions, stored.location) == (("red thing",), str(photos / "red thing.png"))
    engine.close()

    before = runtime.embedded
    (photos / "white thing.png").unlink()  # in the last shard
    assert build(photos, tmp_path / "work", "--store", address, "--shard-size", "4") == 0
    assert runtime.embedded - before <= 4, "finished shards are used again"
    store = MilvusStore.open(address, runtime.fingerprint)
    with store.view() as view:
        assert len(view) == 7
        assert view.snapshot == json.loads((tmp_path / "work" / "report.json").read_text())["snapshot"]
    store.close()


def test_a_store_that_is_not_there_is_told_before_anything_is_embedded(
    runtime: ColourRuntime, photos: Path, tmp_path: Path
):
    for address, error in (("milvus://127.0.0.1:1", StoreUnreachable), ("milvus://x?kind=FAST", UserError)):
        with pytest.raises(error):
            build(photos, tmp_path / "work", "--store", address)
    assert runtime.embedded == 0
    assert not (tmp_path / "work").exists()


def test_the_ray_engine_gets_what_the_command_says(
    runtime: ColourRuntime, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    monkeypatch.setattr(RayEmbeddingJob, "run", lambda job, pairs: asked.append(job) or EmbeddingJob.run(job, pairs))
    assert build(photos, tmp_path / "a", "--engine", "ray", "--address", "head:6379", "--workers", "3") == 0
    (job,) = asked
    assert job.ray == RaySettings("head:6379", 3)
    assert (job.batch_size, job.shard_size) == (32, 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--address", "head:6379"], "add --engine ray"), (["--engine", "spark"], "invalid choice")],
)
def test_options_that_do_not_go_together_are_refused(
    photos: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit, match="2"):
        build(photos, tmp_path / "a", *options)
    assert message in capsys.readouterr().err


def test_a_server_of_milvus_must_be_told_the_model():
    with pytest.raises(UserError, match="--bundle with --store"):
        server.main(["--store", "milvus://localhost:19530"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_on_this_machine_publishes_what_one_process_does(photos: Path, tmp_path: Path):
    sizes = ("--shard-size", "3", "--batch-size", "2")
    assert build(photos, tmp_path / "local", *sizes, bundle="default") == 0
    assert build(photos, tmp_path / "ray", *sizes, "--engine", "ray", "--workers", "2", bundle="default") == 0
    local, ray = (open_snapshot(tmp_path / name) for name in ("local", "ray"))
    assert len(ray.vectors) == len(COLOURS)
    np.testing.assert_array_equal(ray.vectors, local.vectors)
    assert [entry.digest for entry in ray.catalog] == [entry.digest for entry in local.catalog]
    local.close()
    ray.close()
