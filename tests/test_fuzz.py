"""Every RPC survives requests that no client would send: each gets a documented status with its reason, soon, and the
server goes on."""

from __future__ import annotations

import asyncio
import importlib
import io
import random
import struct
import threading
import zlib
from collections import Counter
from pathlib import Path

import grpc
import pytest
from fakes import ColourRuntime, ListSource, picture
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from message_fuzzer import MessageFuzzer
from PIL import Image
from server_process import running

from protos.imageretrieval.v1 import query_pb2, search_service_pb2
from serving.client import SearchClient
from serving.error_details import Reason
from serving.index_job import build_index

CODES = {
    "OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "ABORTED", "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
}  # fmt: skip
WORDS = (
    *("red-0000", "blue-0010", "operations/1", "folder:/nowhere", 'colour = "red"', "number > 3 AND"),
    *("score", "attributes.colour", "vector"),
)
SECONDS = 20  # an answer that takes longer counts as none
AT_ONCE = 16
QUICK, THOROUGH = 100, 2_800  # requests to each method
PROCESSES = 25  # to those that start a process


def methods():
    """Every method of every service in protos/."""
    for path in sorted(Path("protos/imageretrieval/v1").glob("*_service_pb2.py")):
        module = importlib.import_module(f"protos.imageretrieval.v1.{path.stem}")
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    index = tmp_path_factory.mktemp("fuzzed")
    build_index(ColourRuntime(), ListSource(), index)
    with running(index, "--writable") as (process, address):
        # What it logs is read: a pipe that nobody empties would stop it.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        yield process, address


def reason_of(error: grpc.RpcError) -> str:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    return info.reason if status and any(detail.Unpack(info) for detail in status.details) else ""


async def answer(channel, streams, method, data: bytes) -> tuple[str, str]:
    """The code and the reason that a request gets, whose bytes are sent as they are."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.client_streaming:
            # In a thread: grpc.aio tells INTERNAL of itself when a server ends a stream that it still writes to.
            call = streams.stream_stream(path)
            await asyncio.to_thread(lambda: list(call(iter([data, data]), timeout=SECONDS)))
        else:
            await channel.unary_unary(path)(data, timeout=SECONDS)
    except grpc.RpcError as error:
        return error.code().name, reason_of(error) or error.details() or ""
    return "OK", ""


async def bombard(address: str, method, count: int) -> Counter:
    """How `count` requests to a method ended; fails with the request that got what no request should."""
    fuzzer = MessageFuzzer(random.Random(method.full_name), WORDS, (picture("red"), picture("blue")[:150]))
    requests = [fuzzer.request(method.input_type) for _ in range(count)]
    ended: Counter = Counter()
    async with grpc.aio.insecure_channel(address) as channel:
        streams = grpc.insecure_channel(address)

        async def one(data: bytes) -> None:
            code, reason = await answer(channel, streams, method, data)
            # The index of the drawn model has no bundle in it, without which none is built.
            assert code in CODES | ({"DATA_LOSS"} if method.name == "BuildIndex" else set()), (code, reason, data)
            assert code == "OK" or reason in set(Reason), (code, reason, data)
            ended[code, reason] += 1

        for start in range(0, count, AT_ONCE):
            await asyncio.gather(*(one(data) for data in requests[start : start + AT_ONCE]))
        streams.close()
    return ended


def resident_mb(process) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def still_answers(process, address: str) -> None:
    assert process.poll() is None
    with SearchClient(address) as client:
        client.wait_until_ready(30)
        client.search("red", k=5)


@pytest.mark.parametrize(
    "method", list(methods()), ids=lambda method: f"{method.containing_service.name}.{method.name}"
)
@pytest.mark.parametrize(
    "count", [QUICK, pytest.param(THOROUGH, marks=[pytest.mark.slow, pytest.mark.timeout(900)])], ids=["quick", "many"]
)
def test_every_method_answers_whatever_comes(server, method, count):
    process, address = server
    before = resident_mb(process)
    count = PROCESSES if method.name in ("BuildIndex", "PublishIndex", "VerifyIndex", "BackUpIndex") else count
    ended = asyncio.run(bombard(address, method, count))
    assert ended.total() == count
    still_answers(process, address)
    assert resident_mb(process) - before < 300


def bomb() -> bytes:
    """A PNG of 30 kB that says it has 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(30_000 * (1 + 30_000 // 8) // 4), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def strip() -> bytes:
    """A picture of 1 × 100,000 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (1, 100_000)).save(buffer, "PNG")
    return buffer.getvalue()


def searching(**fields) -> search_service_pb2.SearchRequest:
    query = {name: fields.pop(name) for name in ("text", "image", "vector") if name in fields}
    return search_service_pb2.SearchRequest(query=query_pb2.Query(**(query or {"text": "red"})), **fields)


HOSTILE = {
    "a decompression bomb": (searching(image=bomb()), "INVALID_IMAGE", "query.image"),
    "1 × 100,000 pixels": (searching(image=strip()), "INVALID_IMAGE", "query.image"),
    "NaN": (searching(vector=query_pb2.Vector(values=[float("nan")] * 8)), "INVALID_QUERY", "query.vector"),
    "infinity": (searching(vector=query_pb2.Vector(values=[float("inf")] * 8)), "INVALID_QUERY", "query.vector"),
    "a text of 10 MB": (searching(text="red " * 2_500_000), "INVALID_QUERY", "query.text"),
    "a filter of 10 MB": (searching(filter="a = 1 AND " * 1_000_000 + "a = 1"), "INVALID_QUERY", "filter"),
    "a token of 10 MB": (searching(page_token="A" * 10_000_000), "INVALID_QUERY", "page_token"),
    "a huge k": (searching(page_size=2**31 - 1), "INVALID_QUERY", "page_size"),
    "a deep filter": (searching(filter="NOT " * 10_000 + "a:*"), "INVALID_QUERY", "filter"),
    "many parentheses": (searching(filter="(" * 100_000 + ")" * 100_000), "INVALID_QUERY", "filter"),
    "invalid UTF-8": (b"\x0a\x04\x0a\x02\xff\xfe", "MALFORMED_REQUEST", ""),
}


@pytest.mark.parametrize(("request_", "reason", "field"), HOSTILE.values(), ids=HOSTILE)
def test_what_a_hostile_client_sends_gets_its_documented_status(server, request_, reason, field):
    process, address = server
    before = resident_mb(process)
    data = request_ if isinstance(request_, bytes) else request_.SerializeToString()
    channel = grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)])
    with channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary("/imageretrieval.v1.SearchService/Search")(data, timeout=SECONDS)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(refusal.value) == reason
    bad_request = error_details_pb2.BadRequest()
    (violations,) = (
        list(bad_request.field_violations)
        for detail in rpc_status.from_call(refusal.value).details
        if detail.Unpack(bad_request)
    )
    assert [violation.field for violation in violations] == [field]
    still_answers(process, address)
    assert resident_mb(process) - before < 300
