"""What stands around every call: who asks, until when, for which engine, a status for every error; knows no transport.

Example: `with guard.admit("SearchService.Search", origin) as call: …`. Whatever is raised inside, or by `admit` itself,
leaves as a `CallRefused`, whose status is what the client is told.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from google.rpc import code_pb2, status_pb2

from serving.access import Access, AccessSettings
from serving.caller_limits import Account, CallerLimits, LimitSettings
from serving.callers import Caller, Origin, PermissionDenied, UnknownMethod
from serving.error_details import NotReady, Reason, reason_of, status_of
from serving.live_unit import LiveUnit
from serving.method_policies import POLICIES, Scope
from serving.search_engine import SearchEngine
from serving.searches import SearchAnswer, Timings

if TYPE_CHECKING:
    from serving.index_upkeep import IndexUpkeep

READ_FROM, READ_EVERY = 0.1, 0.06  # where so many answers are kept, calls are read; elsewhere one in so many seconds

_UNREAD = Origin()
_log = logging.getLogger(__name__)


@dataclass
class CallNotes:
    """What a call's searches were, for logs and traces: how many, their hits, and the last one's timings and texts."""

    searches: int = 0
    hits: int = 0
    timings: Timings | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """One admitted call. `deadline` is a moment on the event loop's clock, or None."""

    method: str
    request_id: str
    deadline: float | None
    engine: SearchEngine
    caller: Caller
    origin: Origin
    admission: Admission
    notes: CallNotes = field(default_factory=CallNotes)
    search_observers: Sequence[Callable[[Timings], None]] = ()

    def charge(self, items: int = 1) -> None:
        """Count further items, such as those of a batch or a stream, as if each had come in a call of its own.

        `LimitExceeded` when they are too many; `Unauthenticated` when the credential has been taken back meanwhile.
        """
        self.admission.charge(items)

    @contextmanager
    def now(self) -> Iterator[Call]:
        """This call with the engine that answers at this moment, kept meanwhile: for each item of a stream."""
        with self.admission.now() as engine:
            yield dataclasses.replace(self, engine=engine)

    def require(self, scope: Scope) -> None:
        """`PermissionDenied` unless the caller has a scope that only some requests of the method need."""
        if scope not in self.caller.scopes:
            raise PermissionDenied(scope)

    def searched(self, answer: SearchAnswer, texts: tuple[str, ...]) -> None:
        """Note one search of the call, and the texts that were looked for."""
        notes = self.notes
        notes.searches, notes.hits = notes.searches + 1, notes.hits + len(answer.hits)
        notes.timings, notes.texts = answer.timings, texts
        for observer in self.search_observers:
            observer(answer.timings)


@dataclass(frozen=True)
class EndedCall:
    """What metrics and logs learn of a call. `caller` is None when it was not known; `code` is a google.rpc.Code.

    `reason` is the stable word of a refusal. `notes` is None when the call was not let in, and `request_id` is "" when
    it was refused unread.
    """

    method: str
    request_id: str
    caller: Caller | None
    origin: Origin
    code: int
    reason: str
    seconds: float
    error: BaseException | None
    notes: CallNotes | None


class CallRefused(Exception):
    """A call ends with an error; `status` is all that the client may know of it."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


class CallGuard:
    """What answers now, and what every call passes on its way there.

    Each of `observers` is told the end of every call, each of `search_observers` the timings of every search, on the
    event loop, but for calls that are refused unread, which are told where they are refused; they must be quick.
    """

    def __init__(self, access: Access | None = None, limits: CallerLimits | None = None) -> None:
        self.access = Access(AccessSettings()) if access is None else access
        self.limits = CallerLimits(LimitSettings()) if limits is None else limits
        self.unit = LiveUnit()  # empty until the model and the index are loaded
        self.upkeep: IndexUpkeep | None = None  # None where nobody looks after the index from here
        self.observers: list[Callable[[EndedCall], None]] = []
        self.search_observers: list[Callable[[Timings], None]] = []
        self.last_call = -math.inf  # when one came, by `time.perf_counter`
        self._process = secrets.token_hex(6)
        self._count = itertools.count(1)
        self._read_at = -math.inf  # the last call that was read though it would be refused

    def shed(self, method: str, coming: int = 0) -> CallRefused | None:
        """Why a call of `method` is refused before anything of it is looked at, or None; where calls are taken.

        `coming` others were let in, and stand in no queue yet.

        While most texts are refused, reading them takes longer than refusing them. They are read all the same
        where many are asked again and again, for then their answers are kept, and given without any waiting.
        """
        if not POLICIES[method].shed or (engine := self.engine) is None:
            return None
        refusal = engine.encoder.texts.refusal(coming=coming)
        if refusal is None or engine.kept.share >= READ_FROM:
            return None
        now = time.perf_counter()
        if now - self._read_at >= READ_EVERY:
            self._read_at = now
            return None
        self.last_call = now
        status = self.status(refusal, method, "")
        for observer in self.observers:
            observer(EndedCall(method, "", None, _UNREAD, status.code, Reason.OVERLOADED.value, 0.0, refusal, None))
        return CallRefused(status)

    def place(self) -> AbstractContextManager[None] | None:
        """See `SearchEngine.place`."""
        return None if self.engine is None else self.engine.place()

    def admit(self, method: str, origin: Origin) -> Admission:
        """Let a call of `method`, such as "SearchService.Search", in for the length of a `with` block."""
        admission = Admission(self, method, f"{self._process}-{next(self._count):x}", origin)
        self.last_call = admission.began
        try:
            admission.admit()
        except Exception as error:
            refused = admission.end(error)
            assert refused is not None
            try:
                raise refused from error
            finally:
                del refused  # it refers to this frame: only a collection would free the call
        return admission

    @property
    def engine(self) -> SearchEngine | None:
        """What answers now."""
        return self.unit.engine

    @engine.setter
    def engine(self, engine: SearchEngine | None) -> None:
        self.unit.replace(engine)

    def status(self, error: Exception, method: str, request_id: str) -> status_pb2.Status:
        """What a client is told of `error`; a defect is logged."""
        status = status_of(error, request_id)
        if status.code in (code_pb2.INTERNAL, code_pb2.DATA_LOSS):
            _log.error("request %s failed in %s", request_id, method, exc_info=error)
        return status


class Admission:
    """The time between a call's beginning and its end."""

    __slots__ = ("_guard", "method", "request_id", "origin", "caller", "call", "began", "_account", "_bulk", "_engine")

    def __init__(self, guard: CallGuard, method: str, request_id: str, origin: Origin) -> None:
        self._guard, self.method, self.request_id, self.origin = guard, method, request_id, origin
        self.caller: Caller | None = None
        self.call: Call | None = None
        self._account: Account | None = None
        self._engine: SearchEngine | None = None
        self._bulk = False
        self.began = time.perf_counter()

    def admit(self) -> None:
        """Decide; what this raises is told to the client."""
        guard, origin = self._guard, self.origin
        policy = POLICIES.get(self.method)
        if policy is None or (policy.admin and not origin.admin):
            raise UnknownMethod
        caller = self.caller = guard.access.caller(origin)
        if policy.scope not in caller.scopes:
            raise PermissionDenied(policy.scope)
        remaining = origin.remaining
        if remaining is not None and remaining <= 0:
            raise TimeoutError
        engine = self._engine = guard.unit.enter()
        if engine is None:
            raise NotReady
        deadline = None if remaining is None else asyncio.get_running_loop().time() + remaining
        self._bulk = policy.bulk
        self._account = guard.limits.enter((caller.kind, caller.name), policy.bulk)
        notes, observers = CallNotes(), guard.search_observers
        self.call = Call(self.method, self.request_id, deadline, engine, caller, origin, self, notes, observers)

    def charge(self, items: int) -> None:
        """See `Call.charge`."""
        if self._account is None:  # the call has ended; nobody waits for this item
            raise asyncio.CancelledError
        self._guard.access.caller(self.origin)
        self._guard.limits.charge(self._account, items)

    @contextmanager
    def now(self) -> Iterator[SearchEngine]:
        """See `Call.now`."""
        unit = self._guard.unit
        engine = unit.enter()
        if engine is None:
            raise NotReady
        try:
            yield engine
        finally:
            unit.leave(engine)

    def let_go(self) -> None:
        """Do not keep the engine any more that answered when the call came; streams outlive it."""
        if self._engine is not None:
            self._guard.unit.leave(self._engine)
            self._engine = None

    def end(self, error: BaseException | None) -> CallRefused | None:
        """Give the place back and tell the observers; return what the client is told of `error`."""
        seconds = time.perf_counter() - self.began
        self.let_go()
        if self._account is not None:
            self._guard.limits.leave(self._account, self._bulk, seconds)
            self._account = None
        code, reason, refused = code_pb2.OK, "", None
        if isinstance(error, Exception):
            status = self._guard.status(error, self.method, self.request_id)
            code, reason, refused = status.code, reason_of(status), CallRefused(status)
        elif error is not None:  # nobody waits for an answer any more
            code = code_pb2.CANCELLED
        if self._guard.observers:
            notes = self.call.notes if self.call else None
            ended = EndedCall(
                self.method, self.request_id, self.caller, self.origin, code, reason, seconds, error, notes
            )
            for observer in self._guard.observers:
                observer(ended)
        self.call = None  # each refers to the other: only a collection would free them, and the engine with them
        return refused

    def __enter__(self) -> Call:
        assert self.call is not None
        return self.call

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        refused = self.end(error)
        if refused is not None:
            try:
                raise refused from error
            finally:
                del refused  # it refers to this frame: only a collection would free the call
