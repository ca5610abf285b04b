"""What an index knows about its images: by id, and all of them page by page; knows no query and no gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data.durable import digest_json
from data.errors import QueryError
from serving.catalog import ImageNotFound
from serving.filter_syntax import parse
from serving.page_tokens import ListToken, other_request
from serving.queries import check_count, check_image_id

if TYPE_CHECKING:
    from serving.vector_store import StoredImage, StoreView, VectorStore
    from serving.work_pool import WorkPool

MAX_IMAGES, DEFAULT_IMAGES = 1_000, 100


@dataclass(frozen=True)
class KnownImage:
    """An image, and its stored embedding (D,) float32 when it was asked for."""

    image: StoredImage
    vector: np.ndarray | None = None


class ImageLookup:
    """Looks images up in a store, on threads of `workers`. Deadlines are moments on the event loop's clock."""

    def __init__(self, store: VectorStore, workers: WorkPool) -> None:
        self._store, self._workers = store, workers

    async def get(
        self, image_id: str, with_vector: bool = False, deadline: float | None = None
    ) -> tuple[KnownImage, str]:
        """An image and the revision of the index; `ImageNotFound`."""
        check_image_id("image_id", image_id)
        (found,), revision = await self._found([image_id], with_vector, deadline)
        if found is None:
            raise ImageNotFound(image_id)
        return found, revision

    async def batch_get(
        self, image_ids: Sequence[str], with_vectors: bool = False, deadline: float | None = None
    ) -> tuple[list[KnownImage | None], str]:
        """Each of 1 to 1,000 images, None for one that is not there, and the revision of the index."""
        check_count("image_ids", len(image_ids), MAX_IMAGES)
        for place, image_id in enumerate(image_ids):
            check_image_id(f"image_ids[{place}]", image_id)
        return await self._found(image_ids, with_vectors, deadline)

    async def page(
        self,
        page_size: int = DEFAULT_IMAGES,
        page_token: str = "",
        filter_text: str = "",
        with_vectors: bool = False,
        deadline: float | None = None,
    ) -> tuple[list[KnownImage], str, str]:
        """Images in the order of their ids, the token of the following page or "", and the revision of the index.

        The token holds the last id, so that it stays valid whatever changes, and no image comes twice.
        """
        if not 1 <= page_size <= MAX_IMAGES:
            expected = f"1 to {MAX_IMAGES:,} images"
            raise QueryError("page_size", expected, f"{page_size:,}", "ask for a number in this range")
        request = digest_json(["list", filter_text])[:16]
        token = ListToken.decode(page_token) if page_token else ListToken(request, "")
        if token.request != request:
            raise other_request()

        def read() -> tuple[list[KnownImage], str, str]:
            where = parse(filter_text) if filter_text.strip() else None
            with self._store.view() as view:
                images = view.page(token.after, page_size + 1, where)
                known = _with_vectors(view, images[:page_size], with_vectors)
                revision = view.revision
            after = ListToken(request, images[page_size - 1].image_id).encode() if len(images) > page_size else ""
            return known, after, revision

        return await self._workers.run(read, deadline)

    async def _found(
        self, image_ids: Sequence[str], with_vectors: bool, deadline: float | None
    ) -> tuple[list[KnownImage | None], str]:
        def find() -> tuple[list[KnownImage | None], str]:
            with self._store.view() as view:
                images = view.get(image_ids)
                known = iter(_with_vectors(view, [image for image in images if image], with_vectors))
                return [next(known) if image else None for image in images], view.revision

        return await self._workers.run(find, deadline)


def _with_vectors(view: StoreView, images: Sequence[StoredImage], wanted: bool) -> list[KnownImage]:
    if not wanted or not images:
        return [KnownImage(image) for image in images]
    vectors = view.vectors([image.image_id for image in images])
    return [KnownImage(image, vector) for image, vector in zip(images, vectors, strict=True)]
