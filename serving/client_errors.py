"""What clients raise when a call does not succeed, read from the status and its google.rpc details; knows no method."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc

_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True)
class FieldViolation:
    """A field of the request at fault, and why; `reason` is a stable word, or empty."""

    field: str
    description: str
    reason: str = ""


@dataclass(frozen=True)
class Precondition:
    """What would have to hold first: `type` is a stable word, `subject` what it is about."""

    type: str
    subject: str
    description: str


@dataclass(frozen=True)
class Resource:
    """What the call was about, such as an image that is not there."""

    type: str
    name: str
    description: str


class ServiceError(Exception):
    """A call did not succeed.

    `code` is gRPC's name such as "INVALID_ARGUMENT"; `reason` is the server's stable word such as "INVALID_QUERY", or
    empty when the answer did not come from the server itself, and `metadata` what belongs to that reason. As far as the
    server told them: `field_violations`, `preconditions`, the `resource`, the `retry_delay` in seconds after which the
    call may succeed, and the `request_id` under which the server's log tells more.
    """

    def __init__(self, code: str, reason: str, message: str, details: Iterable[Any] = ()) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.reason, self.message = code, reason, message
        self.metadata: dict[str, str] = {}
        self.field_violations: tuple[FieldViolation, ...] = ()
        self.preconditions: tuple[Precondition, ...] = ()
        self.resource: Resource | None = None
        self.retry_delay: float | None = None
        self.request_id = ""
        self._read(details)

    def _read(self, details: Iterable[Any]) -> None:
        """Take over what google.protobuf.Any messages tell; others than those of google.rpc are passed over."""
        from google.protobuf.message import DecodeError
        from google.rpc import error_details_pb2 as rpc

        kinds = (
            rpc.ErrorInfo,
            rpc.BadRequest,
            rpc.PreconditionFailure,
            rpc.ResourceInfo,
            rpc.RetryInfo,
            rpc.RequestInfo,
        )
        for detail in details:
            for kind in kinds:
                told = kind()
                try:
                    if detail.Unpack(told):
                        self._take(told)
                except DecodeError:
                    continue

    def _take(self, told: Any) -> None:
        match type(told).__name__:
            case "ErrorInfo":
                self.reason, self.metadata = told.reason, dict(told.metadata)
            case "BadRequest":
                violations = told.field_violations
                self.field_violations = tuple(FieldViolation(v.field, v.description, v.reason) for v in violations)
            case "PreconditionFailure":
                failures = told.violations
                self.preconditions = tuple(Precondition(v.type, v.subject, v.description) for v in failures)
            case "ResourceInfo":
                self.resource = Resource(told.resource_type, told.resource_name, told.description)
            case "RetryInfo":
                self.retry_delay = told.retry_delay.ToTimedelta().total_seconds()
            case "RequestInfo":
                self.request_id = told.request_id


def error_of_status(status: Any) -> ServiceError:
    """From the Status that an answer to one of several holds."""
    return ServiceError(_NAMES.get(status.code, "UNKNOWN"), "", status.message, status.details)


def error_of_call(error: grpc.RpcError, address: str) -> ServiceError:
    """From a failed call to `address`, sync or async."""
    from google.protobuf.message import DecodeError
    from google.rpc import status_pb2

    code, message = error.code().name, error.details() or ""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                return ServiceError(code, "", message, status_pb2.Status.FromString(value).details)
            except DecodeError:
                break
    if code == "UNAVAILABLE":
        message = f"no server answers at {address} ({message})"
    return ServiceError(code, "", message)
