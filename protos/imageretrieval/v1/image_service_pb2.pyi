from google.protobuf import field_mask_pb2 as _field_mask_pb2
from protos.imageretrieval.v1 import query_pb2 as _query_pb2
from protos.imageretrieval.v1 import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Image(_message.Message):
    __slots__ = ("image_id", "captions", "attributes", "version", "digest", "vector")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _query_pb2.AttributeValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_query_pb2.AttributeValue, _Mapping]] = ...) -> None: ...
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    CAPTIONS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    captions: _containers.RepeatedScalarFieldContainer[str]
    attributes: _containers.MessageMap[str, _query_pb2.AttributeValue]
    version: int
    digest: str
    vector: _query_pb2.Vector
    def __init__(self, image_id: _Optional[str] = ..., captions: _Optional[_Iterable[str]] = ..., attributes: _Optional[_Mapping[str, _query_pb2.AttributeValue]] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., vector: _Optional[_Union[_query_pb2.Vector, _Mapping]] = ...) -> None: ...

class GetImageRequest(_message.Message):
    __slots__ = ("image_id", "read_mask")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    READ_MASK_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    read_mask: _field_mask_pb2.FieldMask
    def __init__(self, image_id: _Optional[str] = ..., read_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class GetImageResponse(_message.Message):
    __slots__ = ("image", "index_revision")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    INDEX_REVISION_FIELD_NUMBER: _ClassVar[int]
    image: Image
    index_revision: str
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., index_revision: _Optional[str] = ...) -> None: ...

class BatchGetImagesRequest(_message.Message):
    __slots__ = ("image_ids", "read_mask")
    IMAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    READ_MASK_FIELD_NUMBER: _ClassVar[int]
    image_ids: _containers.RepeatedScalarFieldContainer[str]
    read_mask: _field_mask_pb2.FieldMask
    def __init__(self, image_ids: _Optional[_Iterable[str]] = ..., read_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class BatchGetImagesResponse(_message.Message):
    __slots__ = ("images", "missing_image_ids", "index_revision")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    MISSING_IMAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    INDEX_REVISION_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    missing_image_ids: _containers.RepeatedScalarFieldContainer[str]
    index_revision: str
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., missing_image_ids: _Optional[_Iterable[str]] = ..., index_revision: _Optional[str] = ...) -> None: ...

class ListImagesRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "filter", "read_mask")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    READ_MASK_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    filter: str
    read_mask: _field_mask_pb2.FieldMask
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[str] = ..., read_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class ListImagesResponse(_message.Message):
    __slots__ = ("images", "next_page_token", "index_revision")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INDEX_REVISION_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    next_page_token: str
    index_revision: str
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., index_revision: _Optional[str] = ...) -> None: ...

class UpsertImageRequest(_message.Message):
    __slots__ = ("image_id", "data", "vector", "captions", "attributes", "if_version", "request_id")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _query_pb2.AttributeValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_query_pb2.AttributeValue, _Mapping]] = ...) -> None: ...
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    CAPTIONS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    IF_VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    data: bytes
    vector: _query_pb2.Vector
    captions: _containers.RepeatedScalarFieldContainer[str]
    attributes: _containers.MessageMap[str, _query_pb2.AttributeValue]
    if_version: int
    request_id: str
    def __init__(self, image_id: _Optional[str] = ..., data: _Optional[bytes] = ..., vector: _Optional[_Union[_query_pb2.Vector, _Mapping]] = ..., captions: _Optional[_Iterable[str]] = ..., attributes: _Optional[_Mapping[str, _query_pb2.AttributeValue]] = ..., if_version: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class UpsertImageResponse(_message.Message):
    __slots__ = ("version", "model_revision")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    version: int
    model_revision: str
    def __init__(self, version: _Optional[int] = ..., model_revision: _Optional[str] = ...) -> None: ...

class StreamUpsertImagesRequest(_message.Message):
    __slots__ = ("tag", "request")
    TAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    tag: int
    request: UpsertImageRequest
    def __init__(self, tag: _Optional[int] = ..., request: _Optional[_Union[UpsertImageRequest, _Mapping]] = ...) -> None: ...

class StreamUpsertImagesResponse(_message.Message):
    __slots__ = ("tag", "response", "error")
    TAG_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    tag: int
    response: UpsertImageResponse
    error: _status_pb2.Status
    def __init__(self, tag: _Optional[int] = ..., response: _Optional[_Union[UpsertImageResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class DeleteImageRequest(_message.Message):
    __slots__ = ("image_id", "if_version", "request_id")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    IF_VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    if_version: int
    request_id: str
    def __init__(self, image_id: _Optional[str] = ..., if_version: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeleteImageResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class BatchDeleteImagesRequest(_message.Message):
    __slots__ = ("image_ids", "request_id")
    IMAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    image_ids: _containers.RepeatedScalarFieldContainer[str]
    request_id: str
    def __init__(self, image_ids: _Optional[_Iterable[str]] = ..., request_id: _Optional[str] = ...) -> None: ...

class BatchDeleteImagesResponse(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, versions: _Optional[_Iterable[int]] = ...) -> None: ...
