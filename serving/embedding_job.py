"""Embeds the images of a source shard by shard, so that a killed job repeats at most one; knows no index.

`EmbeddingJob` works on this machine; `ray_embedding` has the one for a cluster.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.array_files import load_arrays
from data.digest_memo import DigestMemo, FileStamp
from data.durable import write_atomic
from data.loading import map_ordered, with_digests
from data.pairs import ImageTextPair
from serving.embedding_shard import (
    FoundImage,
    KnownVector,
    LoadedImage,
    Outcome,
    Shard,
    embed_shard,
    joined,
    load_image,
    recall_digests,
)

if TYPE_CHECKING:
    from dual_encoder.runtime import Runtime

__all__ = ["EmbeddingJob", "Outcome", "nothing_known"]


def nothing_known(digest: str) -> np.ndarray | None:
    """No image was embedded before."""
    return None


@dataclass(frozen=True)
class _Planned:
    """A finished shard, or an image of one that has to be made."""

    number: int
    content: Shard | FoundImage


@dataclass(frozen=True)
class _Ready:
    """A finished shard, or an image that was loaded for one."""

    number: int
    content: Shard | LoadedImage


@dataclass
class EmbeddingJob:
    """Turns pairs into embeddings and keeps them in `directory`, a file for each `shard_size` images.

    A shard made by an earlier run is used again when the model and the list of (image_id, digest) are the same. An
    image whose digest `known` has a vector for is not embedded, wherever it stands now.
    """

    runtime: Runtime
    directory: Path
    batch_size: int = 32
    shard_size: int = 256
    known: KnownVector = nothing_known
    reused_shards: int = 0
    embedded_shards: int = 0
    known_images: int = 0
    reused_images: int = 0
    _rows: list[int] = field(default_factory=list)  # embedded images in each shard

    def run(self, pairs: Iterable[ImageTextPair]) -> Generator[Outcome]:
        """Embed `pairs`; one outcome for each, in their order. While a batch is embedded the next ones are decoded.

        When this ends, by an error or by `close` too, nothing is decoded any more and `known` is not asked again.
        """
        # Closed here: an error's traceback would keep it, and its threads, beyond the life of what `known` reads.
        with closing(map_ordered(self._load, self._plan(pairs), ahead=2 * self.batch_size)) as stream:
            for number, group in itertools.groupby(stream, key=attrgetter("number")):
                first = next(group)
                if isinstance(first.content, Shard):
                    yield from self.reuse(first.content)
                else:
                    yield from self._embed(number, (item for item in itertools.chain([first], group)))

    def vectors(self) -> Iterator[np.ndarray]:
        """The embeddings of the finished run, (B, D) float32 for each shard, in the order of the outcomes."""
        for number, rows in enumerate(self._rows):
            vectors = load_arrays(self.path(number))["vectors"]
            shape = (rows, self.runtime.embedding_dim)
            if vectors.shape != shape or vectors.dtype != np.float32:
                raise ValueError(f"expected float32 {shape} in shard {number}; it has changed meanwhile")
            yield vectors

    def chunks(self, pairs: Iterable[ImageTextPair]) -> Iterator[tuple[int, list[ImageTextPair]]]:
        """The images of each shard with its number."""
        remaining = iter(pairs)
        for number in itertools.count():
            chunk = list(itertools.islice(remaining, self.shard_size))
            if not chunk:
                return
            yield number, chunk

    def finished(self, number: int, pairs: Sequence[ImageTextPair]) -> Shard | None:
        """The stored shard, if it was made of exactly these images by this model."""
        try:
            content = self.path(number).read_bytes()
        except OSError:
            return None
        stored = Shard.from_bytes(content, self.runtime.fingerprint, pairs)
        # Images are read to tell only where everything else agrees.
        if stored is None or [o.digest for o in stored.outcomes] != [pair.digest for pair in with_digests(pairs)]:
            return None
        return stored

    def reuse(self, shard: Shard) -> list[Outcome]:
        """Count a stored shard as the next one; its outcomes."""
        self.reused_shards += 1
        self.reused_images += len(shard.vectors)
        self._rows.append(len(shard.vectors))
        return shard.outcomes

    def keep(self, number: int, content: bytes, rows: int) -> None:
        """Write a finished shard with `rows` embeddings; a crash leaves the whole file or none."""
        write_atomic(self.path(number), content)
        self._rows.append(rows)
        self.embedded_shards += 1

    def path(self, number: int) -> Path:
        """Where a shard stays."""
        return self.directory / f"{number:06}.npz"

    def _plan(self, pairs: Iterable[ImageTextPair]) -> Iterator[_Planned]:
        """Finished shards as they are, and the images of the others one by one."""
        for number, chunk in self.chunks(pairs):
            if (stored := self.finished(number, chunk)) is not None:
                yield _Planned(number, stored)
            else:
                yield from (_Planned(number, found) for found in recall_digests(chunk))

    def _load(self, item: _Planned) -> _Ready:
        """Runs in a pool of threads."""
        if isinstance(item.content, Shard):
            return _Ready(item.number, item.content)
        return _Ready(item.number, load_image(item.content, self.runtime.preprocessing, self.known))

    def _embed(self, number: int, images: Iterator[_Ready]) -> Iterator[Outcome]:
        """Embed the images of a shard, and keep it."""
        stamps: list[FileStamp | None] = []
        pieces: list[Shard] = []
        for piece in embed_shard(self.runtime, self._noted(images, stamps), self.batch_size):
            pieces.append(piece)
            yield from piece.outcomes
        shard = joined(pieces)
        self.keep(number, shard.to_bytes(self.runtime.fingerprint), len(shard.vectors))
        remember(stamps, shard)

    def _noted(self, items: Iterator[_Ready], stamps: list[FileStamp | None]) -> Iterator[LoadedImage]:
        for item in items:
            image = item.content
            assert isinstance(image, LoadedImage)
            self.known_images += image.known
            stamps.append(image.stamp)
            yield image


def remember(stamps: Sequence[FileStamp | None], shard: Shard) -> None:
    """Note digests by how their files looked, so that the next run does not read them to know them again."""
    with DigestMemo() as memo:
        memo.note(stamps, [outcome.digest for outcome in shard.outcomes])
