"""A server goes over to another model with its index while it is asked: every answer is right for the model that it
names, no call fails, and no acknowledged change is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
import time
import weakref
from contextlib import closing

import grpc
import pytest
from fakes import COLOURS, ColourRuntime, ListSource, TurnedRuntime, colour_pair, picture
from server_process import running

from data.errors import UserError
from protos.imageretrieval.v1 import image_service_pb2 as pb
from protos.imageretrieval.v1 import image_service_pb2_grpc, query_pb2, search_service_pb2, search_service_pb2_grpc
from serving.change_log import ChangeLog
from serving.client import SearchClient
from serving.embedded_store import EmbeddedStore
from serving.hot_swap import HotSwap
from serving.index_job import build_index
from serving.live_unit import LiveUnit
from serving.operations import OperationFailed
from serving.publish import roll_back
from serving.queries import TextQuery
from serving.reembedding import Reembedding
from serving.search_engine import SearchEngine
from serving.snapshot import SNAPSHOTS, current_name, read_manifest, snapshot_names
from serving.vector_store import Delete, StoreSuperseded

OLD, NEW = ColourRuntime(), TurnedRuntime()
SOURCE = ListSource([colour_pair(number) for number in range(24)], "colours:24")


@pytest.fixture
def index(tmp_path):
    build_index(OLD, SOURCE, tmp_path)
    return tmp_path


def other_snapshot(index) -> str:
    """The one that is kept and not live."""
    (name,) = set(snapshot_names(index)) - {current_name(index)}
    return name


class Load:
    """Threads that ask and change without an end, and what was wrong with the answers."""

    def __init__(self, address: str) -> None:
        self.wrong: list[str] = []
        self.revisions: dict[str, str] = {}  # index revision → model
        self.answers = 0
        self.acknowledged: dict[str, int] = {}
        self._stop = threading.Event()
        self._channel = grpc.insecure_channel(address)
        work = (self._search, self._stream, self._change, self._change_by_stream)
        self._threads = [threading.Thread(target=self._guarded, args=[each]) for each in work]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()
        assert not self.wrong, self.wrong[:5]

    def wait_for_answers(self, more: int) -> None:
        """Until so many more searches were answered."""
        until = self.answers + more
        while self.answers < until and not self.wrong:
            time.sleep(0.01)

    def _guarded(self, work) -> None:
        try:
            work()
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")

    def _check(self, colour: str, response) -> None:
        for hit in response.hits:
            if hit.attributes["colour"].string_value != colour:
                self.wrong.append(f"{hit.image_id} for {colour} by {response.model_revision}")
        if self.revisions.setdefault(response.index_revision, response.model_revision) != response.model_revision:
            self.wrong.append(f"{response.index_revision} of two models")
        self.answers += 1

    def _asked(self, colour: str, number: int):
        query = query_pb2.Query(text=colour)
        if number % 2:
            query = query_pb2.Query(image=picture(colour, seed=7))
        return search_service_pb2.SearchRequest(query=query, page_size=3)

    def _search(self) -> None:
        stub = search_service_pb2_grpc.SearchServiceStub(self._channel)
        for number, colour in enumerate(itertools.cycle(COLOURS)):
            if self._stop.is_set():
                return
            self._check(colour, stub.Search(self._asked(colour, number), timeout=30))

    def _stream(self) -> None:
        """One stream that outlives every unit."""
        asked: dict[int, str] = {}
        room = threading.Semaphore(4)

        def requests():
            for tag, colour in enumerate(itertools.cycle(COLOURS)):
                room.acquire()
                if self._stop.is_set():
                    return
                asked[tag] = colour
                yield search_service_pb2.StreamSearchRequest(tag=tag, request=self._asked(colour, tag))

        for response in search_service_pb2_grpc.SearchServiceStub(self._channel).StreamSearch(requests()):
            assert response.result.HasField("response"), response.result.error
            self._check(asked.pop(response.tag), response.result.response)
            room.release()

    def _upsert(self, name: str, number: int) -> pb.UpsertImageRequest:
        colour = list(COLOURS)[number % len(COLOURS)]
        attributes = {
            "colour": query_pb2.AttributeValue(string_value=colour),
            "number": query_pb2.AttributeValue(int_value=number),
        }
        return pb.UpsertImageRequest(
            image_id=name, data=picture(colour, seed=7), attributes=attributes, request_id=f"{name} {number}"
        )

    def _change(self) -> None:
        stub = image_service_pb2_grpc.ImageServiceStub(self._channel)
        for number in itertools.count():
            if self._stop.is_set():
                return
            name = f"own-{number % 20}"
            stub.UpsertImage(self._upsert(name, number), timeout=60)
            self.acknowledged[name] = number

    def _change_by_stream(self) -> None:
        room = threading.Semaphore(4)

        def requests():
            for number in itertools.count():
                room.acquire()
                if self._stop.is_set():
                    return
                request = self._upsert(f"streamed-{number % 20}", number)
                yield pb.StreamUpsertImagesRequest(tag=number, request=request)

        for response in image_service_pb2_grpc.ImageServiceStub(self._channel).StreamUpsertImages(requests()):
            assert response.HasField("response"), response.error
            self.acknowledged[f"streamed-{response.tag % 20}"] = response.tag
            room.release()


def swap_back_and_forth(index, times: int) -> None:
    with running(index, "writable") as (process, address), SearchClient(address) as client:
        client.wait_until_ready(30)
        load = Load(address)
        try:
            load.wait_for_answers(20)
            for turn in range(times):
                if turn == 0:
                    build_index(NEW, SOURCE, index)
                    model = NEW
                else:
                    model = OLD if turn % 2 else NEW
                    roll_back(index, other_snapshot(index), lambda _, model=model: Reembedding(index, lambda: model))
                while client.search("red", k=1).model_revision != model.fingerprint:
                    load.wait_for_answers(1)
                load.wait_for_answers(20)
        finally:
            load.end()
        assert set(load.revisions.values()) == {OLD.fingerprint, NEW.fingerprint}
        for revision, model in load.revisions.items():
            with contextlib.suppress(UserError):  # of a snapshot that was removed since
                manifest, _ = read_manifest(index / SNAPSHOTS / revision.rpartition("-")[0])
                assert manifest.model_fingerprint == model
        process.terminate()
        assert process.wait(30) == 0
    with closing(EmbeddedStore.open(index)) as store, store.view() as view:
        names = sorted(load.acknowledged)
        for name, image in zip(names, view.get(names), strict=True):
            assert image is not None
            assert image.attributes["number"] >= load.acknowledged[name]


def test_a_server_under_load_goes_over_to_another_model_and_back(index):
    swap_back_and_forth(index, 2)


@pytest.mark.slow
def test_a_server_under_load_goes_back_and_forth_many_times(index):
    swap_back_and_forth(index, 12)


def engine_of(index, runtime, writable=True) -> SearchEngine:
    return SearchEngine(runtime, EmbeddedStore.open(index, runtime.fingerprint, writable=writable))


def test_a_unit_that_cannot_be_served_stays_out_until_another_is_published(index, caplog):
    tried = []

    def fail(former):
        tried.append(1)
        raise UserError("a bundle", "none", "copy it there")

    async def main():
        unit = LiveUnit()
        unit.replace(engine_of(index, OLD))
        swap = HotSwap(unit, fail)
        await swap.go_over()
        assert not tried
        build_index(NEW, SOURCE, index)
        with pytest.raises(OperationFailed, match="cannot be served: expected a bundle"):
            await swap.go_over()
        await swap._look(again=False)
        assert len(tried) == 1  # told once, not tried for ever
        assert unit.engine.runtime is OLD
        assert (await unit.engine.images.get("red-0000"))[0].image.version == 1
        with pytest.raises(StoreSuperseded):
            await unit.engine.changes.delete(["red-0000"])
        roll_back(index)
        await swap.go_over()
        assert await unit.engine.changes.delete(["red-0000"]) == (2,)
        await unit.close()

    asyncio.run(main())
    assert "the former goes on" in caplog.text


def test_an_engine_closes_when_the_last_call_has_left_it():
    class Engine:
        def __init__(self):
            self.closed = threading.Event()

        def close(self):
            self.closed.set()

    async def main():
        unit, first, second = LiveUnit(), Engine(), Engine()
        assert unit.enter() is None
        unit.replace(first)
        assert unit.enter() is unit.enter() is first
        waiting = asyncio.create_task(unit.another(first, 30))
        assert not await unit.another(first, 0.01)
        unit.replace(second)
        assert await waiting
        unit.leave(first)
        await asyncio.sleep(0.05)
        assert not first.closed.is_set()
        unit.leave(first)
        await asyncio.to_thread(first.closed.wait)
        assert not second.closed.is_set()
        await unit.close()
        assert second.closed.is_set()

    asyncio.run(main())


def test_a_store_that_cannot_take_over_leaves_the_former_writing(index, monkeypatch):
    former, following = EmbeddedStore.open(index, compact_after=5), EmbeddedStore.open(index, writable=False)
    with closing(former), closing(following):
        opened = ChangeLog.open
        failing = [OSError("the disk")]

        def fail_once(*arguments, **options):
            if failing:
                raise failing.pop()
            return opened(*arguments, **options)

        monkeypatch.setattr(ChangeLog, "open", fail_once)
        with pytest.raises(OSError, match="the disk"):
            following.take_over(former)
        assert (former.writable, following.writable) == (True, False)
        assert former.apply([Delete("red-0000")]).sequence == 2


def test_changes_go_to_the_store_that_writes_now(index):
    former, following = EmbeddedStore.open(index, compact_after=5), EmbeddedStore.open(index, writable=False)
    with closing(former), closing(following):
        assert former.apply([Delete("red-0000")]).sequence == 2
        following.take_over(former)
        assert (former.writable, following.writable) == (True, True)
        with pytest.raises(StoreSuperseded):
            former.apply([Delete("blue-0002")])
        assert following.apply([Delete("blue-0002")]).sequence == 3
        with following.view() as view:
            assert view.get(["red-0000", "blue-0002"]) == [None, None]
        former.take_over(following)
        assert former.apply([Delete("green-0001")]).sequence == 4
        with former.view() as view:
            assert view.get(["red-0000", "blue-0002", "green-0001"]) == [None] * 3


def test_nothing_keeps_a_unit_that_was_replaced(index):
    async def main():
        unit, kept = LiveUnit(), []

        def load_next(former):
            engine = engine_of(index, NEW if former.runtime is OLD else OLD, writable=False)
            engine.store.take_over(former.store)
            return engine

        swap = HotSwap(unit, load_next)
        unit.replace(engine_of(index, OLD))
        for turn in range(4):
            kept.append(weakref.ref(unit.engine))
            await unit.engine.search(TextQuery("red"))
            if turn:
                roll_back(index, other_snapshot(index))
            else:
                build_index(NEW, SOURCE, index)
            await swap.go_over()
        while unit._closing:
            await asyncio.sleep(0.01)
        assert [ref() for ref in kept] == [None] * 4
        await unit.close()

    gc.disable()  # a collection may be long in coming, and models are large
    try:
        asyncio.run(main())
    finally:
        gc.enable()
