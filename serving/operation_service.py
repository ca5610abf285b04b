"""Following operations: translates between protos and Python; nothing else."""

from __future__ import annotations

import asyncio

from protos.imageretrieval.v1 import operation_service_pb2 as pb
from serving.call_guard import Call, CallGuard
from serving.operations import Operation, OperationNotFound, Operations

# What is left of a call's deadline to answer in, a share and at most so many seconds.
_LONGEST_SECONDS = 86_400.0  # that a call waits
_ANSWERING_SHARE, _ANSWERING_SECONDS = 0.1, 1.0


class OperationService:
    """See protos/imageretrieval/v1/operation_service.proto."""

    def __init__(self, guard: CallGuard) -> None:
        self.guard = guard

    async def GetOperation(self, request: pb.GetOperationRequest, call: Call) -> pb.GetOperationResponse:
        """Tell how an operation stands."""
        return pb.GetOperationResponse(operation=operation_message(self._get(request.name), self.guard))

    async def ListOperations(self, request: pb.ListOperationsRequest, call: Call) -> pb.ListOperationsResponse:
        """List operations."""
        known = self._operations.newest_first() if self._operations else []
        return pb.ListOperationsResponse(operations=[operation_message(one, self.guard) for one in known])

    async def WaitOperation(self, request: pb.WaitOperationRequest, call: Call) -> pb.WaitOperationResponse:
        """Answer when an operation is done, or the time is over."""
        operation = self._get(request.name)
        await operation.wait(_seconds(request, call))
        return pb.WaitOperationResponse(operation=operation_message(operation, self.guard))

    async def CancelOperation(self, request: pb.CancelOperationRequest, call: Call) -> pb.CancelOperationResponse:
        """Stop an operation."""
        operations, operation = self._operations, self._get(request.name)
        assert operations is not None
        operations.cancel(operation.name)
        return pb.CancelOperationResponse()

    def _get(self, name: str) -> Operation:
        if self._operations is None:
            raise OperationNotFound(name)
        return self._operations.get(name)

    @property
    def _operations(self) -> Operations | None:
        return self.guard.upkeep.operations if self.guard.upkeep else None


def operation_message(operation: Operation, guard: CallGuard) -> pb.Operation:
    """An operation as a message, its error as a call would be told of it."""
    message = pb.Operation(name=operation.name, method=operation.method, progress=operation.progress)
    message.create_time.FromDatetime(operation.create_time)
    if operation.done:
        message.done = True
        if operation.end_time is not None:
            message.end_time.FromDatetime(operation.end_time)
        if operation.error is not None:
            told = guard.status(operation.error, f"IndexService.{operation.method}", operation.name)
            message.error.code, message.error.message = told.code, told.message
            message.error.details.extend(told.details)
        else:
            message.result = operation.result
    return message


def _seconds(request: pb.WaitOperationRequest, call: Call) -> float | None:
    """How long to wait: as asked, but so that the answer comes before the deadline."""
    asked = None
    if request.HasField("timeout"):  # any numbers at all may stand in a message
        asked = min(max(0.0, request.timeout.seconds + request.timeout.nanos / 1e9), _LONGEST_SECONDS)
    if call.deadline is None:
        return asked
    remaining = call.deadline - asyncio.get_running_loop().time()
    before = max(0.0, remaining - min(_ANSWERING_SECONDS, _ANSWERING_SHARE * remaining))
    return before if asked is None else min(asked, before)
