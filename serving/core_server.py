"""A gRPC server for an event loop, on the core of gRPC itself: one thread takes what the core tells of calls, refuses
at once what is to be refused unread, and hands the rest to handlers on the loop; knows no service.

`grpc.aio` takes a call through four or more passes of the loop, two threads and a task for each step; here they are two
passes and one task, and a call that is refused never comes to the loop (docs/adr/0048-calls-from-the-core.md). Only
this file uses `cygrpc`, the module on which both of gRPC's own servers for Python are written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import grpc
from grpc._cython import cygrpc

from serving.in_place import InPlace, Place, PlaceOf
from serving.lent_loop import LentLoop

Trailers = Sequence[tuple[str, str | bytes]]
Refusal = tuple[grpc.StatusCode, str, Trailers]
RefuseUnread = Callable[[str, float | None, int], Refusal | None]

REQUESTS_AHEAD = 4  # requests that are read before their calls come to the loop, of 33 MiB at most
WRITTEN_AHEAD = 1 << 16  # bytes of answers that a stream holds for the core
TAKEN_AHEAD = 16  # calls that the core may have ready while one is being looked at
REQUEST_SECONDS = 0.005  # that a call whose handler may run in place waits for its request
_NEVER = 1e15  # seconds since 1970: what the core gives as the deadline of a call without one is beyond
_NO_FLAGS = 0

_log = logging.getLogger(__name__)


class CoreServer:
    """The part of `grpc.aio.Server` that a server of generic handlers needs. Belongs to the event loop that starts it.

    Handlers are `grpc.stream_unary_rpc_method_handler`, over coroutines that return the answer, or tell it earlier by
    `context.finish()`, or `grpc.stream_stream_rpc_method_handler` over coroutines or async generators; without a
    deserialiser, for they read bytes by `context.read()`; see `CoreCall` for `context`.
    `refuse_unread(path, remaining, coming)` is asked first, in the thread that takes calls, with the seconds that the
    call still has (None: no deadline); it must be quick. What it returns is told to the caller, and no handler learns
    of it. The requests of the paths `one_request`, of one each, are read while their calls come to the loop, where
    fewer than `REQUESTS_AHEAD` are being read so; `coming` is how many of these calls no handler knows of yet.
    Where the loop is a `LentLoop`, the handlers of such calls may run in the thread that takes calls: see `InPlace`,
    and `place_of` there.
    """

    def __init__(
        self,
        options: Sequence[tuple[str, int]] = (),
        refuse_unread: RefuseUnread | None = None,
        one_request: Collection[str] = (),
        place_of: PlaceOf | None = None,
    ) -> None:
        self._server = cygrpc.Server(tuple(options), False)
        self.secure = False  # whether any port has TLS
        self._events = cygrpc.CompletionQueue()
        self._server.register_completion_queue(self._events)
        self._refuse_unread, self._one_request = refuse_unread, one_request
        self._taken = 0  # calls in whose place no other has been requested yet
        self._reading = 0  # ahead
        self._let_in = self._arrived = 0  # of the paths `one_request`; each changes in one thread only
        self._place_of = place_of
        self._in_place: InPlace | None = None
        self._expected: tuple[CoreCall, Place] | None = None  # whose handler runs in place when its request has come
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._news: deque[Callable[[], None]] = deque()
        self._loop_knows = False
        self._lock = threading.Lock()  # of the three below
        self._due = 0  # what the core will tell yet
        self._stopping = self._ended = False

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """See `grpc.aio.Server`: the first that knows a method answers it."""
        self._handlers += handlers

    def add_insecure_port(self, address: str) -> int:
        """Listen on `address` and return the port; `RuntimeError` when it cannot be opened."""
        return self._opened(address, self._server.add_http2_port(address.encode()))

    def add_secure_port(self, address: str, credentials: grpc.ServerCredentials) -> int:
        """As `add_insecure_port`, with TLS."""
        self.secure = True
        return self._opened(address, self._server.add_http2_port(address.encode(), credentials._credentials))

    async def start(self) -> None:
        """Take calls from now on."""
        self._loop = asyncio.get_running_loop()
        self._all_told = self._loop.create_future()
        if isinstance(self._loop, LentLoop) and self._place_of is not None:
            self._in_place = InPlace(self._loop, self._place_of)
        self._server.start()
        for _ in range(TAKEN_AHEAD):
            self._request_call()
        threading.Thread(target=self._take_events, name="calls", daemon=True).start()

    async def stop(self, grace: float | None) -> None:
        """Take no further calls; those under way have `grace` seconds to end, and are cancelled then."""
        with self._lock:
            if not self._stopping:
                self._stopping = True
                self._due += 1
                self._server.shutdown(self._events, _nothing)
        ended, _ = await asyncio.wait([self._all_told], timeout=grace or 0)
        if not ended:
            self._server.cancel_all_calls()
            await self._all_told
        while self._tasks:
            await asyncio.wait(self._tasks)

    def start_batch(self, call: Any | None, operations: Sequence[Any], told: Callable[[Any], None]) -> bool:
        """Have the core do something for a call, which calls `told` in the thread of events; False: it has ended."""
        with self._lock:
            if call is None or self._ended or call.start_server_batch(operations, told) != cygrpc.CallError.ok:
                return False
            self._due += 1
            return True

    def tell(self, news: Callable[[], None]) -> None:
        """Call `news` on the loop, after what was to be called before; wakes it once for all that comes meanwhile."""
        self._news.append(news)
        self._wake()

    def _wake(self) -> None:
        if not self._loop_knows:
            self._loop_knows = True
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(self._hear)

    def future(self) -> asyncio.Future[Any]:
        """One of the loop's, whatever the thread."""
        return self._loop.create_future()

    def _hear(self) -> None:
        self._loop_knows = False
        while self._news:
            try:
                self._news.popleft()()
            except Exception:  # of one call; the others wait for theirs
                _log.exception("a call could not be taken further")

    def _opened(self, address: str, port: int) -> int:
        if not port:
            raise RuntimeError(f"cannot listen on {address}")
        return port

    def _take_events(self) -> None:
        """Handle what the core tells, until it has nothing more to tell."""
        while not self._ended:
            while self._taken and self._expected is None:  # what is expected goes first
                self._taken -= 1
                self._request_call()
            event = self._events.poll(None if self._expected is None else time.time() + REQUEST_SECONDS)
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                self._hand_over()
                continue
            try:
                event.tag(event)
            except Exception:  # of one call; the others go on
                _log.exception("a call could not be taken further")
            del event  # or its call would live until the next one
            with self._lock:
                self._due -= 1
                self._ended = self._stopping and not self._due
        self._server.destroy()
        self.tell(partial(self._all_told.set_result, None))

    def _request_call(self) -> None:
        with self._lock:
            if not self._stopping:
                self._server.request_call(self._events, self._events, self._take_call)
                self._due += 1

    def _take_call(self, event: Any) -> None:
        if not event.success:  # the server stops
            return
        self._hand_over()
        self._taken += 1
        call = CoreCall(self, event)
        if (refusal := self._refusal(call)) is not None:
            call.refuse(*refusal)
            return
        one = call.path in self._one_request
        place = self._in_place.place(self._let_in - self._arrived) if one and self._in_place else None
        if place is None:
            self._wake()  # it takes a while, in which the rest is done
        call.begin()
        reading = one and self._reading < REQUESTS_AHEAD and call.read_ahead(partial(self._has_read, call))
        self._reading += reading
        if place is not None and reading:
            self._expected = call, place
        else:
            self._let_come(call)

    def _hand_over(self) -> None:
        """Let the call whose request is expected come to the loop, for the request is late, or not alone."""
        if self._expected is not None:
            call, self._expected = self._expected[0], None
            self._let_come(call)

    def _let_come(self, call: CoreCall) -> None:
        self._let_in += call.path in self._one_request
        self.tell(partial(self._begin, call))

    def _refusal(self, call: CoreCall) -> Refusal | None:
        if self._refuse_unread is None:
            return None
        try:
            return self._refuse_unread(call.path, call.time_remaining(), self._let_in - self._arrived)
        except Exception:
            _log.exception("whether %s is refused could not be told", call.path)
            return grpc.StatusCode.UNKNOWN, "", ()

    def _has_read(self, call: CoreCall, come: Callable[[], None]) -> None:
        self._reading -= 1
        if self._expected is not None and self._expected[0] is call:
            (_, place), self._expected = self._expected, None
            if self._ran_in_place(call, come, place):
                return
            self._let_come(call)
        self.tell(come)

    def _ran_in_place(self, call: CoreCall, come: Callable[[], None], place: Place) -> bool:
        def serve() -> Coroutine[Any, Any, None]:
            come()
            return self._serve(call)

        return self._in_place is not None and self._in_place.run(place, serve, partial(self._keep, call))

    def _keep(self, call: CoreCall, task: asyncio.Task[None]) -> None:
        call.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _begin(self, call: CoreCall) -> None:
        self._keep(call, asyncio.create_task(self._serve(call)))
        if call.path in self._one_request:
            self._loop.call_soon(self._count_arrived)  # after the task's first step: a request may never come

    def _count_arrived(self) -> None:
        self._arrived += 1

    async def _serve(self, call: CoreCall) -> None:
        try:
            details = _CallDetails(call.path, call.invocation_metadata())
            found = (handler.service(details) for handler in self._handlers)
            handler = next((one for one in found if one is not None), None)
            if handler is None:
                call.end(grpc.StatusCode.UNIMPLEMENTED, "the server has no such method")
                return
            call.serialize = handler.response_serializer
            if not handler.response_streaming:
                call.finish(await handler.stream_unary(None, call))
                return
            responses = handler.stream_stream(None, call)
            if asyncio.iscoroutine(responses):  # it writes to the context
                await responses
            else:
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        await call.write(response)
            call.finish()
        except grpc.aio.AbortError:
            pass  # the caller has been told
        except asyncio.CancelledError:  # the caller has gone, or time is up
            call.end(grpc.StatusCode.CANCELLED)
        except Exception:
            _log.exception("the handler of %s failed", call.path)
            call.end(grpc.StatusCode.UNKNOWN)


class _CallDetails(NamedTuple):
    """See `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: Trailers


class CoreCall:
    """One call: the part of `grpc.aio.ServicerContext` that handlers use, on the loop."""

    __slots__ = (
        "path", "task", "serialize", "_server", "_call", "_deadline", "_metadata", "_answering", "_ahead", "_sending",
    )  # fmt: skip

    def __init__(self, server: CoreServer, event: Any) -> None:
        details = event.call_details
        self.path: str = details.method.decode("utf-8", "replace")
        self.task: asyncio.Task[None] | None = None
        self.serialize: Callable[[Any], bytes] | None = None
        self._server, self._call = server, event.call
        self._deadline: float | None = details.deadline if details.deadline < _NEVER else None
        self._metadata = event.invocation_metadata
        self._answering = False
        self._ahead: asyncio.Future[Any] | None = None  # the request, where it is read ahead
        self._sending: _Sending | None = None  # from the first message of several on

    def begin(self) -> None:
        """Have the core tell when the caller goes; in the thread of events."""
        self._server.start_batch(self._call, (cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._closed)

    def refuse(self, code: grpc.StatusCode, details: str, trailers: Trailers) -> None:
        """End a call that was not begun; in the thread of events."""
        operations = (
            cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
            cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),
            cygrpc.SendStatusFromServerOperation(trailers, code.value[0], details.encode(), _NO_FLAGS),
        )
        self._server.start_batch(self._call, operations, _nothing)

    def invocation_metadata(self) -> Trailers:
        """What came with the call; values are bytes where the name ends in "-bin"."""
        return self._metadata

    def peer(self) -> str:
        """gRPC's name for who calls, such as "ipv4:192.0.2.1:5000"."""
        return self._call.peer().decode()

    def auth_context(self) -> dict[str, Sequence[bytes]]:
        """What TLS knows of who calls."""
        if not self._server.secure:
            return {}
        return {name.decode(): values for name, values in (cygrpc.auth_context(self._call) or {}).items()}

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, at least 0; None where there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.time())

    def read(self) -> asyncio.Future[Any]:
        """The next message, as bytes, or `grpc.aio.EOF`; where it was read ahead, it may be there already."""
        come, self._ahead = self._ahead, None
        if come is None:
            come = future = self._server.future()
            if not self._receive(lambda message: self._server.tell(partial(_settle, future, message))):
                future.set_result(grpc.aio.EOF)
        return come

    def read_ahead(self, done: Callable[[Callable[[], None]], None]) -> bool:
        """Begin to read the request; when it has come, `done` is given what hands it to `read`, on the loop.

        Both in the thread of events.
        """
        self._ahead = ahead = self._server.future()
        if self._receive(lambda message: done(partial(_settle, ahead, message))):
            return True
        self._ahead = None
        return False

    def _receive(self, told: Callable[[Any], None]) -> bool:
        def received(event: Any) -> None:
            message = event.batch_operations[0].message()
            told(grpc.aio.EOF if message is None else message)

        return self._server.start_batch(self._call, (cygrpc.ReceiveMessageOperation(_NO_FLAGS),), received)

    async def write(self, response: Any) -> None:
        """Send a message of several; waits while the core has no room for it and `WRITTEN_AHEAD` bytes before it."""
        if (call := self._call) is None:
            raise asyncio.CancelledError
        if self._sending is None:
            self._sending = _Sending(self._server)
        message = self._bytes(response)
        operations = (*self._head(), cygrpc.SendMessageOperation(message, _NO_FLAGS))
        if (room := self._sending.send(call, operations, len(message))) is not None:
            await room

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Trailers = ()) -> None:
        """Tell the caller an error; raises `grpc.aio.AbortError`, which handlers leave alone."""
        self.end(code, details, trailing_metadata)
        raise grpc.aio.AbortError

    def finish(self, response: Any = None) -> None:
        """Tell the only answer, if there is one, and that all went well."""
        self.end(grpc.StatusCode.OK, message=None if response is None else self._bytes(response))

    def end(
        self, code: grpc.StatusCode, details: str = "", trailers: Trailers = (), message: bytes | None = None
    ) -> None:
        """Tell how the call ended, unless that has been told."""
        if (call := self._call) is None:
            return
        self._call = None  # the core counts a call until nobody refers to it, and refuses others of its connection
        answer = () if message is None else (cygrpc.SendMessageOperation(message, _NO_FLAGS),)
        status = cygrpc.SendStatusFromServerOperation(trailers, code.value[0], details.encode(), _NO_FLAGS)
        operations = (*self._head(), *answer, status)
        if self._sending is None:
            self._server.start_batch(call, operations, _nothing)
        else:
            self._sending.send(call, operations, 0)

    def _head(self) -> tuple[Any, ...]:
        """What comes before the first message."""
        if self._answering:
            return ()
        self._answering = True
        return (cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),)

    def _bytes(self, response: Any) -> bytes:
        return response if self.serialize is None else self.serialize(response)

    def _closed(self, event: Any) -> None:
        if event.batch_operations[0].cancelled():
            self._server.tell(self._cancel)

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class _Sending:
    """What a call sends in several batches, of which the core takes one after the other."""

    def __init__(self, server: CoreServer) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._busy = False
        self._waiting: deque[tuple[Any, Sequence[Any], int]] = deque()
        self._bytes = 0  # that wait
        self._room: asyncio.Future[None] | None = None

    def send(self, call: Any, operations: Sequence[Any], size: int) -> asyncio.Future[None] | None:
        """Have the core do these after those before; if too much waits already, what to wait for before more come."""
        with self._lock:
            if self._busy:
                self._waiting.append((call, operations, size))
                self._bytes += size
                if self._bytes > WRITTEN_AHEAD and self._room is None:
                    self._room = asyncio.get_running_loop().create_future()
                return self._room
            self._busy = True
        self._server.start_batch(call, operations, self._sent)
        return None

    def _sent(self, event: Any) -> None:
        """In the thread of events."""
        room = None
        with self._lock:
            following = self._waiting.popleft() if self._waiting else None
            if following is None:
                self._busy = False
            else:
                self._bytes -= following[2]
            if self._bytes <= WRITTEN_AHEAD:
                room, self._room = self._room, None
        if following is not None:
            self._server.start_batch(*following[:2], self._sent)
        if room is not None:
            self._server.tell(partial(_settle, room, None))


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _nothing(event: Any) -> None:
    """For what nobody waits for."""
