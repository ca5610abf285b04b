"""Bodies that come too slowly, are too long or too many are refused, and what they held is given back."""

from __future__ import annotations

import asyncio
import json

import pytest

from serving.error_details import status_of
from serving.web import request_limits
from serving.web.problems import problem, problem_of
from serving.web.request_limits import RequestLimits


async def reads_it_all(scope, receive, send):
    """An application that answers how long the body was, or why it is refused."""
    length = 0
    try:
        while True:
            message = await receive()
            length += len(message.get("body", b""))
            if not message.get("more_body"):
                break
    except Exception as error:
        return await problem_of(error)(scope, receive, send)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})
    return None


async def asked(limits, chunks, headers=(), last=True):
    """Status and body of the answer to a request that comes in `chunks`, and never ends without `last`."""
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if last:
        waiting[-1]["more_body"] = False
    sent = []

    async def receive():
        return waiting.pop(0) if waiting else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    await limits({"type": "http", "method": "POST", "headers": list(headers)}, receive, send)
    return sent[0]["status"], sent[1]["body"]


def test_a_body_within_its_limits_passes():
    limits = RequestLimits(reads_it_all)
    assert asyncio.run(asked(limits, [b"abc", b"de"])) == (200, b"5")
    assert limits._held == 0


def test_a_body_that_never_ends_is_given_up():
    status, body = asyncio.run(asked(RequestLimits(reads_it_all, body_seconds=0.01), [b"abc"], last=False))
    assert (status, json.loads(body)["reason"]) == (408, "MALFORMED_REQUEST")


def test_a_body_that_is_too_long_is_refused_by_what_it_declares_and_by_what_it_is(monkeypatch):
    monkeypatch.setattr(request_limits, "MAX_BODY_BYTES", 10)
    limits = RequestLimits(reads_it_all)
    for chunks, headers in (([b"x"], [(b"content-length", b"11")]), ([b"x" * 6, b"x" * 5], [])):
        status, body = asyncio.run(asked(limits, chunks, headers))
        assert (status, json.loads(body)["code"]) == (413, "INVALID_ARGUMENT")
    assert asyncio.run(asked(limits, [b"x" * 10])) == (200, b"10")
    assert limits._held == 0


def test_bodies_that_fill_the_memory_for_them_are_told_to_come_again(monkeypatch):
    monkeypatch.setattr(request_limits, "MAX_HELD_BYTES", 10)
    limits = RequestLimits(reads_it_all)

    async def both():
        slow = asyncio.ensure_future(asked(limits, [b"x" * 8], last=False))
        await asyncio.sleep(0)
        answer = await asked(limits, [b"x" * 3])
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        return answer, await asked(limits, [b"x" * 3])

    (status, body), after = asyncio.run(both())
    assert (status, json.loads(body)["reason"]) == (429, "OVERLOADED")
    assert after == (200, b"3")


def test_a_client_that_takes_nothing_is_given_up():
    async def stuck(message):
        await asyncio.Event().wait()

    async def body():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "headers": []}
    with pytest.raises(TimeoutError):
        asyncio.run(RequestLimits(reads_it_all, send_seconds=0.01)(scope, body, stuck))


def test_a_defect_tells_nothing_but_its_request():
    answer = problem(status_of(RuntimeError("/a/secret/path"), "r-1"))
    assert (answer.status_code, json.loads(answer.body)["requestId"]) == (500, "r-1")
    assert b"secret" not in answer.body
