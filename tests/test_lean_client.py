"""The client that makes the load tells how calls end as gRPC's own would, one a connection or many at once."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest

from benchmarks.lean_client import LeanConnection, headers

CALL, STREAM = headers("/test.Echo/Call", 20.0), headers("/test.Echo/Stream")
DETAILS = bytes(range(256)) * 2  # of all bytes, and too long for one byte of length


async def call(context):
    asked = await context.read()
    if asked == b"refuse":
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "too much", (("grpc-status-details-bin", DETAILS), ("other", "x"))
        )
    if asked == b"wait":
        await asyncio.Event().wait()
    return 3 * asked


async def stream(context):
    while (asked := await context.read()) is not grpc.aio.EOF:
        await context.write(3 * asked)


@contextlib.asynccontextmanager
async def connected(*options):
    async def one(requests, context):
        return await call(context)

    async def many(requests, context):
        await stream(context)

    server = grpc.aio.server(options=options)
    handlers = {
        "Call": grpc.stream_unary_rpc_method_handler(one),
        "Stream": grpc.stream_stream_rpc_method_handler(many),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connection = await LeanConnection.connect(f"127.0.0.1:{port}")
    try:
        yield connection
    finally:
        connection.close()
        await server.stop(None)


def run(scene, *options):
    async def main():
        async with asyncio.timeout(20), connected(*options) as connection:
            return await scene(connection)

    return asyncio.run(main())


def asked(connection, message):
    ended = asyncio.get_running_loop().create_future()
    begun = connection.start(CALL, message, ended.set_result)
    return ended, begun


@pytest.mark.parametrize("size", [0, 10, 40_000], ids=["empty", "small", "several frames"])
def test_an_answer_ends_a_call_well(size):
    async def scene(connection):
        return await asked(connection, bytes(size))[0]

    assert run(scene)[b"grpc-status"] == b"0"


def test_a_refusal_comes_with_its_details():
    async def scene(connection):
        return await asked(connection, b"refuse")[0]

    trailers = run(scene)
    assert (trailers[b"grpc-status"], trailers[b"grpc-message"], trailers[b"other"]) == (b"8", b"too much", b"x")
    assert trailers[b"grpc-status-details-bin"] == b"\0" + DETAILS


def test_messages_of_a_stream_are_told_whole_and_in_order():
    sizes = [1, 100, 20_000, 3]

    async def scene(connection):
        told, over = [], asyncio.get_running_loop().create_future()
        begun = connection.start(STREAM, None, over.set_result, told.append)
        for size in sizes:
            connection.send(begun[0], b"x" * size)
        connection.finish(begun[0])
        return told, (await over)[b"grpc-status"]

    assert run(scene) == ([b"x" * 3 * size for size in sizes], b"0")


def test_calls_beyond_what_the_server_allows_wait_for_those_before_them():
    async def scene(connection):
        held, _ = asked(connection, b"wait")
        _, *begun = zip(*(asked(connection, b"x") for _ in range(5)), strict=True)
        assert [bool(streams) for streams in begun[0]] == [True, False, False, False, False]
        others = [asked(connection, b"x")[0] for _ in range(5)]
        await asyncio.gather(*others)
        return held.done()

    assert run(scene, ("grpc.max_concurrent_streams", 2)) is False


def test_nothing_is_told_of_a_call_that_was_given_up():
    async def scene(connection):
        ended, begun = asked(connection, b"wait")
        connection.cancel(begun[0])
        assert (await asked(connection, b"x")[0])[b"grpc-status"] == b"0"
        return ended.done()

    assert run(scene) is False


def test_calls_under_way_end_with_their_connection():
    async def scene(connection):
        ended, _ = asked(connection, b"wait")
        connection.close()
        return await ended

    assert run(scene)[b"grpc-status"] == b"14"
