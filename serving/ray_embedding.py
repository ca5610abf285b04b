"""Embeds the images of a source on the machines of a Ray cluster, with the shards that `EmbeddingJob` makes on one.

Every machine needs this project at the same path, and the bundle and the images under the paths that this one knows
them by: a shared file system. A worker that dies is replaced, and what it was doing is done again (by Ray Data).
"""

from __future__ import annotations

import functools
import itertools
import logging
import socket
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import SourceError, UserError
from data.pairs import ImageTextPair
from serving.embedding_job import EmbeddingJob, remember
from serving.embedding_shard import (
    FoundImage,
    Outcome,
    Shard,
    embed_shard,
    joined,
    load_image,
    recall_digests,
)
from serving.network import host_and_port

if TYPE_CHECKING:
    from ray.data import Dataset

    from dual_encoder.runtime import Runtime

# Shards given to Ray at once. What they hold of the source (ids, captions, paths) is in memory meanwhile, and workers
# load the model once for each such wave: 256 shards of 256 images are minutes of work for a core.
WAVE = 256

CONNECT_SECONDS = 5.0

_PROJECT = Path(__file__).resolve().parent.parent


class ClusterError(UserError):
    """The Ray cluster cannot be reached, or lost what it needs to go on."""


@dataclass(frozen=True)
class RaySettings:
    """`address` is that of a running cluster, or empty for one on this machine; each worker takes `cores` of a machine.

    `workers` 0 stands for as many as the cluster has room for.
    """

    address: str = ""
    workers: int = 0
    cores: int = 1


@dataclass
class RayEmbeddingJob(EmbeddingJob):
    """An `EmbeddingJob` whose shards are made by Ray Data; `bundle` is the name that workers load the model by.

    `ClusterError` when the cluster is not there; `SourceError` when images cannot be sent to another process.
    """

    bundle: str = ""
    ray: RaySettings = RaySettings()

    def run(self, pairs: Iterable[ImageTextPair]) -> Generator[Outcome]:
        """See `EmbeddingJob.run`."""
        chunks = self.chunks(pairs)
        with _connected(self.ray):
            while wave := list(itertools.islice(chunks, WAVE)):
                yield from self._run_wave(wave)

    def _run_wave(self, wave: Sequence[tuple[int, list[ImageTextPair]]]) -> Iterator[Outcome]:
        stored = {number: shard for number, chunk in wave if (shard := self.finished(number, chunk)) is not None}
        made = self._made([(number, chunk) for number, chunk in wave if number not in stored])
        for number, chunk in wave:
            if number in stored:
                yield from self.reuse(stored[number])
                continue
            content, stamps = next(made)
            shard = Shard.from_bytes(content, self.runtime.fingerprint, chunk)
            if shard is None:
                raise ClusterError(f"shard {number} as it was asked for", "another one", "run again")
            self.keep(number, content, len(shard.vectors))
            remember(stamps, shard)
            yield from shard.outcomes

    def _made(self, chunks: Sequence[tuple[int, list[ImageTextPair]]]) -> Iterator[tuple[bytes, Any]]:
        """The files of shards, in order, as the cluster finishes them; with the stamps of the images' files."""
        if not chunks:
            return
        import ray
        from ray import cloudpickle

        settings = (self.bundle, self.runtime.fingerprint, self.batch_size, self.ray.cores)
        dataset = _on_workers([self._row(chunk) for _, chunk in chunks], settings, self.ray)
        try:
            for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
                for row in batch["made"]:
                    made = cloudpickle.loads(row)
                    if len(made) == 3:
                        raise ClusterError(*made)
                    yield made
        except ray.exceptions.RayError as error:
            received = f"{error}"[:300]
            raise ClusterError("a cluster that goes on", received, "run again: finished shards are kept") from None

    def _row(self, pairs: Sequence[ImageTextPair]) -> dict[str, Any]:
        """What a worker needs for one shard: its images, and the vectors that are known already."""
        from ray import cloudpickle

        found = recall_digests(pairs)
        vectors = {image.digest: self.known(image.digest) for image in found if image.digest}
        known = {digest: vector for digest, vector in vectors.items() if vector is not None}
        self.known_images += sum(image.digest in known for image in found)
        try:
            return {"asked": cloudpickle.dumps((found, known))}
        except Exception as error:  # whatever an image's loader holds
            raise SourceError(
                "images in files, which another machine can read",
                f"some that stay in this process ({error})",
                "write them to a folder, or leave --engine ray out",
            ) from None


class ShardWorker:
    """One process of the cluster with the model loaded; a row asks for a shard.

    What a user can act on comes back as a value, for Ray wraps and hides what is raised.
    """

    def __init__(self, bundle: str, fingerprint: str, batch_size: int, cores: int) -> None:
        self.bundle, self.fingerprint, self.batch_size, self.cores = bundle, fingerprint, batch_size, cores

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The file of the shard with the stamps of its images' files, or the words of a `UserError`."""
        from ray import cloudpickle

        try:
            made: tuple[Any, ...] = self._make(row["asked"])
        except UserError as error:
            made = (error.expected, error.received, error.next_step)
        return {"made": cloudpickle.dumps(made)}

    @functools.cached_property
    def runtime(self) -> Runtime:
        """The model that the job was asked to run."""
        from dual_encoder.runtime import Runtime

        runtime = Runtime.load(self.bundle, threads=self.cores)
        if runtime.fingerprint != self.fingerprint:
            raise ClusterError(
                f"model {self.fingerprint[:12]} on every machine",
                f"model {runtime.fingerprint[:12]}",
                "copy the bundle to the same path everywhere",
            )
        return runtime

    def _make(self, asked: bytes) -> tuple[bytes, list[Any]]:
        from ray import cloudpickle

        from data.loading import map_ordered

        found, known = cloudpickle.loads(asked)
        stamps = []

        def load(image: FoundImage) -> Any:
            return load_image(image, self.runtime.preprocessing, known.get)

        def noted() -> Iterator[Any]:
            for image in map_ordered(load, found, ahead=2 * self.batch_size, workers=self.cores):
                stamps.append(image.stamp)
                yield image

        shard = joined(list(embed_shard(self.runtime, noted(), self.batch_size)))
        return shard.to_bytes(self.runtime.fingerprint), stamps


def _on_workers(rows: list[dict[str, Any]], settings: tuple[Any, ...], ray_settings: RaySettings) -> Dataset:
    import ray

    room = max(1, int(ray.cluster_resources().get("CPU", 1)) // ray_settings.cores)
    workers = min(ray_settings.workers or room, len(rows))
    return ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        ShardWorker,  # type: ignore[arg-type]  # Ray makes the instances
        fn_constructor_args=settings,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=ray_settings.cores,
    )


@contextmanager
def _connected(settings: RaySettings) -> Iterator[None]:
    """A connection to the cluster, or a cluster on this machine, for as long as it is used."""
    import ray
    import ray.data

    where = settings.address or "this machine"
    try:
        _check_reachable(settings.address)
        ray.init(
            address=settings.address or "local",
            runtime_env={"env_vars": {"PYTHONPATH": str(_PROJECT)}},
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=None if settings.address else False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        received = f"none at {where} ({error})"[:300]
        raise ClusterError("a Ray cluster", received, "check --address, or start one with `ray start`") from None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """An `OSError` at once where nobody listens: Ray itself tries for minutes."""
    found = host_and_port(address)  # what is none, such as "auto", is Ray's own
    if found is not None:
        socket.create_connection(found, timeout=CONNECT_SECONDS).close()
