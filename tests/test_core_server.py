"""Calls from the core of gRPC to handlers on the loop and back: real channels, real ports."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading

import grpc
import pytest

from serving.core_server import REQUESTS_AHEAD, CoreServer
from serving.lent_loop import LentLoop

SERVICE = "/test.Service/"
REFUSED = (grpc.StatusCode.RESOURCE_EXHAUSTED, "zu viel — später", (("retry", "soon"), ("details-bin", b"\0\xff")))
OPTIONS = [("grpc.so_reuseport", 0)]


class Handlers(grpc.GenericRpcHandler):
    """Methods by name: coroutines with one answer, and what answers in a stream."""

    def __init__(self, one=None, many=None) -> None:
        self._one, self._many = one or {}, many or {}

    def service(self, handler_call_details):
        name = handler_call_details.method.removeprefix(SERVICE)
        if name in self._one:
            return grpc.stream_unary_rpc_method_handler(self._one[name])
        if name in self._many:
            return grpc.stream_stream_rpc_method_handler(self._many[name])
        return None


async def echo(requests, context):
    return await context.read()


async def echo_all(requests, context):
    while (data := await context.read()) is not grpc.aio.EOF:
        yield data


@contextlib.asynccontextmanager
async def serving(one=None, many=None, refuse_unread=None, one_request=(), options=(), place_of=None):
    """A server with such methods, and a channel to it."""
    server = CoreServer([*OPTIONS, *options], refuse_unread, one_request, place_of)
    server.add_generic_rpc_handlers([Handlers(one, many)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.address = f"127.0.0.1:{port}"
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield server, channel
    await server.stop(5)


def unary(channel, name, data=b"x", **keywords):
    return channel.unary_unary(SERVICE + name)(data, **keywords)


async def ended(call):
    """How a call ended: its code, its details, its trailers by name."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details(), dict(error.value.trailing_metadata())


def test_answers_are_the_handlers():
    async def about(requests, context):
        assert dict(context.invocation_metadata())["name"] == "value"
        assert context.auth_context() == {}  # without TLS
        return f"{context.peer()} {context.time_remaining()}".encode()

    async def go():
        async with serving({"Echo": echo, "About": about}, {"EchoAll": echo_all}) as (_, channel):
            assert await unary(channel, "Echo", b"") == b""
            large = b"y" * 3_000_000
            assert await unary(channel, "Echo", large) == large
            peer, remaining = (await unary(channel, "About", metadata=(("name", "value"),))).split()
            assert peer.startswith(b"ipv4:127.0.0.1:")
            assert remaining == b"None"
            told = await unary(channel, "About", metadata=(("name", "value"),), timeout=50)
            assert 40 < float(told.split()[1]) <= 51
            sent = [bytes([number]) * 1_000 * number for number in range(100)]
            assert [each async for each in channel.stream_stream(SERVICE + "EchoAll")(iter(sent))] == sent
            assert [each async for each in channel.stream_stream(SERVICE + "EchoAll")(iter(()))] == []
            answers = await asyncio.gather(*(unary(channel, "Echo", b"%d" % number) for number in range(500)))
            assert answers == [b"%d" % number for number in range(500)]

    asyncio.run(go())


def test_an_answer_may_be_told_before_the_handler_ends():
    answered, ended = asyncio.Event(), []

    async def early(requests, context):
        context.finish(await context.read())
        await asyncio.wait_for(answered.wait(), 20)
        ended.append(True)

    async def go():
        async with serving({"Early": early}) as (server, channel):
            assert await unary(channel, "Early") == b"x"
            answered.set()
            while server._tasks:
                await asyncio.sleep(0)
        assert ended

    asyncio.run(asyncio.wait_for(go(), 60))


def test_what_is_refused_unread_reaches_no_handler():
    asked = []

    def refuse(path, remaining, coming):
        asked.append((path, remaining))
        return REFUSED if path == SERVICE + "Full" else None

    async def go():
        async with serving({"Echo": echo}, refuse_unread=refuse) as (_, channel):
            code, details, trailers = await ended(unary(channel, "Full", timeout=50))
            assert (code, details) == REFUSED[:2]
            assert trailers == dict(REFUSED[2])
            assert await unary(channel, "Echo") == b"x"
            several = await asyncio.gather(*(ended(unary(channel, "Full")) for _ in range(300)))
            assert {code for code, *_ in several} == {REFUSED[0]}

    asyncio.run(go())
    assert asked[0][0] == SERVICE + "Full"
    assert 40 < asked[0][1] <= 51
    assert asked[1] == (SERVICE + "Echo", None)


def test_a_refusal_that_fails_ends_no_other_call(caplog):
    def refuse(path, remaining, coming):
        if path == SERVICE + "Break":
            raise ValueError("of one call")
        return

    async def go():
        async with serving({"Echo": echo}, refuse_unread=refuse) as (_, channel):
            assert (await ended(unary(channel, "Break")))[:2] == (grpc.StatusCode.UNKNOWN, "")
            assert await unary(channel, "Echo") == b"x"

    asyncio.run(go())
    assert "of one call" in caplog.text


def test_errors_of_handlers_are_told_without_their_text(caplog):
    async def fail(requests, context):
        raise ValueError("a secret path")

    async def gone(requests, context):
        raise asyncio.CancelledError

    async def abort(requests, context):
        await context.abort(*REFUSED)

    async def fail_later(requests, context):
        yield b"first"
        raise ValueError("a secret path")

    async def go():
        async with serving({"Fail": fail, "Gone": gone, "Abort": abort}, {"FailLater": fail_later}) as (_, channel):
            code, details, _ = await ended(unary(channel, "Fail"))
            assert (code, details) == (grpc.StatusCode.UNKNOWN, "")
            assert (await ended(unary(channel, "Gone")))[0] is grpc.StatusCode.CANCELLED
            code, details, trailers = await ended(unary(channel, "Abort"))
            assert (code, details, trailers) == (*REFUSED[:2], dict(REFUSED[2]))
            assert (await ended(unary(channel, "Nothing")))[0] is grpc.StatusCode.UNIMPLEMENTED
            call = channel.stream_stream(SERVICE + "FailLater")(iter(()))
            assert await call.read() == b"first"
            assert (await ended(call.read()))[:2] == (grpc.StatusCode.UNKNOWN, "")

    asyncio.run(go())
    assert caplog.text.count("ValueError: a secret path") == 2  # for the operator


@pytest.mark.parametrize("streams", [False, True], ids=["one", "many"])
def test_a_handler_ends_when_its_caller_goes(streams):
    async def go():
        begun, over = asyncio.Event(), asyncio.Event()

        async def wait(requests, context):
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                over.set()

        async def answer_until_gone(requests, context):
            begun.set()
            try:
                while True:
                    yield b"z" * 100_000  # soon there is room for no more
            finally:
                over.set()

        async with serving({"Wait": wait}, {"Answer": answer_until_gone}) as (_, channel):
            call = channel.stream_stream(SERVICE + "Answer")(iter(())) if streams else unary(channel, "Wait")
            running = asyncio.ensure_future(call.read() if streams else call)
            await asyncio.wait_for(begun.wait(), 20)
            assert not over.is_set()
            call.cancel()
            await asyncio.wait_for(over.wait(), 20)
            assert (await ended(unary(channel, "Wait", timeout=0.05)))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
            with contextlib.suppress(asyncio.CancelledError):
                await running

    asyncio.run(go())


def test_requests_that_do_not_come_hold_up_no_others():
    begun = 0

    async def read_one(requests, context):
        nonlocal begun
        begun += 1
        return await context.read() or b"nothing"

    async def go():
        async with serving({"Read": read_one}, one_request={SERVICE + "Read"}) as (_, channel):
            assert await unary(channel, "Read") == b"x"
            slow = [channel.stream_unary(SERVICE + "Read")() for _ in range(REQUESTS_AHEAD)]
            for call in slow:
                await call.wait_for_connection()
            for _ in range(3):
                assert await unary(channel, "Read", b"others") == b"others"
            assert begun == 4 + REQUESTS_AHEAD  # a handler may refuse them without
            for call in slow[1:]:
                await call.write(b"late")
                await call.done_writing()
            assert [await call for call in slow[1:]] == [b"late"] * (REQUESTS_AHEAD - 1)
            slow[0].cancel()
            assert await unary(channel, "Read") == b"x"

    asyncio.run(go())


def test_calls_that_no_handler_knows_of_yet_are_told_as_coming():
    asked, all_taken, over = [], threading.Event(), threading.Event()

    def refuse(path, remaining, coming):
        asked.append(coming)
        if len(asked) == 5:
            all_taken.set()

    def late():
        over.wait(20)
        yield b"x"

    async def go():
        async with serving({"Echo": echo}, refuse_unread=refuse, one_request={SERVICE + "Echo"}) as (server, channel):
            with grpc.insecure_channel(server.address) as other:
                calls = [other.unary_unary(SERVICE + "Echo").future(b"x") for _ in range(5)]
                assert all_taken.wait(20)  # on the loop, so that no handler begins
                assert asked == [0, 1, 2, 3, 4]
                assert await asyncio.to_thread(lambda: [call.result(20) for call in calls]) == [b"x"] * 5
                assert await unary(channel, "Echo") == b"x"
                assert asked[5] == 0
                waiting = other.stream_unary(SERVICE + "Echo").future(late())
                while len(asked) < 7:
                    await asyncio.sleep(0)
                assert await unary(channel, "Echo") == b"x"
                assert await unary(channel, "Echo") == b"x"
                assert asked[-1] == 0, "a call whose request does not come counts no longer"
                over.set()
                assert await asyncio.to_thread(waiting.result, 20) == b"x"

    asyncio.run(asyncio.wait_for(go(), 60))


def test_no_more_requests_are_read_ahead_than_there_are_places():
    async def go():
        begun, count = asyncio.Semaphore(0), 3 * REQUESTS_AHEAD

        async def wait(requests, context):
            begun.release()
            await asyncio.Event().wait()

        async with serving({"Wait": wait}, one_request={SERVICE + "Wait"}) as (server, channel):
            calls = [channel.stream_unary(SERVICE + "Wait")() for _ in range(count)]
            for _ in range(count):
                await asyncio.wait_for(begun.acquire(), 20)
            assert server._reading == REQUESTS_AHEAD
            for call in calls:
                call.cancel()

    asyncio.run(go())


def test_places_for_requests_are_free_again_when_calls_are_refused_without_them():
    async def refuse(requests, context):
        await context.abort(*REFUSED)

    async def go():
        async with serving({"Refuse": refuse, "Echo": echo}, one_request={SERVICE + "Refuse"}) as (server, channel):
            for _ in range(3):
                calls = [channel.stream_unary(SERVICE + "Refuse")() for _ in range(2 * REQUESTS_AHEAD)]
                assert {(await ended(call))[0] for call in calls} == {REFUSED[0]}
            async with asyncio.timeout(20):
                while server._reading:
                    assert await unary(channel, "Echo") == b"x"

    asyncio.run(go())


def test_a_slow_reader_is_not_answered_ahead():
    async def go():
        given = 0

        async def answers(requests, context):
            nonlocal given
            for given in range(1, 1_001):  # noqa: B007
                yield b"z" * 1_000_000

        async with serving(many={"Answer": answers}) as (_, channel):
            call = channel.stream_stream(SERVICE + "Answer")(iter(()))
            for _ in range(5):
                assert len(await call.read()) == 1_000_000
            assert await unary_echo_is_missing(channel)  # by now the server has answered what else came
            assert given < 100
            call.cancel()

    async def unary_echo_is_missing(channel):
        return (await ended(unary(channel, "Echo")))[0] is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(go())


def test_calls_have_the_grace_to_end_and_are_cancelled_after_it():
    async def go(grace):
        begun, told, cancelled = asyncio.Event(), asyncio.Event(), []

        async def wait(requests, context):
            begun.set()
            try:
                await told.wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise
            return b"done"

        async with serving({"Wait": wait}) as (server, channel):
            call = asyncio.ensure_future(unary(channel, "Wait"))
            await begun.wait()
            stopping = asyncio.ensure_future(server.stop(grace))
            if grace:
                await asyncio.sleep(0)
                told.set()
                assert await call == b"done"
            else:
                assert (await ended(call))[0] in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
            await stopping
            assert cancelled == ([] if grace else [True])
            assert (await ended(unary(channel, "Wait")))[0] is grpc.StatusCode.UNAVAILABLE

    asyncio.run(go(30))
    asyncio.run(go(0))


def test_a_port_that_is_taken_is_told():
    server = CoreServer(OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    with pytest.raises(RuntimeError):
        CoreServer(OPTIONS).add_insecure_port(f"127.0.0.1:{port}")


def test_calls_that_ended_take_no_places_of_their_connection():
    """The core counts a call as long as anything refers to it, such as a traceback that only a collection would free,
    and refuses others of its connection beyond twice the number of the option or so."""

    async def keep(requests, context):
        try:
            raise ValueError
        except ValueError as error:
            kept = error  # refers to this frame
        await context.abort(grpc.StatusCode.NOT_FOUND, str(kept))

    async def go():
        async with serving({"Keep": keep}, options=[("grpc.max_concurrent_streams", 10)]) as (_, channel):
            for _ in range(200):
                assert (await ended(unary(channel, "Keep")))[0] is grpc.StatusCode.NOT_FOUND

    gc.disable()
    try:
        asyncio.run(go())
    finally:
        gc.enable()


async def thread_of(requests, context):
    """Tells where it was begun, for a request that is not empty."""
    where = threading.current_thread().name
    return f"{where} {(await context.read()).decode()}".encode()


async def waits(requests, context):
    begun = threading.current_thread().name
    await asyncio.sleep(0.001)
    return f"{begun} {threading.current_thread().name} {(await context.read()).decode()}".encode()


async def raises(requests, context):
    raise ValueError("a defect")


IN_PLACE = {"Thread": thread_of, "Wait": waits, "Raise": raises, "Echo": echo}


@contextlib.contextmanager
def in_place_server(place_of=contextlib.nullcontext, refuse_unread=None):
    """A server whose methods may run in place, on a loop in another thread; a channel from here, and the server."""
    ready, over = threading.Event(), threading.Event()
    made = []

    async def main():
        paths = {SERVICE + name for name in IN_PLACE if name != "Echo"}
        async with serving(IN_PLACE, {}, refuse_unread, paths, place_of=place_of) as (server, _):
            made.append((server, asyncio.get_running_loop()))
            ready.set()
            await asyncio.to_thread(over.wait, 60)

    def run():
        with asyncio.Runner(loop_factory=LentLoop) as runner:
            runner.run(main())

    thread = threading.Thread(target=run, name="loop")
    thread.start()
    assert ready.wait(20)
    server, loop = made[0]
    try:
        with grpc.insecure_channel(server.address) as channel:
            yield channel, server, loop
    finally:
        over.set()
        thread.join(20)
    assert not thread.is_alive()


def once(channel, name, data=b"x", **keywords):
    return channel.unary_unary(SERVICE + name)(data, timeout=20, **keywords)


def until_in_place(channel, name="Thread", told=b"calls x"):
    """Ask until a call runs in place: the loop may have something to do just now."""
    for _ in range(1_000):
        if once(channel, name) == told:
            return True
        threading.Event().wait(0.001)
    return False


def test_calls_that_come_one_by_one_are_answered_where_they_are_taken():
    entered = []

    @contextlib.contextmanager
    def place():
        entered.append(threading.current_thread().name)
        yield

    with in_place_server(place) as (channel, _, _):
        assert until_in_place(channel)
        large = b"y" * 3_000_000
        assert once(channel, "Thread", large) in (b"calls " + large, b"loop " + large)
        assert once(channel, "Echo") == b"x"  # a method that is not asked about
        for _ in range(20):
            assert until_in_place(channel)
    assert set(entered) == {"calls"}


def test_what_runs_in_place_goes_on_on_the_loop_when_it_waits():
    with in_place_server() as (channel, server, _):
        for _ in range(20):
            assert until_in_place(channel, "Wait", b"calls loop x")
        for _ in range(1_000):
            if not server._tasks:  # they end after they have answered
                break
            assert once(channel, "Echo") == b"x"
        assert not server._tasks


def test_a_handler_that_fails_in_place_ends_its_call_only(caplog):
    with in_place_server() as (channel, _, _):
        assert until_in_place(channel)
        with pytest.raises(grpc.RpcError) as error:
            once(channel, "Raise")
        assert error.value.code() is grpc.StatusCode.UNKNOWN
        assert "a defect" not in str(error.value)
        assert until_in_place(channel)
    assert "a defect" in caplog.text


def test_without_a_place_handlers_are_on_the_loop():
    for place_of in (lambda: None, None):
        with in_place_server(place_of) as (channel, _, _):
            assert {once(channel, "Thread") for _ in range(20)} == {b"loop x"}


def test_while_the_loop_is_at_work_calls_wait_for_it():
    with in_place_server() as (channel, _, loop):
        assert until_in_place(channel)
        at_work, go_on = threading.Event(), threading.Event()
        loop.call_soon_threadsafe(lambda: (at_work.set(), go_on.wait(20)))
        assert at_work.wait(20)
        call = channel.unary_unary(SERVICE + "Thread").future(b"x", timeout=20)
        with pytest.raises(grpc.FutureTimeoutError):
            call.result(0.1)
        go_on.set()
        assert call.result(20) == b"loop x"


@contextlib.contextmanager
def late_request(channel, name):
    """A call that runs in place if its request comes at once; it is sent at the end of the block."""
    assert until_in_place(channel)
    send = threading.Event()

    def late():
        send.wait(20)
        yield b"late"

    call = channel.stream_unary(SERVICE + name).future(late(), timeout=20)
    yield
    send.set()
    assert call.result(20) == b"loop late"


def test_a_request_that_is_late_is_waited_for_on_the_loop_and_keeps_nobody():
    with in_place_server() as (channel, _, _):
        with late_request(channel, "Thread"):
            assert once(channel, "Echo") == b"x"
            assert once(channel, "Thread") in (b"loop x", b"calls x")
        assert until_in_place(channel)


def test_a_request_that_is_late_brings_its_call_to_the_loop_though_nothing_else_happens(monkeypatch):
    begun = threading.Event()

    async def tells(requests, context):
        begun.set()
        return await thread_of(requests, context)

    monkeypatch.setitem(IN_PLACE, "Wait", tells)
    with in_place_server() as (channel, _, _), late_request(channel, "Wait"):
        assert begun.wait(10)


def test_a_caller_that_goes_before_its_request_has_come_leaves_nothing():
    with in_place_server() as (channel, server, _):
        assert until_in_place(channel)
        for _ in range(20):
            send = threading.Event()
            call = channel.stream_unary(SERVICE + "Thread").future(iter(send.wait, True), timeout=20)
            call.cancel()
            send.set()
            assert once(channel, "Echo") == b"x"
        for _ in range(1_000):
            if not server._reading and not server._tasks and server._expected is None:
                break
            assert once(channel, "Echo") == b"x"
        assert (server._reading, len(server._tasks), server._expected) == (0, 0, None)


def test_many_at_a_time_and_one_by_one_are_all_answered():
    with in_place_server() as (channel, _, _):
        for count in (1, 40, 1, 2, 1, 100):
            calls = [channel.unary_unary(SERVICE + "Wait").future(b"%d" % n, timeout=20) for n in range(count)]
            assert [call.result(20).split()[-1] for call in calls] == [b"%d" % n for n in range(count)]
