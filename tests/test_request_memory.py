"""What requests hold is bounded: by their method, together, and while they come; others are answered meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_status import rpc_status
from half_requests import half_requests
from server_process import running

from protos.imageretrieval.v1 import query_pb2, search_service_pb2, search_service_pb2_grpc
from serving import request_memory
from serving.bounded_requests import BoundedHandler
from serving.client import SearchClient
from serving.method_policies import POLICIES, Scope
from serving.overload import Overloaded
from serving.request_memory import MIB, MemorySettings, RequestMemory, memory_there, process_memory
from serving.token_file import create

SEARCH = "/imageretrieval.v1.SearchService/Search"
WHOLE = 32 * MIB


def memory(used: int = 0) -> RequestMemory:
    """A ledger of 64 MiB, in a process that may have 100 bytes and has `used`."""
    ledger = RequestMemory(MemorySettings(requests_mib=64), lambda: used)
    ledger._limit = 100
    return ledger


def test_calls_that_hold_too_much_together_are_refused_and_a_large_one_alone_is_not():
    ledger = memory()
    ledger.hold(65 * MIB)
    with pytest.raises(Overloaded):
        ledger.hold(1)
    ledger.release(65 * MIB)
    ledger.hold(64 * MIB)
    with pytest.raises(Overloaded):
        ledger.hold(1)


def test_streams_wait_for_room_and_take_none_of_that_of_calls():
    async def scene():
        ledger = memory()
        ledger.hold_in_stream(64 * MIB)
        ledger.hold(64 * MIB)
        waiting = asyncio.ensure_future(ledger.room_in_streams())
        await asyncio.sleep(0)
        assert not waiting.done()
        ledger.release_in_stream(1)
        await waiting

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("used", "patience", "outcomes"),
    [
        (101, 0.0, ["given up", "given up", "comes", "comes"]),
        (101, 1_000.0, ["comes"] * 4),  # it has only begun
        (100, 0.0, ["comes"] * 4),  # there is memory
    ],
)
def test_while_memory_is_short_the_older_half_of_what_comes_slowly_is_given_up(monkeypatch, used, patience, outcomes):
    monkeypatch.setattr(request_memory, "PATIENCE_SECONDS", patience)
    monkeypatch.setattr(request_memory, "SWEEP_SECONDS", 1_000.0)

    async def scene():
        ledger, end = memory(used), asyncio.Event()

        async def one():
            try:
                await ledger.come(end.wait())
            except Overloaded:
                return "given up"
            return "comes"

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one()) for _ in range(4)]
            await asyncio.sleep(0)  # all have begun
            ledger.give_up_slow()
            while len([task for task in tasks if task.done()]) < outcomes.count("given up"):
                await asyncio.sleep(0)
            end.set()
        return [task.result() for task in tasks]

    assert asyncio.run(scene()) == outcomes


def test_what_a_process_has_and_a_machine_has_is_known():
    before = process_memory()
    held = bytearray(64 * MIB)
    held[::4096] = b"x" * len(held[::4096])
    assert 60 * MIB < process_memory() - before < 80 * MIB
    assert process_memory() < memory_there()


def test_a_container_or_a_service_has_no_more_than_any_group_around_it(tmp_path):
    own, groups = tmp_path / "cgroup", tmp_path / "groups"
    service = groups / "system.slice" / "image-search.service"
    service.mkdir(parents=True)
    machine = memory_there(own, groups)
    own.write_text("0::/system.slice/image-search.service\n")
    (service / "memory.max").write_text("max\n")
    assert memory_there(own, groups) == machine
    (service.parent / "memory.max").write_text("3000\n")
    (service / "memory.max").write_text("4000\n")
    assert memory_there(own, groups) == 3_000


@pytest.fixture(scope="module")
def server(index):
    with running(index, "writable") as (process, address):
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        yield process, address


def refused(address, path, request):
    """Code and reason of a call of bytes."""
    channel = grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)])
    with channel, pytest.raises(grpc.RpcError) as refusal:
        list(channel.stream_stream(path)(iter([request]), timeout=30))
    info = error_details_pb2.ErrorInfo()
    rpc_status.from_call(refusal.value).details[0].Unpack(info)
    return refusal.value.code(), info.reason


@pytest.mark.parametrize("name", [name for name, policy in POLICIES.items() if policy.max_mib < 33])
def test_methods_without_images_take_no_large_requests(server, name):
    service, _, method = name.partition(".")
    code, reason = refused(server[1], f"/imageretrieval.v1.{service}/{method}", bytes(POLICIES[name].max_mib * MIB + 1))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_health_which_anybody_may_ask_takes_no_large_requests(server, method):
    code, reason = refused(server[1], f"/grpc.health.v1.Health/{method}", bytes(MIB + 1))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")


def test_nothing_is_kept_of_methods_that_callers_invent():
    class Anything(grpc.GenericRpcHandler):
        def service(self, handler_call_details):
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: None)

    bounded = BoundedHandler(Anything(), memory())
    for path in (SEARCH, *(f"/invented{number}.SearchService/Search" for number in range(100))):
        assert bounded.service(SimpleNamespace(method=path)).stream_stream
    assert list(bounded._known) == [SEARCH]


def test_every_documented_limit_fits_into_its_method(server):
    longest = "\N{BIRTHDAY CAKE}"  # four bytes in UTF-8
    with SearchClient(server[1]) as client:
        ids = [longest * 1_000 + f"{number:06}" for number in range(1_000)]
        assert client.get_images(ids)[0] is None
        assert len(client.embed_texts([longest * 10_000] * 256)) == 256


def test_more_connections_than_allowed_are_not_accepted(index):
    with running(index, "--connections-count", "3") as (_, address), contextlib.ExitStack() as stack:
        request = search_service_pb2.SearchRequest(query=query_pb2.Query(text="red"))

        def connected(wait):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.insecure_channel(address, options)
            try:
                search_service_pb2_grpc.SearchServiceStub(channel).Search(request, timeout=30, wait_for_ready=wait)
            except grpc.RpcError as error:
                channel.close()  # or it would go on asking for a place, before others
                return error.code().name
            stack.enter_context(channel)
            return "OK"

        with SearchClient(address) as client:
            client.wait_until_ready(30)
            assert [connected(wait=True) for _ in range(2)] == ["OK", "OK"]
            assert connected(wait=False) == "UNAVAILABLE"
        assert connected(wait=True) == "OK"  # in the place of the one that has gone


class Watched:
    """The most memory that a process had until the end of the block, in MiB, above what it had before."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._ended = threading.Event()
        self.before = self.most = self._now()

    def _now(self) -> int:
        lines = dict(line.split(":", 1) for line in self._status.read_text().splitlines())
        return int(lines["RssAnon"].split()[0]) // 1024

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self.most = max(self.most, self._now())

    def __enter__(self):
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()


async def attack(address: str, count: int, *call: object) -> tuple[int, float]:
    """Send all but the ends of requests, search meanwhile; bytes that were taken, and the slowest search."""
    slowest = 0.0
    async with half_requests(address, count, *call) as attackers, grpc.aio.insecure_channel(address) as channel:
        stub = search_service_pb2_grpc.SearchServiceStub(channel)
        request = search_service_pb2.SearchRequest(query=query_pb2.Query(text="red"), page_size=1)
        quiet = 0
        while quiet < 20:
            before = sum(each.sent for each in attackers)
            began = time.monotonic()
            assert (await stub.Search(request, timeout=30)).hits
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.05)
            quiet = quiet + 1 if sum(each.sent for each in attackers) == before else 0
        return sum(each.sent for each in attackers), slowest


@pytest.mark.parametrize(
    ("count", "limit", "most"),
    [(40, 300, 600), pytest.param(990, 1_024, 2_048, marks=pytest.mark.slow)],
    ids=["40", "as many as there may be"],
)
def test_requests_that_never_end_cannot_fill_the_memory(index, count, limit, most):
    with running(index, "--memory-process-mib", str(limit)) as (process, address):
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        with Watched(process.pid) as watched:
            taken, slowest = asyncio.run(attack(address, count, SEARCH, WHOLE))
        print(f"{taken / MIB:,.0f} MiB taken, {watched.most:,} MiB held, slowest search {slowest:.2f} s")
        assert taken > limit * MIB  # else nothing was put to the test
        assert watched.most < most


def test_callers_without_a_token_have_nothing_read(index, tmp_path):
    create(tmp_path / "tokens.json", "website", frozenset({Scope.SEARCH}), 0.0)
    with running(index, "--access-tokens", str(tmp_path / "tokens.json")) as (process, address):

        async def scene():
            async with half_requests(address, 40, SEARCH, WHOLE) as attackers:
                while not all(each.refused for each in attackers):
                    await asyncio.sleep(0.01)
                return sum(each.sent for each in attackers)

        with grpc.insecure_channel(address) as channel:
            health_pb2_grpc.HealthStub(channel)
            with SearchClient(address) as client:
                client.wait_until_ready(30)
            with Watched(process.pid) as watched:
                asyncio.run(scene())
        print(watched.before, watched.most)
        assert watched.most - watched.before < 100
