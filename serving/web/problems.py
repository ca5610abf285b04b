"""From a refusal to an HTTP response: the google.rpc.Status that gRPC would send, as application/problem+json; knows no
request.

The format is RFC 9457's. `reason` is the same word as over gRPC (`error_details.Reason`), `code` the same
google.rpc.Code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.rpc import code_pb2, error_details_pb2, status_pb2
from starlette.responses import JSONResponse

from serving.callers import UnknownMethod
from serving.error_details import MalformedRequest, status_of

MEDIA_TYPE = "application/problem+json"

# As google/rpc/code.proto assigns them.
_HTTP_STATUSES = {
    code_pb2.CANCELLED: 499,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ABORTED: 409,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DEADLINE_EXCEEDED: 504,
}


class HttpRefusal(MalformedRequest):
    """A request that only HTTP can get wrong, such as a body that is too long, and the status that HTTP has for it."""

    def __init__(self, http_status: int, detail: str) -> None:
        super().__init__(detail)
        self.http_status = http_status


def problem(status: status_pb2.Status, cause: BaseException | None = None) -> JSONResponse:
    """The response that tells what `status` does; `cause` is what was raised, for it may have an HTTP status."""
    told: dict[str, Any] = {}
    headers: dict[str, str] = {}
    for packed in status.details:
        _tell(packed, told, headers)
    http_status = cause.http_status if isinstance(cause, HttpRefusal) else _HTTP_STATUSES.get(status.code, 500)
    if http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _response(http_status, code_pb2.Code.Name(status.code), status.message, told, headers)


def problem_of(error: Exception) -> JSONResponse:
    """The response for an error outside of any call."""
    return problem(status_of(error, ""), error)


def unknown_path(http_status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response where nothing answers this path, or not this HTTP method."""
    response = problem(status_of(UnknownMethod(), ""), HttpRefusal(http_status, ""))
    response.headers.update(headers or {})
    return response


def no_picture(image_id: str) -> JSONResponse:
    """The response for an image that the index knows, whose file cannot be read or has changed."""
    detail = f"the picture of {image_id!r} is not at hand: its file is gone, has changed, or was never in one"
    return _response(404, "NOT_FOUND", detail, {"reason": "PICTURE_NOT_FOUND"}, {})


def _response(status: int, code: str, detail: str, told: dict[str, Any], headers: dict[str, str]) -> JSONResponse:
    title = str(told.get("reason", code)).replace("_", " ").capitalize()
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code, **told}
    return JSONResponse(body, status, {"Cache-Control": "no-store", **headers}, MEDIA_TYPE)


def _tell(packed: Any, told: dict[str, Any], headers: dict[str, str]) -> None:
    """Add one of google.rpc's details to the body, and to the headers where there is one for it."""
    detail = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
    packed.Unpack(detail)
    if isinstance(detail, error_details_pb2.ErrorInfo):
        told["reason"] = detail.reason
        if detail.metadata:
            told["metadata"] = dict(detail.metadata)
    elif isinstance(detail, error_details_pb2.BadRequest):
        told["violations"] = [MessageToDict(violation) for violation in detail.field_violations]
    elif isinstance(detail, error_details_pb2.PreconditionFailure):
        told["preconditions"] = [MessageToDict(violation) for violation in detail.violations]
    elif isinstance(detail, error_details_pb2.ResourceInfo):
        told["resource"] = MessageToDict(detail)
    elif isinstance(detail, error_details_pb2.RequestInfo):
        told["requestId"] = detail.request_id
    elif isinstance(detail, error_details_pb2.RetryInfo):
        seconds = detail.retry_delay.ToTimedelta().total_seconds()
        told["retryAfterSeconds"] = seconds
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
