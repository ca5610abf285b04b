import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from protos.imageretrieval.v1 import query_pb2 as _query_pb2
from protos.imageretrieval.v1 import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SearchRequest(_message.Message):
    __slots__ = ("query", "page_size", "page_token", "min_score", "filter", "exact", "oversampling", "deduplicate_similarity", "read_mask", "with_timings", "with_certificate")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    OVERSAMPLING_FIELD_NUMBER: _ClassVar[int]
    DEDUPLICATE_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    READ_MASK_FIELD_NUMBER: _ClassVar[int]
    WITH_TIMINGS_FIELD_NUMBER: _ClassVar[int]
    WITH_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    query: _query_pb2.Query
    page_size: int
    page_token: str
    min_score: float
    filter: str
    exact: bool
    oversampling: float
    deduplicate_similarity: float
    read_mask: _field_mask_pb2.FieldMask
    with_timings: bool
    with_certificate: bool
    def __init__(self, query: _Optional[_Union[_query_pb2.Query, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., min_score: _Optional[float] = ..., filter: _Optional[str] = ..., exact: _Optional[bool] = ..., oversampling: _Optional[float] = ..., deduplicate_similarity: _Optional[float] = ..., read_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., with_timings: _Optional[bool] = ..., with_certificate: _Optional[bool] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("hits", "model_revision", "index_revision", "next_page_token", "match_probability", "timings", "certificate")
    HITS_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    INDEX_REVISION_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MATCH_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[SearchHit]
    model_revision: str
    index_revision: str
    next_page_token: str
    match_probability: float
    timings: SearchTimings
    certificate: IndexCertificate
    def __init__(self, hits: _Optional[_Iterable[_Union[SearchHit, _Mapping]]] = ..., model_revision: _Optional[str] = ..., index_revision: _Optional[str] = ..., next_page_token: _Optional[str] = ..., match_probability: _Optional[float] = ..., timings: _Optional[_Union[SearchTimings, _Mapping]] = ..., certificate: _Optional[_Union[IndexCertificate, _Mapping]] = ...) -> None: ...

class SearchTimings(_message.Message):
    __slots__ = ("embedding", "queueing", "search", "lookup", "total")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    QUEUEING_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    embedding: _duration_pb2.Duration
    queueing: _duration_pb2.Duration
    search: _duration_pb2.Duration
    lookup: _duration_pb2.Duration
    total: _duration_pb2.Duration
    def __init__(self, embedding: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., queueing: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., search: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lookup: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class IndexCertificate(_message.Message):
    __slots__ = ("index_recall", "query_count", "query_kind", "kind")
    INDEX_RECALL_FIELD_NUMBER: _ClassVar[int]
    QUERY_COUNT_FIELD_NUMBER: _ClassVar[int]
    QUERY_KIND_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    index_recall: float
    query_count: int
    query_kind: str
    kind: str
    def __init__(self, index_recall: _Optional[float] = ..., query_count: _Optional[int] = ..., query_kind: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...

class SearchHit(_message.Message):
    __slots__ = ("image_id", "score", "rank", "captions", "attributes", "probability", "vector")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _query_pb2.AttributeValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_query_pb2.AttributeValue, _Mapping]] = ...) -> None: ...
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    CAPTIONS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    score: float
    rank: int
    captions: _containers.RepeatedScalarFieldContainer[str]
    attributes: _containers.MessageMap[str, _query_pb2.AttributeValue]
    probability: float
    vector: _query_pb2.Vector
    def __init__(self, image_id: _Optional[str] = ..., score: _Optional[float] = ..., rank: _Optional[int] = ..., captions: _Optional[_Iterable[str]] = ..., attributes: _Optional[_Mapping[str, _query_pb2.AttributeValue]] = ..., probability: _Optional[float] = ..., vector: _Optional[_Union[_query_pb2.Vector, _Mapping]] = ...) -> None: ...

class BatchSearchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[SearchRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[SearchRequest, _Mapping]]] = ...) -> None: ...

class BatchSearchResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[SearchResult]
    def __init__(self, results: _Optional[_Iterable[_Union[SearchResult, _Mapping]]] = ...) -> None: ...

class SearchResult(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: SearchResponse
    error: _status_pb2.Status
    def __init__(self, response: _Optional[_Union[SearchResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class StreamSearchRequest(_message.Message):
    __slots__ = ("tag", "request")
    TAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    tag: int
    request: SearchRequest
    def __init__(self, tag: _Optional[int] = ..., request: _Optional[_Union[SearchRequest, _Mapping]] = ...) -> None: ...

class StreamSearchResponse(_message.Message):
    __slots__ = ("tag", "result")
    TAG_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    tag: int
    result: SearchResult
    def __init__(self, tag: _Optional[int] = ..., result: _Optional[_Union[SearchResult, _Mapping]] = ...) -> None: ...
