"""Searches as calls of load: over our gRPC service, one a call or many in a stream, and over the peer's HTTP; knows no
figure."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import itertools
import time
import urllib.parse
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
from google.rpc import error_details_pb2, status_pb2

from benchmarks.lean_client import LeanConnection, headers
from benchmarks.load import Call, Later, Outcome
from protos.imageretrieval.v1 import query_pb2, search_service_pb2

DEADLINE = 2.0  # seconds, of every call
CONNECTIONS, TOGETHER = 4, 12  # that calls go over in turns of so many, which are then written together
KEPT = 200  # texts that are asked again and again
REFUSED = "OVERLOADED with a delay"
_SERVICE = "/imageretrieval.v1.SearchService/"
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class Searches:
    """Searches for `texts`, over connections to our server."""

    def __init__(self, connections: Sequence[LeanConnection], texts: Sequence[str]) -> None:
        self._connections, self._texts = connections, texts
        self._fresh = unused_numbers()
        self._watched: deque[tuple[float, asyncio.Future[str], Callable[[], None]]] = deque()  # the oldest first
        self._search = headers(_SERVICE + "Search", DEADLINE)

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, address: str, texts: Sequence[str]) -> AsyncIterator[Searches]:
        """Such searches at HOST:PORT."""
        connections = [await LeanConnection.connect(address) for _ in range(CONNECTIONS)]
        try:
            yield cls(connections, texts)
        finally:
            for connection in connections:
                connection.close()

    def new_text(self, number: int) -> str:
        """A text that was never asked before."""
        return made_unique(self._texts[number % len(self._texts)], next(self._fresh))

    def kept_text(self, number: int) -> str:
        """One of the texts that are asked again and again."""
        return self._texts[number % KEPT]

    def one(self, text_of: Callable[[int], str]) -> Call:
        """One Search a call, for the text of its number."""

        def call(number: int) -> asyncio.Future[str]:
            connection = self._connections[number // TOGETHER % len(self._connections)]
            future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

            def ended(trailers: dict[bytes, bytes]) -> None:
                future.set_result(_how(trailers))

            def late() -> None:
                for stream in begun:
                    connection.cancel(stream)
                future.set_result("DEADLINE_EXCEEDED")

            begun = connection.start(self._search, request(text_of(number)).SerializeToString(), ended)
            self._watch(future, late)
            return future

        return call

    def _watch(self, future: asyncio.Future[str], late: Callable[[], None]) -> None:
        """Have `late` called if the future is not done in time: one timer for all calls."""
        loop = asyncio.get_running_loop()
        if not self._watched:
            loop.call_later(DEADLINE, self._give_up)
        self._watched.append((loop.time() + DEADLINE, future, late))

    def _give_up(self) -> None:
        loop = asyncio.get_running_loop()
        while self._watched and (self._watched[0][1].done() or self._watched[0][0] <= loop.time()):
            _, future, late = self._watched.popleft()
            if not future.done():
                late()
        if self._watched:
            loop.call_at(self._watched[0][0], self._give_up)

    async def streams(self, text_of: Callable[[int], str], count: int, in_flight: int, seconds: float) -> Outcome:
        """`count` streams, each over a connection of its own, with so many searches under way in each."""
        outcome, numbers = Outcome(seconds), itertools.count()
        streams = (
            _stream(self._connections[place % CONNECTIONS], lambda: text_of(next(numbers)), in_flight, outcome)
            for place in range(count)
        )
        await asyncio.gather(*streams)
        return outcome


async def _stream(connection: LeanConnection, next_text: Callable[[], str], in_flight: int, outcome: Outcome) -> None:
    sent: dict[int, float] = {}
    over: asyncio.Future[dict[bytes, bytes]] = asyncio.get_running_loop().create_future()
    tags = itertools.count()

    def send() -> None:
        tag, now = next(tags), time.perf_counter()
        if now < outcome.until:
            sent[tag] = now
            search = search_service_pb2.StreamSearchRequest(tag=tag, request=request(next_text()))
            connection.send(begun[0], search.SerializeToString())
        elif not sent:
            connection.finish(begun[0])

    def answered(message: bytes) -> None:
        response = search_service_pb2.StreamSearchResponse.FromString(message)
        ended = "ok" if response.result.HasField("response") else "refused"
        outcome.add(ended, sent.pop(response.tag))
        send()

    begun = connection.start(headers(_SERVICE + "StreamSearch"), None, over.set_result, answered)
    for _ in range(in_flight):
        send()
    trailers = await over
    if trailers[b"grpc-status"] != b"0":
        raise RuntimeError(f"a stream ended as {_how(trailers)}")


def made_unique(text: str, number: int) -> str:
    """The text, and a word that makes it one that was not asked before."""
    return f"{text} {number}"


def unused_numbers() -> Iterator[int]:
    """For `made_unique`: all of six digits, for longer ones are more tokens."""
    return itertools.count(100_000)


def request(text: str) -> search_service_pb2.SearchRequest:
    """The ten best for a text."""
    return search_service_pb2.SearchRequest(query=query_pb2.Query(text=text), page_size=10)


def _how(trailers: dict[bytes, bytes]) -> str:
    """How a call ended: "ok", or its reason and whether it says when to come back."""
    code = trailers.get(b"grpc-status", b"2")
    if code == b"0":
        return "ok"
    return _refusal(code, trailers.get(b"grpc-status-details-bin", b""))


@functools.lru_cache(1_024)  # in masses it is the same few
def _refusal(code: bytes, told: bytes) -> str:
    status = status_pb2.Status.FromString(told[1:])  # after the zero of what comes as it is
    names = {detail.TypeName(): detail for detail in status.details}
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    if "google.rpc.ErrorInfo" not in names or not names["google.rpc.ErrorInfo"].Unpack(info):
        return _CODES[int(code)]
    if "google.rpc.RetryInfo" not in names or not names["google.rpc.RetryInfo"].Unpack(retry):
        return info.reason
    return Later(f"{info.reason} with a delay", retry.retry_delay.ToMilliseconds() / 1_000)


class PeerSearches:
    """Searches of ever new texts at the peer's port; so many `clients` have a connection and a thread each."""

    def __init__(self, port: int, texts: Sequence[str], clients: int) -> None:
        self._texts, self._fresh, self._pool = texts, unused_numbers(), ThreadPoolExecutor(clients)
        self._free = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(clients)]

    async def call(self, number: int) -> str:
        """A `load.Call`."""
        connection = self._free.pop()
        text = made_unique(self._texts[number % len(self._texts)], next(self._fresh))
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, partial(_ask, connection, text))
        finally:
            self._free.append(connection)


def _ask(connection: http.client.HTTPConnection, text: str) -> str:
    connection.request("GET", "/search?" + urllib.parse.urlencode({"q": text, "k": 10}))
    response = connection.getresponse()
    response.read()
    return "ok" if response.status == 200 else str(response.status)
