"""Looking images up, adding and removing them: translates between protos and Python; nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask

from protos.imageretrieval.v1 import image_service_pb2 as pb
from protos.imageretrieval.v1 import status_pb2
from serving.call_guard import Call, CallGuard
from serving.image_lookup import DEFAULT_IMAGES
from serving.image_values import IMAGE_FIELDS, image_message, upsert_of
from serving.method_policies import Scope
from serving.proto_values import ReadMask, read_mask
from serving.streams import as_they_come
from serving.vector_store import StoreSuperseded

if TYPE_CHECKING:
    from serving.image_changes import ImageChanges

T = TypeVar("T")

SWAP_SECONDS = 30.0  # how long a change waits at most while the server goes over to another model


class ImageService:
    """See protos/imageretrieval/v1/image_service.proto."""

    def __init__(self, guard: CallGuard) -> None:
        self.guard = guard

    async def GetImage(self, request: pb.GetImageRequest, call: Call) -> pb.GetImageResponse:
        """Look an image up."""
        mask = _mask(request.read_mask, call)
        known, revision = await call.engine.images.get(request.image_id, "vector" in mask.fields, call.deadline)
        return pb.GetImageResponse(image=image_message(known, mask), index_revision=revision)

    async def BatchGetImages(self, request: pb.BatchGetImagesRequest, call: Call) -> pb.BatchGetImagesResponse:
        """Look several images up."""
        call.charge(len(request.image_ids) - 1)
        mask = _mask(request.read_mask, call)
        found, revision = await call.engine.images.batch_get(request.image_ids, "vector" in mask.fields, call.deadline)
        return pb.BatchGetImagesResponse(
            images=[image_message(known, mask) for known in found if known],
            missing_image_ids=[id_ for id_, known in zip(request.image_ids, found, strict=True) if not known],
            index_revision=revision,
        )

    async def ListImages(self, request: pb.ListImagesRequest, call: Call) -> pb.ListImagesResponse:
        """Page through the images."""
        mask = _mask(request.read_mask, call)
        images, token, revision = await call.engine.images.page(
            request.page_size or DEFAULT_IMAGES,
            request.page_token,
            request.filter,
            "vector" in mask.fields,
            call.deadline,
        )
        return pb.ListImagesResponse(
            images=[image_message(known, mask) for known in images], next_page_token=token, index_revision=revision
        )

    async def UpsertImage(self, request: pb.UpsertImageRequest, call: Call) -> pb.UpsertImageResponse:
        """Add or replace an image."""
        image = upsert_of(request)
        version, model = await self._changed(
            call, lambda changes: changes.upsert(image, call.deadline), again=isinstance(image.content, bytes)
        )
        return pb.UpsertImageResponse(version=version, model_revision=model)

    def StreamUpsertImages(
        self, requests: AsyncIterator[pb.StreamUpsertImagesRequest], call: Call
    ) -> AsyncIterator[pb.StreamUpsertImagesResponse]:
        """Add or replace images as they come."""

        async def answer(request: pb.StreamUpsertImagesRequest) -> pb.StreamUpsertImagesResponse:
            try:
                call.charge()
                response = await self.UpsertImage(request.request, call)
            except Exception as error:
                status = self.guard.status(error, call.method, call.request_id)
                told = status_pb2.Status(code=status.code, message=status.message, details=status.details)
                return pb.StreamUpsertImagesResponse(tag=request.tag, error=told)
            return pb.StreamUpsertImagesResponse(tag=request.tag, response=response)

        return as_they_come(requests, answer)

    async def DeleteImage(self, request: pb.DeleteImageRequest, call: Call) -> pb.DeleteImageResponse:
        """Remove an image."""
        if_version = request.if_version if request.HasField("if_version") else None
        ids, key = [request.image_id], request.request_id
        (version,), _ = await self._changed(
            call, lambda changes: changes.delete(ids, if_version, key, call.deadline, "image_id")
        )
        return pb.DeleteImageResponse(version=version)

    async def BatchDeleteImages(self, request: pb.BatchDeleteImagesRequest, call: Call) -> pb.BatchDeleteImagesResponse:
        """Remove several images, all or none."""
        call.charge(len(request.image_ids) - 1)
        ids, key = request.image_ids, request.request_id
        versions, _ = await self._changed(call, lambda changes: changes.delete(ids, None, key, call.deadline))
        return pb.BatchDeleteImagesResponse(versions=versions)

    async def _changed(
        self, call: Call, change: Callable[[ImageChanges], Awaitable[T]], again: bool = True
    ) -> tuple[T, str]:
        """What `change` gives, and the fingerprint of the model that it was made by.

        While the server goes over to another model no change is accepted: those that are valid for any model wait.
        """
        while True:
            with call.now() as current:
                engine = current.engine
                try:
                    return await change(engine.changes), engine.runtime.fingerprint
                except StoreSuperseded:
                    if not again:
                        raise
            seconds = SWAP_SECONDS
            if call.deadline is not None:
                seconds = min(seconds, call.deadline - asyncio.get_running_loop().time())
            if not await self.guard.unit.another(engine, seconds):
                raise StoreSuperseded("a change by the model that is served", "one while it changes", "try again")


def _mask(mask: FieldMask, call: Call) -> ReadMask:
    """What to return; a vector only to who may have it."""
    chosen = read_mask(mask, IMAGE_FIELDS)
    if "vector" in chosen.fields:
        call.require(Scope.VECTORS)
    return chosen
