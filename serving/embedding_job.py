"""Embeds the images of a source shard by shard, so that a killed job repeats at most one; knows no index."""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.digest_memo import DigestMemo, FileStamp
from data.durable import digest_bytes, digest_json, naming_file, write_atomic
from data.errors import ImageError
from data.images import load_resized, normalise_batch
from data.loading import map_ordered, with_digests
from data.pairs import ImageFile, ImageTextPair

if TYPE_CHECKING:
    from dual_encoder.runtime import Runtime


@dataclass(frozen=True)
class Outcome:
    """What became of one image: an embedding, or a reason and a message."""

    pair: ImageTextPair
    digest: str  # SHA-256 of the encoded image, or "unreadable:REASON"
    reason: str = ""
    message: str = ""

    @property
    def embedded(self) -> bool:
        """Whether the image has a vector."""
        return not self.reason


@dataclass(frozen=True)
class _Loaded:
    shard: int
    pair: ImageTextPair
    digest: str
    content: np.ndarray | ImageError  # pixels (S, S, 3) uint8
    stamp: FileStamp | None  # of its file before it was read


@dataclass(frozen=True)
class _Reused:
    shard: int
    outcomes: list[Outcome]
    vectors: np.ndarray


@dataclass
class EmbeddingJob:
    """Turns pairs into embeddings and keeps them in `directory`, a file for each `shard_size` images.

    A shard made by an earlier run is used again when the model and the list of (image_id, digest) are the same.
    """

    runtime: Runtime
    directory: Path
    batch_size: int = 32
    shard_size: int = 256
    reused_shards: int = 0
    embedded_shards: int = 0
    _rows: list[int] = field(default_factory=list)  # embedded images in each shard

    def run(self, pairs: Iterable[ImageTextPair]) -> Iterator[Outcome]:
        """Embed `pairs`; one outcome for each, in their order. While a batch is embedded the next ones are decoded."""
        stream = map_ordered(self._load, self._plan(pairs), ahead=2 * self.batch_size)
        for shard, group in itertools.groupby(stream, key=attrgetter("shard")):
            first = next(group)
            if isinstance(first, _Reused):
                self.reused_shards += 1
                self._rows.append(len(first.vectors))
                yield from first.outcomes
                continue
            loaded = (item for item in itertools.chain([first], group) if isinstance(item, _Loaded))
            yield from self._embed_shard(shard, loaded)

    def write_vectors(self, path: Path) -> None:
        """Write the embeddings of the finished run, (N, D) float32 in the order of the outcomes, as one .npy file."""
        shape = (sum(self._rows), self.runtime.embedding_dim)
        header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
        # Written, not memory-mapped: a full disk is then an error and not a signal that ends the process.
        with naming_file(path), path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for shard, rows in enumerate(self._rows):
                with np.load(self._path(shard), allow_pickle=False) as stored:
                    vectors = stored["vectors"]
                if vectors.shape != (rows, shape[1]) or vectors.dtype != np.float32:
                    raise ValueError(f"expected float32 {(rows, shape[1])} in shard {shard}; it has changed meanwhile")
                file.write(np.ascontiguousarray(vectors).data)

    def _plan(self, pairs: Iterable[ImageTextPair]) -> Iterator[_Reused | tuple[int, ImageTextPair]]:
        """Finished shards as they are, and the pairs of the others one by one."""
        remaining = iter(pairs)
        for shard in itertools.count():
            chunk = list(itertools.islice(remaining, self.shard_size))
            if not chunk:
                return
            reused = self._reusable(shard, chunk)
            if reused is not None:
                yield reused
            else:
                yield from ((shard, pair) for pair in chunk)

    def _reusable(self, shard: int, pairs: Sequence[ImageTextPair]) -> _Reused | None:
        """The stored shard if it was made of exactly these images by this model; a damaged file counts as absent."""
        try:
            with np.load(self._path(shard), allow_pickle=False) as stored:
                if "asked" in stored and str(stored["asked"]) != self._asked(pairs):
                    return None  # of other images or by another model, whatever their bytes: none is read to tell
                key, vectors, rejected = str(stored["key"]), stored["vectors"], json.loads(str(stored["rejected"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        digests = [pair.digest or "" for pair in with_digests(pairs)]
        if key != self._key(pairs, digests):
            return None
        outcomes = [
            Outcome(pair, digest, *rejected.get(str(position), ("", "")))
            for position, (pair, digest) in enumerate(zip(pairs, digests, strict=True))
        ]
        return _Reused(shard, outcomes, vectors)

    def _load(self, item: _Reused | tuple[int, ImageTextPair]) -> _Reused | _Loaded:
        """Read one image, once, hash it and decode it; runs in a pool of threads."""
        if isinstance(item, _Reused):
            return item
        shard, pair = item
        stamp = FileStamp.of(pair.image.path) if isinstance(pair.image, ImageFile) else None
        try:
            data = pair.image.read()
        except ImageError as error:
            return _Loaded(shard, pair, f"unreadable:{error.reason}", error, None)
        digest = digest_bytes(data)
        try:
            return _Loaded(shard, pair, digest, load_resized(data, self.runtime.preprocessing), stamp)
        except ImageError as error:
            return _Loaded(shard, pair, digest, error, stamp)

    def _embed_shard(self, shard: int, images: Iterator[_Loaded]) -> Iterator[Outcome]:
        """Embed the images of a shard batch by batch, and keep the shard."""
        outcomes: list[Outcome] = []
        vectors: list[np.ndarray] = []
        stamps: list[FileStamp | None] = []
        for batch in self._filled(images):
            embedded, embeddings = self._embed(batch)
            outcomes += embedded
            vectors.append(embeddings)
            stamps += [image.stamp for image in batch]
            yield from embedded
        self._save(shard, outcomes, np.concatenate(vectors))
        with DigestMemo() as memo:  # so that the next run does not read these files to know them again
            memo.note(stamps, [outcome.digest for outcome in outcomes])

    def _filled(self, images: Iterator[_Loaded]) -> Iterator[list[_Loaded]]:
        """Consecutive images of which `batch_size` decoded, and what is left."""
        batch: list[_Loaded] = []
        good = 0
        for image in images:
            batch.append(image)
            good += not isinstance(image.content, ImageError)
            if good == self.batch_size:
                yield batch
                batch, good = [], 0
        if batch:
            yield batch

    def _embed(self, batch: list[_Loaded]) -> tuple[list[Outcome], np.ndarray]:
        """One outcome for each image, and the embeddings (B, D) of those that decoded."""
        pixels, outcomes = [], []
        for image in batch:
            if isinstance(image.content, ImageError):
                outcomes.append(Outcome(image.pair, image.digest, image.content.reason, str(image.content)))
            else:
                pixels.append(image.content)
                outcomes.append(Outcome(image.pair, image.digest))
        if not pixels:
            return outcomes, np.empty((0, self.runtime.embedding_dim), np.float32)
        return outcomes, self.runtime.embed_pixels(normalise_batch(pixels, self.runtime.preprocessing))

    def _save(self, shard: int, outcomes: list[Outcome], vectors: np.ndarray) -> None:
        """Keep a finished shard; a crash leaves the whole file or none."""
        rejected = {
            str(position): (outcome.reason, outcome.message)
            for position, outcome in enumerate(outcomes)
            if not outcome.embedded
        }
        pairs = [outcome.pair for outcome in outcomes]
        asked = np.array(self._asked(pairs))
        key = np.array(self._key(pairs, [outcome.digest for outcome in outcomes]))
        buffer = io.BytesIO()
        np.savez(buffer, vectors=vectors, rejected=np.array(json.dumps(rejected)), asked=asked, key=key)
        write_atomic(self._path(shard), buffer.getvalue())
        self._rows.append(len(vectors))
        self.embedded_shards += 1

    def _asked(self, pairs: Sequence[ImageTextPair]) -> str:
        """Names the model and the ids of a shard, without the images' content."""
        return digest_json({"fingerprint": self.runtime.fingerprint, "ids": [pair.image_id for pair in pairs]})

    def _key(self, pairs: Sequence[ImageTextPair], digests: Sequence[str]) -> str:
        images = [[pair.image_id, digest] for pair, digest in zip(pairs, digests, strict=True)]
        return digest_json({"fingerprint": self.runtime.fingerprint, "images": images})

    def _path(self, shard: int) -> Path:
        return self.directory / f"{shard:06}.npz"
