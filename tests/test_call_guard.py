"""Admission without a transport: who is let in, what is told of errors, what observers learn."""

from __future__ import annotations

import asyncio
import gc
import weakref
from types import SimpleNamespace

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from data.errors import QueryError
from serving import call_guard
from serving.call_guard import READ_EVERY, READ_FROM, CallGuard, CallRefused
from serving.callers import Caller, Origin
from serving.error_details import ResponseTooLarge
from serving.grpc_methods import _encode, refuse_unread
from serving.method_policies import Scope
from serving.overload import Overloaded

PEER = Origin(peer="192.0.2.1")


@pytest.fixture
def guard():
    guard = CallGuard()
    guard.engine = object()
    return guard


@pytest.fixture
def ended(guard):
    calls = []
    guard.observers.append(calls.append)
    return calls


def reason(refusal):
    info = error_details_pb2.ErrorInfo()
    assert refusal.value.status.details[0].Unpack(info)
    return info.reason


def test_a_call_knows_who_asks_and_has_a_name_of_its_own(guard):
    with guard.admit("SearchService.Search", PEER) as one, guard.admit("SearchService.Search", PEER) as other:
        assert (one.method, one.caller.name, one.engine) == ("SearchService.Search", "192.0.2.1", guard.engine)
        assert one.request_id != other.request_id


def test_whatever_is_raised_leaves_as_a_status_and_is_observed(guard, ended):
    with pytest.raises(CallRefused) as refusal, guard.admit("SearchService.Search", PEER):
        raise QueryError("query.text", "a text", "none", "write one")
    assert (refusal.value.status.code, reason(refusal)) == (code_pb2.INVALID_ARGUMENT, "INVALID_QUERY")
    with pytest.raises(asyncio.CancelledError), guard.admit("SearchService.Search", PEER):
        raise asyncio.CancelledError
    with guard.admit("SearchService.Search", PEER) as call:
        pass
    assert [end.code for end in ended] == [code_pb2.INVALID_ARGUMENT, code_pb2.CANCELLED, code_pb2.OK]
    assert (ended[-1].request_id, ended[-1].caller, ended[-1].method) == (call.request_id, call.caller, call.method)
    assert ended[-1].seconds >= 0


@pytest.mark.parametrize(
    ("method", "origin", "code"),
    [
        ("SearchService.Nothing", PEER, "METHOD_NOT_FOUND"),
        ("IndexService.PublishIndex", PEER, "METHOD_NOT_FOUND"),
        ("SearchService.Search", Origin(remaining=0.0), "DEADLINE_EXCEEDED"),
    ],
)
def test_what_is_not_let_in_is_observed_too(guard, ended, method, origin, code):
    with pytest.raises(CallRefused) as refusal:
        guard.admit(method, origin)
    assert reason(refusal) == code
    assert [end.method for end in ended] == [method]


def test_methods_for_operators_are_answered_at_the_admin_address(guard):
    with guard.admit("IndexService.PublishIndex", Origin(admin=True)) as call:
        assert call.origin.admin


def test_a_scope_that_only_some_requests_need_is_asked_for_then(guard, monkeypatch):
    monkeypatch.setattr(guard.access, "caller", lambda origin: Caller("reader", frozenset({Scope.SEARCH}), "token"))
    with guard.admit("SearchService.Search", PEER) as call:
        call.require(Scope.SEARCH)
    with pytest.raises(CallRefused) as refusal, guard.admit("SearchService.Search", PEER) as call:
        call.require(Scope.VECTORS)
    assert (refusal.value.status.code, reason(refusal)) == (code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED")


def test_a_call_that_has_ended_is_freed_at_once(guard):
    """It refers to an engine, which may have been replaced, and collections may be long in coming."""
    gc.disable()
    try:
        with guard.admit("SearchService.Search", PEER) as call:
            pass
        ended = weakref.ref(call)
        del call
        assert ended() is None
    finally:
        gc.enable()


def test_calls_wait_for_the_engine():
    with pytest.raises(CallRefused) as refusal:
        CallGuard().admit("SearchService.Search", PEER)
    assert reason(refusal) == "NOT_READY"


class Busy:
    """An engine that refuses texts, of whose answers such a share was kept of late."""

    def __init__(self, share: float, refusal: Overloaded | None) -> None:
        self.encoder = SimpleNamespace(texts=SimpleNamespace(refusal=lambda coming: refusal))
        self.kept = SimpleNamespace(share=share)


@pytest.mark.parametrize(
    ("share", "refusal", "method", "refused"),
    [
        (0.0, Overloaded("much", 0.1), "SearchService.Search", 30),
        (READ_FROM, Overloaded("much", 0.1), "SearchService.Search", 0),
        (0.0, None, "SearchService.Search", 0),
        (0.0, Overloaded("much", 0.1), "ImageService.GetImage", 0),
    ],
    ids=["few answers are kept", "many answers are kept", "there is room", "it needs no model"],
)
def test_calls_that_would_be_refused_are_not_read_unless_their_answers_may_be_kept(
    share, refusal, method, refused, monkeypatch
):
    moments = (number * READ_EVERY / 3.5 for number in range(40))  # of four calls the first may be read
    monkeypatch.setattr(call_guard, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    guard, ended = CallGuard(), []
    guard.engine = Busy(share, refusal)
    guard.observers.append(ended.append)
    shed = [told for told in (guard.shed(method) for _ in range(40)) if told is not None]
    assert len(shed) == len(ended) == refused
    for told, call in zip(shed, ended, strict=True):
        assert told.status.code == call.code == code_pb2.RESOURCE_EXHAUSTED
        assert [detail.TypeName() for detail in told.status.details] == ["google.rpc.ErrorInfo", "google.rpc.RetryInfo"]
        assert (call.reason, call.caller) == ("OVERLOADED", None)


def test_calls_on_their_way_count_as_waiting():
    guard = CallGuard()
    guard.engine = Busy(0.0, None)
    guard.engine.encoder.texts.refusal = lambda coming: Overloaded("much", 0.1) if coming > 2 else None
    refuse = refuse_unread(guard)
    told = [refuse("/imageretrieval.v1.SearchService/Search", None, coming) for coming in (2, 3, 3, 2)]
    assert [refusal and refusal[0] for refusal in told] == [None, None, grpc.StatusCode.RESOURCE_EXHAUSTED, None]
    assert refuse("/imageretrieval.v1.ImageService/GetImage", None, 3) is None


def test_nothing_is_shed_before_there_is_an_engine():
    assert CallGuard().shed("SearchService.Search") is None


def test_items_of_a_call_that_has_ended_are_given_up(guard):
    with guard.admit("SearchService.StreamSearch", PEER) as call:
        call.charge()
    with pytest.raises(asyncio.CancelledError):
        call.charge()


def test_an_answer_beyond_the_limit_of_a_message_is_refused_by_us(monkeypatch):
    monkeypatch.setattr("serving.grpc_methods.MAX_MESSAGE_BYTES", 10)
    assert len(_encode(status_pb2.Status(message="12345678"))) == 10
    with pytest.raises(ResponseTooLarge):
        _encode(status_pb2.Status(message="123456789"))
