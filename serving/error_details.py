"""From an exception to a gRPC status with google.rpc details; knows no service and runs none.

Every status carries ErrorInfo with the domain "imageretrieval" and one of the stable reasons below. Clients repeat
calls by their code: UNAVAILABLE and RESOURCE_EXHAUSTED are for what passes by itself, and always carry RetryInfo.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from enum import StrEnum

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from data.errors import QueryError, SnapshotError
from serving.caller_limits import LimitExceeded
from serving.callers import PermissionDenied, Unauthenticated, UnknownMethod
from serving.catalog import ImageNotFound
from serving.image_changes import ReadOnly, StoreFailed
from serving.index_upkeep import IndexDamaged, NotOffered
from serving.operations import OperationCancelled, OperationFailed, OperationNotFound, OperationRunning
from serving.overload import Overloaded
from serving.page_tokens import PageTokenExpired
from serving.queries import ImageRefused
from serving.vector_store import KeyReused, StoreReadOnly, StoreUnreachable, VersionConflict

DOMAIN = "imageretrieval"

# Statuses travel in HTTP/2 trailers, whose size servers and proxies limit to 8 KiB.
MAX_MESSAGE_CHARACTERS = 500


class Reason(StrEnum):
    """Why a call was refused; clients may rely on these words."""

    INVALID_QUERY = "INVALID_QUERY"  # a field breaks its documented limits
    INVALID_IMAGE = "INVALID_IMAGE"  # an image cannot be decoded within the limits; the violation's reason says why
    IMAGE_NOT_FOUND = "IMAGE_NOT_FOUND"  # the index holds no image with this id
    PAGE_TOKEN_EXPIRED = "PAGE_TOKEN_EXPIRED"  # the index has changed too much since; begin with the first page
    RESPONSE_TOO_LARGE = "RESPONSE_TOO_LARGE"  # the answer would pass the limit of a message; ask for less at once
    RATE_LIMITED = "RATE_LIMITED"  # the caller asks for more than its share; try again after the delay in RetryInfo
    OVERLOADED = "OVERLOADED"  # more waits than can be done in time; try again after the delay in RetryInfo
    MALFORMED_REQUEST = "MALFORMED_REQUEST"  # the request is no message of the method's type
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"  # the request has more bytes than its method takes
    METHOD_NOT_FOUND = "METHOD_NOT_FOUND"  # no method of this name is answered at this address
    UNAUTHENTICATED = "UNAUTHENTICATED"  # no credential, or one that is not accepted
    PERMISSION_DENIED = "PERMISSION_DENIED"  # the credential has not the scope that this needs
    VERSION_CONFLICT = "VERSION_CONFLICT"  # the image has another version than `if_version`; read it again
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"  # this `request_id` came with another request before
    READ_ONLY = "READ_ONLY"  # the server was not told to accept changes
    DISK_FULL = "DISK_FULL"  # the server's disk has no room for a change; nothing of it was applied
    STORE_FAILED = "STORE_FAILED"  # the store did not take a change, of which nothing was applied; try again
    MODEL_CHANGING = "MODEL_CHANGING"  # the server is going over to another model; try again
    INDEX_DAMAGED = "INDEX_DAMAGED"  # files of the index are not as they were written; the server's log names them
    NOT_OFFERED = "NOT_OFFERED"  # this server cannot do this, as it was set up
    OPERATION_RUNNING = "OPERATION_RUNNING"  # another operation that publishes is under way; wait for it
    OPERATION_NOT_FOUND = "OPERATION_NOT_FOUND"  # there is no operation of this name, or none any more
    OPERATION_FAILED = "OPERATION_FAILED"  # of an operation: it could not be done; the message is the job's own
    OPERATION_CANCELLED = "OPERATION_CANCELLED"  # of an operation: it was told to stop
    NOT_READY = "NOT_READY"  # the model and the index are being loaded; try again
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"  # the caller's deadline passed before the work began
    INTERNAL = "INTERNAL"  # a defect; the server's log tells more under the request id


class MalformedRequest(Exception):
    """What came is no message of the method's type; the text is for the client."""


class RequestTooLarge(Exception):
    """A request has more bytes than its method takes."""

    def __init__(self, size: int, most: int) -> None:
        super().__init__(f"expected a request of at most {most:,} bytes; received {size:,}; split it, or ask for less")


class ResponseTooLarge(Exception):
    """The answer has more bytes than a message may."""


class NotReady(Exception):
    """A call came before the model and the index were loaded."""


def status_of(error: Exception, request_id: str) -> status_pb2.Status:
    """The status that tells a client about `error`, without anything internal; it may be another's too."""
    if isinstance(error, ImageNotFound):
        resource = error_details_pb2.ResourceInfo(
            resource_type="imageretrieval/Image", resource_name=error.image_id, description="not in this index"
        )
        return _status(grpc.StatusCode.NOT_FOUND, str(error), Reason.IMAGE_NOT_FOUND, resource)
    if isinstance(error, QueryError):
        return _invalid(error)
    if isinstance(error, PageTokenExpired):
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=Reason.PAGE_TOKEN_EXPIRED.value, subject="page_token", description="begin with the first page again"
        )
        failure = error_details_pb2.PreconditionFailure(violations=[violation])
        message = "the index has changed since the first page; begin with the first page again"
        return _status(grpc.StatusCode.FAILED_PRECONDITION, message, Reason.PAGE_TOKEN_EXPIRED, failure)
    if isinstance(error, Overloaded):
        reason = Reason.RATE_LIMITED if isinstance(error, LimitExceeded) else Reason.OVERLOADED
        return _overloaded(str(error), reason, error.retry_after)
    if isinstance(error, MalformedRequest):
        return _unfit(str(error), Reason.MALFORMED_REQUEST)
    if isinstance(error, RequestTooLarge):
        return _unfit(str(error), Reason.REQUEST_TOO_LARGE)
    if isinstance(error, UnknownMethod):
        message = "no such method is answered at this address"
        return _status(grpc.StatusCode.UNIMPLEMENTED, message, Reason.METHOD_NOT_FOUND)
    if isinstance(error, Unauthenticated):
        return _status(grpc.StatusCode.UNAUTHENTICATED, str(error), Reason.UNAUTHENTICATED)
    if isinstance(error, PermissionDenied):
        scope = {"scope": error.scope.value}
        return _status(grpc.StatusCode.PERMISSION_DENIED, str(error), Reason.PERMISSION_DENIED, metadata=scope)
    if isinstance(error, ResponseTooLarge):
        message = "the answer is larger than a message may be; ask for less at once"
        return _unfit(message, Reason.RESPONSE_TOO_LARGE)
    if isinstance(error, NotReady):
        message = "the model and the index are being loaded; try again when the health service says SERVING"
        return _status(grpc.StatusCode.UNAVAILABLE, message, Reason.NOT_READY, _retry_after(1.0))
    if (told := _unchanged(error) or _undone(error)) is not None:
        return told
    if isinstance(error, TimeoutError):
        message = "the deadline passed before the work began"
        return _status(grpc.StatusCode.DEADLINE_EXCEEDED, message, Reason.DEADLINE_EXCEEDED)
    request = error_details_pb2.RequestInfo(request_id=request_id)
    message = f"internal error; the server's log tells more under request {request_id}"
    return _status(grpc.StatusCode.INTERNAL, message, Reason.INTERNAL, request)


@functools.lru_cache(1_024)  # where calls are refused in masses, it is with the same few words
def _overloaded(message: str, reason: Reason, retry_after: float) -> status_pb2.Status:
    return _status(grpc.StatusCode.RESOURCE_EXHAUSTED, message, reason, _retry_after(retry_after))


def _unchanged(error: Exception) -> status_pb2.Status | None:
    """Why a change was not made, if `error` tells."""
    if isinstance(error, VersionConflict):
        description = f"the current version is {error.current}" if error.current else "there is no such image"
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=Reason.VERSION_CONFLICT.value, subject=error.image_id, description=description
        )
        failure = error_details_pb2.PreconditionFailure(violations=[violation])
        known = {"current_version": str(error.current)}
        return _status(grpc.StatusCode.ABORTED, str(error), Reason.VERSION_CONFLICT, failure, metadata=known)
    if isinstance(error, KeyReused):
        resource = error_details_pb2.ResourceInfo(resource_type="imageretrieval/Request", resource_name=error.key)
        message = "this request_id came with another request before; make a new one"
        return _status(grpc.StatusCode.ALREADY_EXISTS, message, Reason.REQUEST_ID_REUSED, resource)
    if isinstance(error, ReadOnly):
        message = "this server does not accept changes"
        return _status(grpc.StatusCode.UNIMPLEMENTED, message, Reason.READ_ONLY)
    if isinstance(error, StoreFailed) and error.full:
        message = "the server's disk is full; nothing of this was applied"
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=Reason.DISK_FULL.value, subject="disk", description="room on the server's disk"
        )
        failure = error_details_pb2.PreconditionFailure(violations=[violation])
        return _status(grpc.StatusCode.FAILED_PRECONDITION, message, Reason.DISK_FULL, failure)
    if isinstance(error, StoreFailed | StoreUnreachable):
        message = "the store did not take this, and nothing of it was applied; try again"
        return _status(grpc.StatusCode.UNAVAILABLE, message, Reason.STORE_FAILED, _retry_after(1.0))
    if isinstance(error, StoreReadOnly):
        message = "the server is going over to another model; try again"
        return _status(grpc.StatusCode.UNAVAILABLE, message, Reason.MODEL_CHANGING, _retry_after(1.0))
    if isinstance(error, SnapshotError):
        message = "files of the index are damaged; the server's log names them"
        return _status(grpc.StatusCode.DATA_LOSS, message, Reason.INDEX_DAMAGED)
    return None


def _undone(error: Exception) -> status_pb2.Status | None:
    """Why an operation was not begun or not done, if `error` tells."""
    if isinstance(error, NotOffered):
        return _status(grpc.StatusCode.UNIMPLEMENTED, str(error), Reason.NOT_OFFERED)
    if isinstance(error, OperationNotFound):
        resource = error_details_pb2.ResourceInfo(
            resource_type="imageretrieval/Operation", resource_name=_short(error.name)
        )
        return _status(grpc.StatusCode.NOT_FOUND, "no such operation", Reason.OPERATION_NOT_FOUND, resource)
    if isinstance(error, OperationRunning):
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=Reason.OPERATION_RUNNING.value, subject=error.name, description="wait for it, or cancel it"
        )
        failure = error_details_pb2.PreconditionFailure(violations=[violation])
        return _status(grpc.StatusCode.FAILED_PRECONDITION, str(error), Reason.OPERATION_RUNNING, failure)
    if isinstance(error, OperationCancelled):
        return _status(grpc.StatusCode.CANCELLED, str(error), Reason.OPERATION_CANCELLED)
    if isinstance(error, OperationFailed):
        code = grpc.StatusCode.FAILED_PRECONDITION if error.refused else grpc.StatusCode.ABORTED
        return _status(code, str(error), Reason.OPERATION_FAILED)
    if isinstance(error, IndexDamaged):
        violations = [
            error_details_pb2.PreconditionFailure.Violation(
                type=Reason.INDEX_DAMAGED.value, subject=part, description=_short(problem)
            )
            for part, problem in list(error.problems.items())[:10]
        ]
        failure = error_details_pb2.PreconditionFailure(violations=violations)
        return _status(grpc.StatusCode.DATA_LOSS, str(error), Reason.INDEX_DAMAGED, failure)
    return None


def _retry_after(seconds: float) -> error_details_pb2.RetryInfo:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(max(1, math.ceil(1_000 * seconds)))
    return retry


def reason_of(status: status_pb2.Status) -> str:
    """The stable word in a status, or an empty text."""
    info = error_details_pb2.ErrorInfo()
    return info.reason if any(detail.Unpack(info) for detail in status.details) else ""


def _unfit(message: str, reason: Reason) -> status_pb2.Status:
    """A request is not right as a whole; no field is at fault."""
    violation = error_details_pb2.BadRequest.FieldViolation(description=_short(message))
    bad_request = error_details_pb2.BadRequest(field_violations=[violation])
    return _status(grpc.StatusCode.INVALID_ARGUMENT, message, reason, bad_request)


def _invalid(error: QueryError) -> status_pb2.Status:
    violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=_short(str(error)))
    reason = Reason.INVALID_QUERY
    if isinstance(error, ImageRefused):
        reason = Reason.INVALID_IMAGE
        violation.reason = error.reason.upper()
    bad_request = error_details_pb2.BadRequest(field_violations=[violation])
    return _status(grpc.StatusCode.INVALID_ARGUMENT, f"{error.field}: {error}", reason, bad_request)


def _status(
    code: grpc.StatusCode,
    message: str,
    reason: Reason,
    *details: Message,
    metadata: Mapping[str, str] | None = None,
) -> status_pb2.Status:
    status = status_pb2.Status(code=code.value[0], message=_short(message))
    for detail in (error_details_pb2.ErrorInfo(reason=reason.value, domain=DOMAIN, metadata=metadata), *details):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _short(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[: MAX_MESSAGE_CHARACTERS - 1] + "…"
