"""A few hundred images with their embeddings: how they are made, and the file they stay in; knows no source.

Every engine makes its shards here, so that the same images give the same file wherever they were embedded.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data.array_files import load_arrays
from data.digest_memo import DigestMemo, FileStamp
from data.durable import digest_bytes, digest_json
from data.errors import ImageError
from data.images import ImagePreprocessing, load_resized, normalise_batch
from data.pairs import ImageFile, ImageTextPair

# The vector (D,) of an image that was embedded before, by its digest; None for one that was not.
KnownVector = Callable[[str], np.ndarray | None]


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
class FoundImage:
    """An image of a source before it is read: the digest it had when its file looked as it does now, if ever."""

    pair: ImageTextPair
    stamp: FileStamp | None = None
    digest: str | None = None


@dataclass(frozen=True)
class LoadedImage:
    """An image on its way: its pixels (S, S, 3) uint8, the vector (D,) it already has, or why it cannot be used."""

    pair: ImageTextPair
    digest: str
    content: np.ndarray | ImageError
    known: bool = False  # whether `content` is a vector
    stamp: FileStamp | None = None  # of its file before it was read


@dataclass(frozen=True)
class Shard:
    """The outcomes of consecutive images, and the embeddings (B, D) float32 of those that have one, in order."""

    outcomes: list[Outcome]
    vectors: np.ndarray

    def to_bytes(self, fingerprint: str) -> bytes:
        """The file of this shard; equal for equal images, embeddings and model."""
        rejected = {
            str(position): (outcome.reason, outcome.message)
            for position, outcome in enumerate(self.outcomes)
            if not outcome.embedded
        }
        pairs, digests = [o.pair for o in self.outcomes], [o.digest for o in self.outcomes]
        buffer = io.BytesIO()
        np.savez(
            buffer,
            vectors=self.vectors,
            asked=np.array(asked(fingerprint, pairs)),
            digests=np.array(json.dumps(digests)),
            rejected=np.array(json.dumps(rejected)),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, fingerprint: str, pairs: Sequence[ImageTextPair]) -> Shard | None:
        """The shard of a file if it was made of images of these ids by this model; a damaged file counts as absent.

        Whether the images are still the same, their digests tell.
        """
        try:
            stored = load_arrays(content)
            if str(stored["asked"]) != asked(fingerprint, pairs):
                return None
            digests, rejected = (json.loads(str(stored[name])) for name in ("digests", "rejected"))
            vectors = stored["vectors"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        outcomes = [
            Outcome(pair, digest, *rejected.get(str(position), ("", "")))
            for position, (pair, digest) in enumerate(zip(pairs, digests, strict=True))
        ]
        return cls(outcomes, vectors) if len(vectors) == len(pairs) - len(rejected) else None


def asked(fingerprint: str, pairs: Iterable[ImageTextPair]) -> str:
    """Names a model and the ids of images, whatever these hold."""
    return digest_json({"fingerprint": fingerprint, "ids": [pair.image_id for pair in pairs]})


class PixelEncoder(Protocol):
    """What of a `Runtime` embeds images."""

    preprocessing: ImagePreprocessing
    embedding_dim: int

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (B, S, S, 3) float32 to embeddings (B, D) float32."""


def recall_digests(pairs: Sequence[ImageTextPair]) -> list[FoundImage]:
    """The images with the digests that are known without reading them."""
    stamps = [FileStamp.of(pair.image.path) if isinstance(pair.image, ImageFile) else None for pair in pairs]
    with DigestMemo() as memo:
        recalled = memo.recall(stamps)
    return [FoundImage(*found) for found in zip(pairs, stamps, recalled, strict=True)]


def load_image(found: FoundImage, preprocessing: ImagePreprocessing, known: KnownVector) -> LoadedImage:
    """Read an image at most once, for its digest and its pixels; one whose vector is known is not decoded."""
    pair = found.pair
    if found.digest and (vector := known(found.digest)) is not None:
        return LoadedImage(pair, found.digest, vector, known=True)
    try:
        data = pair.image.read()
    except ImageError as error:
        return LoadedImage(pair, f"unreadable:{error.reason}", error)
    digest = digest_bytes(data)
    if (vector := known(digest)) is not None:
        return LoadedImage(pair, digest, vector, known=True, stamp=found.stamp)
    try:
        return LoadedImage(pair, digest, load_resized(data, preprocessing), stamp=found.stamp)
    except ImageError as error:
        return LoadedImage(pair, digest, error, stamp=found.stamp)


def embed_shard(runtime: PixelEncoder, images: Iterable[LoadedImage], batch_size: int) -> Iterator[Shard]:
    """Embed images batch by batch; each piece holds consecutive images, of which `batch_size` had to be embedded."""
    waiting: list[LoadedImage] = []
    fresh = 0
    for image in images:
        waiting.append(image)
        fresh += not (image.known or isinstance(image.content, ImageError))
        if fresh == batch_size:
            yield _embed(runtime, waiting)
            waiting, fresh = [], 0
    if waiting:
        yield _embed(runtime, waiting)


def joined(pieces: Sequence[Shard]) -> Shard:
    """Pieces that follow one another as one shard."""
    return Shard([o for piece in pieces for o in piece.outcomes], np.concatenate([piece.vectors for piece in pieces]))


def _embed(runtime: PixelEncoder, images: Sequence[LoadedImage]) -> Shard:
    outcomes, pixels, rows = [], [], []  # a row is a vector that is known, or None for the next that is embedded
    for image in images:
        content = image.content
        if isinstance(content, ImageError):
            outcomes.append(Outcome(image.pair, image.digest, content.reason, str(content)))
            continue
        outcomes.append(Outcome(image.pair, image.digest))
        rows.append(content if image.known else None)
        if not image.known:
            pixels.append(content)
    fresh = iter(runtime.embed_pixels(normalise_batch(pixels, runtime.preprocessing)) if pixels else ())
    vectors = np.empty((len(rows), runtime.embedding_dim), np.float32)
    for position, row in enumerate(rows):
        vectors[position] = next(fresh) if row is None else row
    return Shard(outcomes, vectors)
