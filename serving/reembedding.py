"""Gives images that were changed online a vector of another model, from the images themselves; knows no snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.errors import ImageError, SourceError
from data.images import load_pixels
from data.pairs import ImageFile, ImageRange
from serving.image_files import find_image

if TYPE_CHECKING:
    from dual_encoder.runtime import Runtime
    from serving.catalog import CatalogEntry

BATCH = 32


def kept_vectors(runtime: Runtime, embeddings: np.ndarray) -> np.ndarray:
    """What a snapshot keeps of images with these embeddings (B, D): (B, D), or (B, D + 1) with their offsets.

    An offset follows from the embedding as it is stored, so that an image that is known already has the same one.
    """
    return embeddings if runtime.hubness is None else runtime.hubness.searched(np.asarray(embeddings, np.float16))


def kept_width(runtime: Runtime) -> int:
    """How many numbers `kept_vectors` gives for an image."""
    return runtime.embedding_dim + (runtime.hubness is not None)


class Reembedding:
    """Embeds the images of entries anew. `discard` gives up those whose image is not at hand, else they are an error.

    The model is loaded by the first call that needs it.
    """

    def __init__(self, index: Path, load: Callable[[], Runtime], discard: bool = False) -> None:
        self.discarded = 0
        self._index, self._load, self._discard = index, load, discard

    def __call__(self, entries: Sequence[CatalogEntry]) -> list[np.ndarray | None]:
        """What a snapshot keeps, (W,) float32, for each entry, None for one that is given up.

        `SourceError` tells how many images are not at hand, before anything is embedded.
        """
        files = [find_image(self._index, entry.digest, entry.location) for entry in entries]
        missing = [entry.image_id for entry, file in zip(entries, files, strict=True) if file is None]
        if missing and not self._discard:
            raise SourceError(
                "the images that were changed online, to embed them by the new model",
                f"{len(missing):,} vectors without an image, {missing[0]!r} first",
                "bring the images back, or give these up with --discard-vectors",
            )
        vectors: list[np.ndarray | None] = []
        for start in range(0, len(files), BATCH):
            vectors += self._embed(files[start : start + BATCH])
        self.discarded += sum(vector is None for vector in vectors)
        return vectors

    @cached_property
    def _runtime(self) -> Runtime:
        return self._load()

    def _embed(self, files: Sequence[ImageFile | ImageRange | None]) -> list[np.ndarray | None]:
        found = [file for file in files if file is not None]
        try:
            pixels = [load_pixels(file.read(), self._runtime.preprocessing) for file in found]
        except ImageError as error:
            raise SourceError("images that decode", f"{error}", "delete the image, or give it another one") from error
        embedded = iter(kept_vectors(self._runtime, self._runtime.embed_pixels(np.stack(pixels))) if pixels else ())
        return [None if file is None else next(embedded) for file in files]
