"""Adding, replacing and removing images of an index: checks, embeds, keeps the image, and waits for the disk; knows no
gRPC.

Example: `await ImageChanges(runtime, store, encoder).upsert(ImageUpsert("a.jpg", data))`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from data.errors import QueryError
from serving.catalog import attributes_json, captions_json
from serving.change_request import MAX_KEY_CHARACTERS, check_attributes
from serving.queries import MAX_ID_CHARACTERS, check_count, unit_vector
from serving.vector_store import Change, Delete, Receipt, Upsert
from serving.work_pool import WorkPool

if TYPE_CHECKING:
    from concurrent.futures import Future

    from data.pairs import AttributeValue
    from dual_encoder.runtime import Runtime
    from serving.query_encoder import QueryEncoder
    from serving.vector_store import VectorStore

MAX_CAPTIONS, MAX_CAPTION_CHARACTERS = 100, 10_000
MAX_ATTRIBUTES, MAX_NAME_CHARACTERS = 100, 256
MAX_TEXT_BYTES = 64 * 1024  # of captions and attributes as JSON: hits carry them
MAX_DELETED = 1_000

# Threads that wait for the disk while they keep images; they take no part in a search.
THREADS = 8


class ReadOnly(Exception):
    """A change came to a server that was not told to accept any."""


class StoreFailed(Exception):
    """The disk did not take a change, of which nothing was applied; `full` when it has no room."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.full = error.errno in (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class ImageUpsert:
    """Put an image in the place of what its id held; fields as in `UpsertImageRequest` of the interface.

    `content` is the encoded image, or its embedding by the same model, of any length but 0.
    """

    image_id: str
    content: bytes | np.ndarray = field(repr=False, compare=False)
    captions: Sequence[str] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    if_version: int | None = None
    request_id: str = ""


class ImageChanges:
    """Changes to one store by its model. Belongs to the event loop that first uses it.

    Deadlines are moments on the event loop's clock. Many changes that wait for the disk share a flush and take no
    thread. `ReadOnly`; `QueryError` names the field at fault; `StoreFailed`, and what `VectorStore.apply` raises.
    """

    def __init__(self, runtime: Runtime, store: VectorStore, encoder: QueryEncoder) -> None:
        self._runtime, self._store, self._encoder = runtime, store, encoder
        self._workers = WorkPool("changes", threads=THREADS)

    async def upsert(self, image: ImageUpsert, deadline: float | None = None) -> int:
        """Add or replace an image; it is durable and searched on return. Returns its version."""
        self._check_writable()
        check_upsert(image)
        if isinstance(image.content, bytes):
            vector = (await self._encoder.embed_images([image.content], "data", deadline))[0]
        else:
            vector = unit_vector("vector", image.content, self._runtime.embedding_dim)
        receipt = await self._applied(lambda: self._submit_upsert(image, vector), deadline)
        return receipt.versions[0]

    async def delete(
        self,
        image_ids: Sequence[str],
        if_version: int | None = None,
        request_id: str = "",
        deadline: float | None = None,
        field: str = "image_ids",
    ) -> tuple[int, ...]:
        """Remove images, all or none; returns the version at which each was removed. `field` is what names them."""
        self._check_writable()
        check_count(field, len(image_ids), MAX_DELETED)
        for image_id in image_ids:
            _check_new_id(field, image_id)
        _check_condition(if_version, request_id)
        changes: list[Change] = [Delete(image_id, if_version) for image_id in image_ids]
        receipt = await self._applied(lambda: self._store.submit(changes, request_id), deadline)
        return receipt.versions

    def close(self) -> None:
        """Stop the threads after what they are doing."""
        self._workers.close()

    def _check_writable(self) -> None:
        if not self._store.writable:
            raise ReadOnly

    async def _applied(self, submit: Callable[[], Future[Receipt]], deadline: float | None) -> Receipt:
        """Hand a change to the store in a thread, for the image goes to the disk first, and wait without one."""
        try:
            return await asyncio.wrap_future(await self._workers.run(submit, deadline))
        except TimeoutError:  # the deadline's, which is an OSError too
            raise
        except OSError as error:
            raise StoreFailed(error) from error
        except QueryError as error:
            if error.field == "key":  # the store's word for it
                raise QueryError("request_id", error.expected, error.received, error.next_step) from None
            raise

    def _submit_upsert(self, image: ImageUpsert, vector: np.ndarray) -> Future[Receipt]:
        offset = 0.0
        if self._store.corrected and self._runtime.hubness is not None:
            offset = float(self._runtime.hubness.offsets(vector[np.newaxis].astype(np.float16))[0])
        digest = self._store.keep_image(image.content) if isinstance(image.content, bytes) else ""
        change = Upsert(
            image.image_id,
            vector,
            digest,
            captions=tuple(image.captions),
            attributes=image.attributes,
            if_version=image.if_version,
            offset=offset,
        )
        return self._store.submit([change], image.request_id)


def check_upsert(image: ImageUpsert) -> None:
    """`QueryError` for what breaks a limit, its field named as in the interface."""
    _check_new_id("image_id", image.image_id)
    _check_condition(image.if_version, image.request_id)
    if len(image.captions) > MAX_CAPTIONS:
        raise _too_many("captions", f"at most {MAX_CAPTIONS} captions", len(image.captions))
    for place, caption in enumerate(image.captions):
        if len(caption) > MAX_CAPTION_CHARACTERS:
            raise _too_many(f"captions[{place}]", f"at most {MAX_CAPTION_CHARACTERS:,} characters", len(caption))
    if len(image.attributes) > MAX_ATTRIBUTES:
        raise _too_many("attributes", f"at most {MAX_ATTRIBUTES} attributes", len(image.attributes))
    for name in image.attributes:
        if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
            raise _too_many("attributes", f"names of 1 to {MAX_NAME_CHARACTERS} characters", len(name))
    check_attributes(image.attributes)
    size = sum(map(len, image.captions))
    if size <= MAX_TEXT_BYTES:  # else there is no need to look closer
        size = len(captions_json(image.captions).encode()) + len(attributes_json(image.attributes).encode())
    if size > MAX_TEXT_BYTES:
        expected = f"captions and attributes of at most {MAX_TEXT_BYTES:,} bytes together, as JSON"
        raise _too_many("attributes", expected, size)


def _check_new_id(field: str, image_id: str) -> None:
    if not 1 <= len(image_id) <= MAX_ID_CHARACTERS:
        expected, received = f"an id of 1 to {MAX_ID_CHARACTERS:,} characters", f"{len(image_id):,} characters"
        raise QueryError(field, expected, received, "use another id")


def _check_condition(if_version: int | None, request_id: str) -> None:
    if if_version is not None and if_version < 0:
        raise QueryError("if_version", "a version, or 0 for no such image", str(if_version), "use the image's version")
    if len(request_id) > MAX_KEY_CHARACTERS:
        raise _too_many("request_id", f"at most {MAX_KEY_CHARACTERS} characters", len(request_id))


def _too_many(field: str, expected: str, received: int) -> QueryError:
    return QueryError(field, expected, f"{received:,}", "stay within the limit")
