"""Between gRPC and the guard: binds the methods of a service to a server, so that every call passes the guard; knows no
service.

A method `Name` of a service is answered by the servicer's `async def Name(self, request, call)`, or for a stream by the
async generator that `Name(self, requests, call)` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from serving.bounded_requests import BoundedServer
from serving.call_guard import CallGuard, CallRefused
from serving.callers import Origin, UnknownMethod
from serving.connections import MAX_MESSAGE_BYTES
from serving.core_server import Refusal, RefuseUnread, Trailers
from serving.error_details import MalformedRequest, ResponseTooLarge
from serving.method_policies import POLICIES

_OURS = "/imageretrieval.v1."
READ_AHEAD = frozenset({f"{_OURS}SearchService/Search"})  # mostly small, and each step is waited for


def add_service(
    server: BoundedServer, descriptor: ServiceDescriptor, servicer: object, guard: CallGuard, admin: bool
) -> None:
    """Answer the methods that `servicer` has; `admin` tells that the server is where operators call."""
    handlers = {}
    for method in descriptor.methods:
        handler = vars(type(servicer)).get(method.name)
        if handler is not None:
            handlers[method.name] = _bound(method, handler.__get__(servicer), guard, admin)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(descriptor.full_name, handlers),))


def refuse_other_methods(server: BoundedServer, guard: CallGuard, admin: bool) -> None:
    """Give the refusal of unknown methods the details that all refusals have. The last handler to be added."""
    server.add_generic_rpc_handlers((_OtherMethods(guard, admin),))


def refuse_unread(guard: CallGuard) -> RefuseUnread:
    """What the guard refuses before anything of a call is looked at; see `CoreServer`."""
    names = {f"{_OURS}{name.replace('.', '/')}": name for name, policy in POLICIES.items() if policy.shed}

    def refuse(path: str, remaining: float | None, coming: int) -> Refusal | None:
        name = names.get(path)
        shed = None if name is None else guard.shed(name, coming)
        return None if shed is None else _told(shed.status, remaining)

    return refuse


class _OtherMethods(grpc.GenericRpcHandler):
    def __init__(self, guard: CallGuard, admin: bool) -> None:
        self._guard, self._admin = guard, admin

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        service, _, method = handler_call_details.method.rpartition("/")
        name = f"{service.rpartition('.')[2]}.{method}"

        async def refuse(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
            try:
                with self._guard.admit(name, _origin(context, self._admin)):
                    raise UnknownMethod  # the interface has it, this server does not
            except CallRefused as refused:
                status = refused.status
            await _abort(context, status)
            yield b""  # never; makes this a stream, which every kind of call accepts as its refusal

        return grpc.stream_stream_rpc_method_handler(refuse)


def _bound(method: MethodDescriptor, handler: Callable[..., Any], guard: CallGuard, admin: bool) -> Any:
    name = f"{method.containing_service.name}.{method.name}"
    decode = _decoder(message_factory.GetMessageClass(method.input_type))

    async def one(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:
        try:
            with guard.admit(name, _origin(context, admin)) as call:
                context.finish(_encode(await handler(_checked(await context.read()), call)))
                return None  # the rest is done while the answer is on its way
        except CallRefused as refused:
            status = refused.status
        return await _abort(context, status)

    async def many(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            with guard.admit(name, _origin(context, admin)) as call:
                call.admission.let_go()  # each item has the engine of its moment
                async with contextlib.aclosing(handler(_well_formed(requests), call)) as responses:
                    async for response in responses:
                        yield _encode(response)
                return
        except CallRefused as refused:
            status = refused.status
        await _abort(context, status)

    if method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(many, decode)
    # On the wire it is the same as a call with one request; here, the request is read when the caller has been let in,
    # so that nobody can fill the memory with requests that are refused.
    return grpc.stream_unary_rpc_method_handler(one, decode)


def _decoder(message: Any) -> Callable[[bytes], Any]:
    """Bytes to a message, or to the refusal of them: what is raised here, gRPC would tell without details."""

    def decode(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except DecodeError:
            return MalformedRequest(f"the request is no {message.DESCRIPTOR.full_name}: cut off, or text not in UTF-8")

    return decode


def _encode(response: Any) -> bytes:
    """The message as bytes; gRPC would tell without details that they are too many."""
    data = response.SerializeToString()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ResponseTooLarge
    return data


async def _well_formed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    try:
        async for request in requests:
            yield _checked(request)
    except grpc.aio.BaseError as stopped:  # the server ended the call while its next request was waited for
        raise asyncio.CancelledError from stopped


def _checked(request: Any) -> Any:
    if request.__class__ is MalformedRequest:
        raise request
    if request is grpc.aio.EOF:
        raise MalformedRequest("the call came without a request")
    return request


def _origin(context: grpc.aio.ServicerContext, admin: bool) -> Origin:
    return Origin(
        peer_address(context.peer()),
        dict(context.invocation_metadata() or ()),
        _certificate_names(context.auth_context()),
        context.time_remaining(),
        admin,
    )


@functools.lru_cache(1_024)
def peer_address(peer: str) -> str:
    """The address in gRPC's name for a peer: `ipv4:192.0.2.1:5000`, `ipv6:%5B2001:db8::1%5D:5000` or `unix:PATH`."""
    kind, _, rest = peer.partition(":")
    if kind == "ipv4":
        return rest.rpartition(":")[0]
    if kind == "ipv6":
        return urllib.parse.unquote(rest).rpartition("]")[0].removeprefix("[")
    return peer


def _certificate_names(auth_context: Any) -> tuple[str, ...]:
    """The common name and the alternative names of a client certificate that TLS has verified."""
    if not auth_context:
        return ()
    names = (*auth_context.get("x509_common_name", ()), *auth_context.get("x509_subject_alternative_name", ()))
    return tuple(name.decode("utf-8", "replace") for name in names)


async def _abort(context: grpc.aio.ServicerContext, status: status_pb2.Status) -> None:
    await context.abort(*_told(status, context.time_remaining()))


def _told(status: status_pb2.Status, remaining: float | None) -> Refusal:
    """A status as gRPC sends it, with RetryInfo once more, as the trailer that its clients wait by when they repeat
    calls on their own.

    Where the call has less than that time left, -1: do not repeat it, or the client would learn of its deadline only.
    """
    code, message, trailers, delay = _parts(status.SerializeToString())
    if delay is None:
        return code, message, trailers
    pushback = delay if remaining is None or delay < 1_000 * remaining else -1
    return code, message, (*trailers, ("grpc-retry-pushback-ms", str(pushback)))


@functools.lru_cache(1_024)  # where calls are refused in masses, it is with the same few words
def _parts(serialised: bytes) -> tuple[grpc.StatusCode, str, Trailers, int | None]:
    """Code, message and trailers of a status, and the milliseconds in its RetryInfo."""
    status = status_pb2.Status.FromString(serialised)
    told, retry = rpc_status.to_status(status), error_details_pb2.RetryInfo()
    delays = [retry.retry_delay.ToMilliseconds() for detail in status.details if detail.Unpack(retry)]
    return told.code, told.details, told.trailing_metadata, delays[0] if delays else None
