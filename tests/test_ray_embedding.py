"""A cluster of several machines makes the shards that one machine makes, though a worker dies on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from chain import Chain
from fakes import ColourRuntime, colour_pair

from data.errors import SourceError
from data.pairs import ImageBytes, ImageTextPair
from data.sources import open_source
from dual_encoder.runtime import Runtime
from serving.embedding_job import EmbeddingJob
from serving.ray_embedding import ClusterError, RayEmbeddingJob, RaySettings

# Ray's own processes take half a minute to start.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_streams")]

IMAGES, SHARD = 60, 10


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two machines of one core each, as far as Ray can tell."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def workers() -> list[int]:
    """Processes of Ray that hold our model."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = path.read_bytes()
        except OSError:
            continue  # it ended meanwhile
        if name.startswith(b"ray::") and b"ShardWorker" in name:
            found.append(int(path.parent.name))
    return found


def images(chain: Chain) -> list[ImageTextPair]:
    pairs = list(open_source(f"prepared:{chain.data}"))[:IMAGES]
    torn = pairs[7].image.read()[:100]
    pairs[7] = ImageTextPair("torn", ImageBytes(lambda: torn))
    return pairs


def test_the_shards_are_those_of_one_machine_though_a_worker_is_killed(
    chain: Chain, address: str, tmp_path: Path
) -> None:
    runtime, pairs = Runtime.load(chain.bundle), images(chain)
    local = EmbeddingJob(runtime, tmp_path / "local", batch_size=4, shard_size=SHARD)
    expected = list(local.run(pairs))
    settings = RaySettings(address=address)
    there = RayEmbeddingJob(
        runtime, tmp_path / "ray", batch_size=4, shard_size=SHARD, bundle=str(chain.bundle), ray=settings
    )
    outcomes, killed = [], []
    for outcome in there.run(pairs):
        if not outcomes:
            killed = workers()[:1]
            for process in killed:
                os.kill(process, signal.SIGKILL)
        outcomes.append(outcome)
    assert killed
    assert outcomes == expected
    assert [outcome.reason for outcome in outcomes if not outcome.embedded] == ["damaged"]
    for number in range(IMAGES // SHARD):
        assert there.path(number).read_bytes() == local.path(number).read_bytes()
    again = RayEmbeddingJob(runtime, tmp_path / "ray", 4, SHARD, bundle=str(chain.bundle), ray=settings)
    assert list(again.run(pairs)) == expected
    assert (again.reused_shards, again.embedded_shards) == (IMAGES // SHARD, 0)


def test_a_machine_with_another_model_is_told(chain: Chain, address: str, tmp_path: Path) -> None:
    job = RayEmbeddingJob(
        ColourRuntime(fingerprint="another"),  # type: ignore[arg-type]
        tmp_path,
        bundle=str(chain.bundle),
        ray=RaySettings(address=address),
    )
    with pytest.raises(ClusterError, match="model another on every machine"):
        list(job.run(images(chain)))


def test_images_that_stay_in_this_process_are_refused(address: str, tmp_path: Path) -> None:
    import threading

    lock = threading.Lock()
    pair = ImageTextPair("held", ImageBytes(lambda: lock.name))  # type: ignore[attr-defined]
    job = RayEmbeddingJob(ColourRuntime(), tmp_path, bundle="default", ray=RaySettings(address=address))  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="images in files"):
        list(job.run([pair]))


def test_a_cluster_that_is_not_there_is_told(tmp_path: Path) -> None:
    job = RayEmbeddingJob(
        ColourRuntime(),  # type: ignore[arg-type]
        tmp_path,
        bundle="default",
        ray=RaySettings(address="127.0.0.1:1"),
    )
    with pytest.raises(ClusterError, match="a Ray cluster"):
        list(job.run([colour_pair(0)]))
