"""What the methods of IndexService and OperationService are sent, and how their answers are read; knows no channel."""

from __future__ import annotations

import time
from typing import Any

from google.protobuf.duration_pb2 import Duration

from protos.imageretrieval.v1 import index_service_pb2, operation_service_pb2
from serving.client_calls import Call, moment
from serving.client_errors import ServiceError, error_of_status
from serving.client_search_calls import certificate_of
from serving.client_values import AttributeSummary, IndexStatus, Operation, Snapshot


def status() -> Call[IndexStatus]:
    """What the server serves."""
    return Call(
        "IndexService.GetIndex", index_service_pb2.GetIndexRequest(), lambda response: _index_status(response.index)
    )


def _index_status(index: index_service_pb2.Index) -> IndexStatus:
    names = ("snapshot", "image_count", "dimension", "kind", "model_name", "model_revision", "source", "revision")
    return IndexStatus(
        **{name: getattr(index, name) for name in (*names, "writable", "change_count")},
        create_time=moment(index.create_time),
        certificate=certificate_of(index),
        attributes=tuple(
            AttributeSummary(one.name, one.kind, one.image_count, tuple(one.frequent_values))
            for one in index.attributes
        ),
    )


def snapshots() -> Call[list[Snapshot]]:
    """The snapshots that are kept."""

    def read(response: index_service_pb2.ListSnapshotsResponse) -> list[Snapshot]:
        names = ("name", "live", "image_count", "model_revision", "source")
        return [
            Snapshot(**{name: getattr(one, name) for name in names}, create_time=moment(one.create_time))
            for one in response.snapshots
        ]

    return Call("IndexService.ListSnapshots", index_service_pb2.ListSnapshotsRequest(), read)


def begin(method: str, **fields: str) -> Call[Operation]:
    """Begin an operation by a method of IndexService."""
    request = getattr(index_service_pb2, f"{method}Request")(**fields)
    return Call(f"IndexService.{method}", request, _read_operation)


def get_operation(name: str) -> Call[Operation]:
    """How an operation stands."""
    request = operation_service_pb2.GetOperationRequest(name=name)
    return Call("OperationService.GetOperation", request, _read_operation)


def list_operations() -> Call[list[Operation]]:
    """The operations, newest first."""
    return Call(
        "OperationService.ListOperations",
        operation_service_pb2.ListOperationsRequest(),
        lambda response: [_operation(one) for one in response.operations],
    )


def wait_operation(name: str, seconds: float) -> Call[Operation]:
    """Wait so long for an operation."""
    timeout = Duration()
    timeout.FromMilliseconds(max(0, round(1_000 * seconds)))
    request = operation_service_pb2.WaitOperationRequest(name=name, timeout=timeout)
    return Call("OperationService.WaitOperation", request, _read_operation)


def cancel_operation(name: str) -> Call[None]:
    """Stop an operation."""
    request = operation_service_pb2.CancelOperationRequest(name=name)
    return Call("OperationService.CancelOperation", request, lambda response: None)


def _read_operation(response: Any) -> Operation:
    return _operation(response.operation)


def _operation(told: operation_service_pb2.Operation) -> Operation:
    return Operation(
        told.name,
        told.method,
        moment(told.create_time),
        moment(told.end_time) if told.HasField("end_time") else None,
        told.progress,
        told.done,
        error_of_status(told.error) if told.HasField("error") else None,
        told.result,
    )


class Patience:
    """Waits for an operation call by call, `timeout` seconds in all; knows no clock but that of this machine."""

    LONGEST = 20.0  # seconds that one call waits

    def __init__(self, operation: Operation | str, timeout: float | None) -> None:
        self._name = operation if isinstance(operation, str) else operation.name
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def call(self) -> Call[Operation]:
        """The next call."""
        return wait_operation(self._name, self._seconds())

    def call_timeout(self, usual: float) -> float:
        """The deadline of that call."""
        return self._seconds() + usual

    def is_over(self, operation: Operation) -> bool:
        """Whether it is done; `ServiceError` when it failed, or when the time is over."""
        if operation.error is not None:
            raise operation.error
        if not operation.done and self._end is not None and time.monotonic() >= self._end:
            raise ServiceError("DEADLINE_EXCEEDED", "", f"{self._name} was not done after {self._timeout:g} s")
        return operation.done

    def _seconds(self) -> float:
        return self.LONGEST if self._end is None else min(self.LONGEST, max(0.0, self._end - time.monotonic()))
