"""What a model makes of pairs that are to be judged, some thousands of them at a time; judges nothing.

Neither pairs nor texts are held: an image costs 24 bytes of memory, a caption 16, and their features lie in the cache's
file. (A bundle's embeddings are no features of a frozen backbone: those are in memory.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any, Protocol

import numpy as np

from data.embedding_neighbours import Rows
from data.pairs import ImageTextPair
from data.quiet_tensorflow import load_tensorflow
from dual_encoder.feature_store import MappedRows
from dual_encoder.pair_scores import PairFeatures
from dual_encoder.training_data import CaptionTable, is_captioned, no_captions

CHUNK = 1 << 15  # pairs in memory at a time
BLOCK = 4096  # images whose classes are looked up at a time


class PairEncoder(Protocol):
    """What makes features of pairs."""

    def images(self, pairs: Sequence[ImageTextPair]) -> tuple[Rows, list[int]]:
        """Features of every pair's image, and the positions of those that do not decode."""

    def captions(self, captions: Sequence[str]) -> Rows:
        """Features of captions."""

    def joined(self, parts: Sequence[Any]) -> Rows:
        """One of the above after another."""

    def named(self, images: Rows) -> Rows | None:
        """What images are taken for, in the space of captions."""


@dataclass(frozen=True)
class JudgedPairs:
    """The features of pairs whose images decode, and, of each of these images, which of the pairs it belongs to."""

    kept: np.ndarray  # (N,) positions among the pairs that were given
    features: PairFeatures


def judged_pairs(encoder: PairEncoder, pairs: Iterable[ImageTextPair]) -> JudgedPairs:
    """Read pairs once and keep what the encoder makes of them; `SourceError` where none is usable.

    Captions are in the order of the pairs, those without content left out.
    """
    kept, groups, image_row, images, captions = [], [], [], [], []
    seen = with_captions = rows = 0
    for chunk in chunks(pairs):
        described = [(seen + place, pair) for place, pair in enumerate(chunk) if is_captioned(pair)]
        seen += len(chunk)
        with_captions += len(described)
        every, bad = encoder.images([pair for _, pair in described])
        good = np.setdiff1d(np.arange(len(described)), bad).astype(np.int64)
        if not len(good):
            continue
        table = CaptionTable.of([described[place][1] for place in good])
        kept.append(np.array([described[place][0] for place in good], np.int64))
        groups.append(np.array([_group(described[place][1]) for place in good], np.int64))
        image_row.append(np.array(table.image_row, np.int64) + rows)
        images.append(every.only(good.tolist()) if isinstance(every, MappedRows) else every[good])
        captions.append(encoder.captions(table.captions))
        rows += len(good)
    if not rows:
        raise no_captions(0, "usable") if with_captions else no_captions(seen, "train and validation")
    of_images = encoder.joined(images)
    features = PairFeatures(
        of_images,
        encoder.joined(captions),
        np.concatenate(image_row),
        np.concatenate(groups),
        encoder.named(of_images),
    )
    return JudgedPairs(np.concatenate(kept), features)


def chunks(pairs: Iterable[ImageTextPair]) -> Iterator[list[ImageTextPair]]:
    """As many pairs as are held at a time, and again."""
    remaining = iter(pairs)
    return iter(lambda: list(islice(remaining, CHUNK)), [])


def _group(pair: ImageTextPair) -> int:
    """A number for the group of a pair, or for a pair without one: 64 bits in which millions hardly ever meet."""
    key = f"image {pair.image_id}" if pair.group is None else f"group {pair.group}"
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True)


class FrozenEncoder:
    """EfficientNet-Lite0 and MiniLM, their features from the cache where it has them, and ImageNet's class names."""

    def __init__(self) -> None:
        load_tensorflow()
        from dual_encoder.anchoring import class_embeddings
        from dual_encoder.frozen_features import caption_features, freeze, image_features
        from dual_encoder.model import classifier_of
        from dual_encoder.projection_head import AnchoredHead
        from dual_encoder.towers import backbone_config
        from dual_encoder.towers.efficientnet_lite import EfficientNetLite
        from dual_encoder.towers.minilm import MiniLM

        image, text, self._head = EfficientNetLite("lite0"), MiniLM(), AnchoredHead()
        frozen = freeze(image.build(True), backbone_config(image))
        self.images = partial(image_features, frozen, image.preprocessing)
        self.captions = partial(caption_features, freeze(text.build(True), backbone_config(text)), text.tokenizer(list))
        self._classifier = classifier_of(image)
        self._classes = class_embeddings(self.captions, self._head.templates)

    def joined(self, parts: Sequence[MappedRows]) -> MappedRows:
        """One file's rows after another."""
        return MappedRows.joined(parts)

    def named(self, images: Rows) -> Rows:
        """What the classifier takes images for, in words, computed when it is asked for."""
        return _Named(images, self._named)

    def _named(self, features: np.ndarray) -> np.ndarray:
        from dual_encoder.bridge_choice import bridge

        kernel, bias = self._classifier
        return bridge(features @ kernel + bias, self._classes, self._head.temperature, self._head.top)


class BundleEncoder:
    """A bundle's embeddings; where it puts an image is what it takes the image for."""

    def __init__(self, bundle: str) -> None:
        from dual_encoder.runtime import Runtime

        self._runtime = Runtime.load(bundle)
        self.captions = self._runtime.embed_texts

    def images(self, pairs: Sequence[ImageTextPair]) -> tuple[np.ndarray, list[int]]:
        """Embeddings, with zeros for an image that does not decode."""
        from dual_encoder.embedded_pairs import embed_decodable

        found, bad = embed_decodable(self._runtime, pairs)
        rows = np.zeros((len(pairs), self._runtime.embedding_dim), np.float32)
        rows[np.setdiff1d(np.arange(len(pairs)), list(bad))] = found
        return rows, sorted(bad)

    def joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """One array."""
        return np.concatenate(parts)

    def named(self, images: Rows) -> Rows:
        """The images' own embeddings."""
        return images


class _Named:
    """Rows that are made of others when they are asked for."""

    def __init__(self, rows: Rows, of: Any) -> None:
        self._rows, self._of = rows, of

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen: Any) -> np.ndarray:
        places = np.arange(len(self))[chosen]
        blocks = [places[start : start + BLOCK] for start in range(0, len(places), BLOCK)]
        return np.concatenate([self._of(self._rows[block]) for block in blocks])
