import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from protos.imageretrieval.v1 import operation_service_pb2 as _operation_service_pb2
from protos.imageretrieval.v1 import search_service_pb2 as _search_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetIndexRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetIndexResponse(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: Index
    def __init__(self, index: _Optional[_Union[Index, _Mapping]] = ...) -> None: ...

class Index(_message.Message):
    __slots__ = ("snapshot", "image_count", "dimension", "kind", "model_name", "model_revision", "source", "create_time", "revision", "certificate", "writable", "change_count", "attributes")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    WRITABLE_FIELD_NUMBER: _ClassVar[int]
    CHANGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    image_count: int
    dimension: int
    kind: str
    model_name: str
    model_revision: str
    source: str
    create_time: _timestamp_pb2.Timestamp
    revision: str
    certificate: _search_service_pb2.IndexCertificate
    writable: bool
    change_count: int
    attributes: _containers.RepeatedCompositeFieldContainer[AttributeSummary]
    def __init__(self, snapshot: _Optional[str] = ..., image_count: _Optional[int] = ..., dimension: _Optional[int] = ..., kind: _Optional[str] = ..., model_name: _Optional[str] = ..., model_revision: _Optional[str] = ..., source: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., revision: _Optional[str] = ..., certificate: _Optional[_Union[_search_service_pb2.IndexCertificate, _Mapping]] = ..., writable: _Optional[bool] = ..., change_count: _Optional[int] = ..., attributes: _Optional[_Iterable[_Union[AttributeSummary, _Mapping]]] = ...) -> None: ...

class AttributeSummary(_message.Message):
    __slots__ = ("name", "kind", "image_count", "frequent_values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    FREQUENT_VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    image_count: int
    frequent_values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., image_count: _Optional[int] = ..., frequent_values: _Optional[_Iterable[str]] = ...) -> None: ...

class ListSnapshotsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSnapshotsResponse(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[Snapshot]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[Snapshot, _Mapping]]] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("name", "live", "image_count", "model_revision", "source", "create_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    live: bool
    image_count: int
    model_revision: str
    source: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., live: _Optional[bool] = ..., image_count: _Optional[int] = ..., model_revision: _Optional[str] = ..., source: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class BuildIndexRequest(_message.Message):
    __slots__ = ("source",)
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    source: str
    def __init__(self, source: _Optional[str] = ...) -> None: ...

class BuildIndexResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_service_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_service_pb2.Operation, _Mapping]] = ...) -> None: ...

class PublishIndexRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PublishIndexResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_service_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_service_pb2.Operation, _Mapping]] = ...) -> None: ...

class RollBackIndexRequest(_message.Message):
    __slots__ = ("snapshot",)
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    def __init__(self, snapshot: _Optional[str] = ...) -> None: ...

class RollBackIndexResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_service_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_service_pb2.Operation, _Mapping]] = ...) -> None: ...

class VerifyIndexRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VerifyIndexResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_service_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_service_pb2.Operation, _Mapping]] = ...) -> None: ...

class BackUpIndexRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class BackUpIndexResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_service_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_service_pb2.Operation, _Mapping]] = ...) -> None: ...
