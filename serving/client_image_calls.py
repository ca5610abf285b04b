"""What the methods of ImageService are sent, and how their answers are read; knows no channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from protos.imageretrieval.v1 import image_service_pb2, query_pb2
from serving.client_calls import Call, chunks, filter_text
from serving.client_errors import ServiceError, error_of_status
from serving.client_values import Image, Receipt, Upload, new_request_id
from serving.filters import Filter
from serving.proto_attributes import attribute_message, attribute_of

MAX_IDS = 1_000


def get_image(image_id: str, fields: Sequence[str]) -> Call[Image]:
    """What is known about an image."""
    request = image_service_pb2.GetImageRequest(image_id=image_id, read_mask=FieldMask(paths=fields))
    return Call("ImageService.GetImage", request, lambda response: _image(response.image))


def get_images(image_ids: Sequence[str], fields: Sequence[str]) -> list[Call[list[Image | None]]]:
    """What is known about each image, in calls of as many as one takes."""

    def one_call(some: list[str]) -> Call[list[Image | None]]:
        mask = FieldMask(paths=fields)
        if fields and "image_id" not in fields:
            mask.paths.append("image_id")  # tells which of them are there

        def read(response: image_service_pb2.BatchGetImagesResponse) -> list[Image | None]:
            found = {image.image_id: _image(image) for image in response.images}
            return [found.get(image_id) for image_id in some]

        request = image_service_pb2.BatchGetImagesRequest(image_ids=some, read_mask=mask)
        return Call("ImageService.BatchGetImages", request, read)

    return [one_call(some) for some in chunks(image_ids, MAX_IDS)]


@dataclass(frozen=True)
class ImagePage:
    """Some of the images and the token of those that follow, empty for the last."""

    images: list[Image]
    next_page_token: str


def list_images(where: str | Filter, fields: Sequence[str], page_size: int) -> Call[ImagePage]:
    """The first images in the order of their ids."""
    request = image_service_pb2.ListImagesRequest(
        filter=filter_text(where), read_mask=FieldMask(paths=fields), page_size=page_size
    )
    return Call("ImageService.ListImages", request, _image_page)


def list_after(call: Call[ImagePage], page: ImagePage) -> Call[ImagePage] | None:
    """The call for the images that follow; None when there are none."""
    if not page.next_page_token:
        return None
    request = image_service_pb2.ListImagesRequest()
    request.CopyFrom(call.request)
    request.page_token = page.next_page_token
    return Call(call.method, request, call.read)


def _image_page(response: image_service_pb2.ListImagesResponse) -> ImagePage:
    return ImagePage([_image(image) for image in response.images], response.next_page_token)


def _image(image: image_service_pb2.Image) -> Image:
    return Image(
        image.image_id,
        tuple(image.captions),
        {name: attribute_of(value) for name, value in image.attributes.items()},
        image.version,
        image.digest,
        list(image.vector.values) if image.HasField("vector") else None,
    )


def upsert_image(upload: Upload) -> Call[Receipt]:
    """Add or replace an image."""
    return Call("ImageService.UpsertImage", _upsert_request(upload), _receipt)


class UpsertStream:
    """A stream of images to add or replace; remembers those that have no answer yet."""

    method = "ImageService.StreamUpsertImages"

    def __init__(self) -> None:
        self._waiting: dict[int, Upload] = {}

    def request(self, place: int, item: Upload) -> Any:
        """The message of the image at `place`."""
        self._waiting[place] = item
        return image_service_pb2.StreamUpsertImagesRequest(tag=place, request=_upsert_request(item))

    def read(self, response: Any) -> tuple[Upload, Receipt | ServiceError]:
        """The image, and its receipt or why it has none."""
        upload = self._waiting.pop(response.tag)
        if response.HasField("error"):
            return upload, error_of_status(response.error)
        return upload, _receipt(response.response)


def _upsert_request(upload: Upload) -> image_service_pb2.UpsertImageRequest:
    return image_service_pb2.UpsertImageRequest(
        image_id=upload.image_id,
        data=upload.image,
        vector=None if upload.vector is None else query_pb2.Vector(values=upload.vector),
        captions=upload.captions,
        attributes={name: attribute_message(value) for name, value in upload.attributes.items()},
        if_version=upload.if_version,
        request_id=upload.request_id,
    )


def _receipt(response: image_service_pb2.UpsertImageResponse) -> Receipt:
    return Receipt(response.version, response.model_revision)


def delete_image(image_id: str, if_version: int | None, request_id: str) -> Call[int]:
    """Remove an image."""
    request = image_service_pb2.DeleteImageRequest(
        image_id=image_id, if_version=if_version, request_id=request_id or new_request_id()
    )
    return Call("ImageService.DeleteImage", request, lambda response: response.version)


def delete_images(image_ids: Sequence[str]) -> list[Call[list[int]]]:
    """Remove images, in calls of as many as one takes."""
    return [
        Call(
            "ImageService.BatchDeleteImages",
            image_service_pb2.BatchDeleteImagesRequest(image_ids=some, request_id=new_request_id()),
            lambda response: list(response.versions),
        )
        for some in chunks(image_ids, MAX_IDS)
    ]
