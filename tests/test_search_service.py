"""The search interface over the wire: compositions, pages, vectors as bytes, masks, batches and streams."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import io
import signal

import grpc
import numpy as np
import pytest
from fakes import ColourRuntime, ImageBytes, ImageTextPair, ListSource, colour_pair, picture
from google.protobuf.field_mask_pb2 import FieldMask
from PIL import Image
from server_process import running
from test_grpc_service import refused

from protos.imageretrieval.v1 import index_service_pb2, index_service_pb2_grpc, query_pb2, search_service_pb2_grpc
from protos.imageretrieval.v1 import search_service_pb2 as search_pb2
from serving.client import SearchClient
from serving.grpc_methods import _well_formed
from serving.index_job import build_index
from serving.page_tokens import PageToken
from serving.streams import IN_FLIGHT, as_they_come

RUNTIME = ColourRuntime()
SEARCH, QUERY, VECTOR = search_pb2.SearchRequest, query_pb2.Query, query_pb2.Vector


def half_red_half_blue():
    """An encoded image like no other of the index."""
    drawn = Image.open(io.BytesIO(picture("red")))
    drawn.paste(Image.open(io.BytesIO(picture("blue"))), (drawn.width // 2, 0))
    buffer = io.BytesIO()
    drawn.save(buffer, format="PNG")
    return buffer.getvalue()


COPIES = [ImageTextPair(f"copy-{number}", ImageBytes(half_red_half_blue), ("a copy",)) for number in range(3)]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """40 pictures, five of each colour, and three copies of another one."""
    out = tmp_path_factory.mktemp("served")
    build_index(RUNTIME, ListSource([*map(colour_pair, range(40)), *COPIES]), out)
    return out


@pytest.fixture(scope="module", params=[(), ("in_place",)], ids=["elsewhere", "in place"])
def address(index, request):
    with running(index, *request.param) as (_, address):
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        yield address


@pytest.fixture(scope="module")
def stub(address):
    with grpc.insecure_channel(address) as channel:
        yield search_service_pb2_grpc.SearchServiceStub(channel)


def ids(response):
    return [hit.image_id for hit in response.hits]


def text(words, **options):
    return SEARCH(query=QUERY(text=words), **options)


def composition(*parts):
    weighted = [query_pb2.WeightedQuery(query=query, weight=weight) for query, weight in parts]
    return QUERY(composition=query_pb2.Composition(parts=weighted))


def invalid(stub, request):
    """The field that a search is refused for."""
    code, details = refused(stub.Search, request)
    assert (code, details["ErrorInfo"]["reason"]) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_QUERY")
    (violation,) = details["BadRequest"]["field_violations"]
    return violation["field"]


def test_searches_for_texts_that_come_one_by_one_are_done_where_their_calls_are_taken(index):
    with running(index, "in_place") as (process, address), SearchClient(address) as client:
        client.wait_until_ready(30)
        threads = []
        for number in range(1_000):  # the server may have something else to do just now
            client.search(f"where {number}")
            threads.append(process.stdout.readline().partition("_")[0].strip())
            if threads[-1] == "calls":
                break
    assert threads[0] == "inference"  # how long it takes is not known yet
    assert threads[-1] == "calls"


def test_a_composition_ranks_by_the_weighted_sum_of_similarities(stub):
    plus, minus, image = "red blue", "blue", picture("green", seed=50)
    query = composition((QUERY(text=plus), None), (QUERY(text=minus), -0.5), (QUERY(image=image), 0.25))
    response = stub.Search(SEARCH(query=query, page_size=40))
    vectors = np.stack([*RUNTIME.embed_texts([plus, minus]), *RUNTIME.embed_images([image])]).astype(np.float64)
    wanted = np.array([1, -0.5, 0.25]) @ vectors
    wanted /= np.linalg.norm(wanted)
    by_vector = stub.Search(SEARCH(query=QUERY(vector=VECTOR(values=wanted)), page_size=40))
    assert ids(response) == ids(by_vector)
    np.testing.assert_allclose(
        [hit.score for hit in response.hits], [hit.score for hit in by_vector.hits], rtol=0, atol=1e-6
    )
    assert ids(response) != ids(stub.Search(text(plus, page_size=40)))


def test_a_composition_mixes_every_sort_of_example(stub):
    vector = RUNTIME.embed_texts(["purple"])[0]
    query = composition(
        (QUERY(text="purple"), 1), (QUERY(image_id="purple-0004"), 1), (QUERY(vector=VECTOR(values=vector)), 1)
    )
    found = stub.Search(SEARCH(query=query, page_size=5))
    assert {hit.attributes["colour"].string_value for hit in found.hits} == {"purple"}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (QUERY(composition=query_pb2.Composition()), "query.composition.parts"),
        (composition(*[(QUERY(text="red"), 1)] * 17), "query.composition.parts"),
        (composition((QUERY(text="red"), 1), (QUERY(text="blue"), 0)), "query.composition.parts[1].weight"),
        (composition((QUERY(text="red"), 10.5)), "query.composition.parts[0].weight"),
        (composition((QUERY(text="red"), float("nan"))), "query.composition.parts[0].weight"),
        (composition((QUERY(text="red"), 1), (QUERY(text="red"), -1)), "query.composition"),
        (composition((QUERY(text=" "), 1)), "query.composition.parts[0].query.text"),
        (composition((QUERY(), 1)), "query.composition.parts[0].query"),
        (composition((composition((QUERY(text="red"), 1)), 1)), "query.composition.parts[0].query"),
        (composition((QUERY(vector=VECTOR(values=[1])), 1)), "query.composition.parts[0].query.vector"),
    ],
)
def test_a_bad_part_of_a_composition_is_named(stub, query, field):
    assert invalid(stub, SEARCH(query=query)) == field


def test_pages_give_every_hit_once_in_the_order_of_one_page(stub):
    whole = stub.Search(text("red", page_size=100))
    pages, token = [], ""
    for size in (7, 3, 20, 20):
        response = stub.Search(text("red", page_size=size, page_token=token))
        pages.extend(response.hits)
        token = response.next_page_token
    assert token == ""
    assert [hit.image_id for hit in pages] == ids(whole)
    assert [hit.rank for hit in pages] == list(range(1, 44))


def test_a_page_token_of_a_state_that_is_gone_says_so(stub):
    token = PageToken.decode(stub.Search(text("red", page_size=2)).next_page_token)
    gone = dataclasses.replace(token, revision="20200101-000000-0000-1").encode()
    code, details = refused(stub.Search, text("red", page_token=gone))
    assert (code, details["ErrorInfo"]["reason"]) == (grpc.StatusCode.FAILED_PRECONDITION, "PAGE_TOKEN_EXPIRED")
    (violation,) = details["PreconditionFailure"]["violations"]
    assert (violation["type"], violation["subject"]) == ("PAGE_TOKEN_EXPIRED", "page_token")


def test_a_page_token_belongs_to_its_search(stub):
    token = stub.Search(text("red", page_size=2)).next_page_token
    assert stub.Search(text("red", page_size=30, page_token=token)).hits[0].rank == 3
    others = [text("blue"), text("red", min_score=0.1), text("red", filter="even = true"), text("red", exact=True)]
    for other in others:
        other.page_token = token
        assert invalid(stub, other) == "page_token"
    for broken in ("nonsense", token[:-4], token + "=", "é", "A" * 20_000):
        assert invalid(stub, text("red", page_token=broken)) == "page_token"


@pytest.mark.parametrize("values", [QUERY(text="red"), QUERY(image_id="red-0000")], ids=["text", "image_id"])
def test_hits_can_be_paged_through_for_every_sort_of_query(stub, values):
    first = stub.Search(SEARCH(query=values, page_size=20))
    second = stub.Search(SEARCH(query=values, page_size=23, page_token=first.next_page_token))
    assert len({*ids(first), *ids(second)}) == 43


def vector_bytes(dtype, data_type=None, **fields):
    data = RUNTIME.embed_texts(["a red one"])[0].astype(dtype).tobytes()
    return QUERY(vector=VECTOR(data=data, data_type=data_type, **fields))


def test_vectors_come_as_bytes_of_either_type(stub):
    by_text = stub.Search(text("a red one"))
    for query in (
        vector_bytes("<f4"),
        vector_bytes("<f4", VECTOR.DATA_TYPE_FLOAT32, dimension=8),
        vector_bytes("<f2", VECTOR.DATA_TYPE_FLOAT16),
        vector_bytes("<f2", VECTOR.DATA_TYPE_FLOAT16, dimension=8),
    ):
        response = stub.Search(SEARCH(query=query))
        assert ids(response)[:5] == ids(by_text)[:5]
        np.testing.assert_allclose(response.hits[0].score, by_text.hits[0].score, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("vector", "field"),
    [
        (VECTOR(data=b"1234567"), "query.vector.data"),
        (VECTOR(data=bytes(range(15)), data_type=VECTOR.DATA_TYPE_FLOAT16), "query.vector.data"),
        (VECTOR(data=bytes(32), dimension=9), "query.vector.data"),
        (VECTOR(data=bytes(32), dimension=-8), "query.vector.data"),
        (VECTOR(data=bytes(32), data_type=7), "query.vector.data_type"),
        (VECTOR(data=bytes(32), values=[1.0] * 8), "query.vector"),
        (VECTOR(data=bytes(32)), "query.vector"),
        (VECTOR(data=np.ones(9, "<f4").tobytes()), "query.vector"),
        (VECTOR(data=np.full(8, np.inf, "<f4").tobytes()), "query.vector"),
        (VECTOR(data=np.full(8, np.nan, "<f2").tobytes(), data_type=VECTOR.DATA_TYPE_FLOAT16), "query.vector"),
        (VECTOR(dimension=8), "query.vector"),
    ],
)
def test_bytes_that_are_no_vector_are_refused(stub, vector, field):
    assert invalid(stub, SEARCH(query=QUERY(vector=vector))) == field


def masked(stub, *paths):
    return stub.Search(text("red", page_size=1, read_mask=FieldMask(paths=paths))).hits[0]


def test_a_read_mask_leaves_the_fields_it_names(stub):
    everything = masked(stub, "*")
    plain = masked(stub)
    fields = ["image_id", "score", "rank", "captions", "attributes", "vector"]
    assert {field.name for field, _ in everything.ListFields()} == set(fields)
    assert {field.name for field, _ in plain.ListFields()} == {*fields} - {"vector"}
    for name in fields:
        only = masked(stub, name)
        assert [field.name for field, _ in only.ListFields()] == [name]
        assert getattr(only, name) == getattr(everything, name)
    assert len(everything.vector.values) == 8
    assert not masked(stub, "probability").ListFields()  # no calibrated model


def test_a_read_mask_takes_attributes_by_name(stub):
    assert set(masked(stub, "attributes.number", "attributes.colour", "rank").attributes) == {"number", "colour"}
    assert set(masked(stub, "attributes.`number`").attributes) == {"number"}
    assert not masked(stub, "attributes.absent").ListFields()
    assert len(masked(stub, "attributes.number", "attributes").attributes) == 6


@pytest.mark.parametrize("path", ["nothing", "captions.first", "vector.values", "", "attributes.", "*.score"])
def test_an_unknown_path_of_a_read_mask_is_refused(stub, path):
    assert invalid(stub, text("red", read_mask=FieldMask(paths=["image_id", path]))) == "read_mask"


def test_timings_and_certificate_come_when_they_are_asked_for(stub, address):
    plain, full = stub.Search(text("red")), stub.Search(text("a new one", with_timings=True, with_certificate=True))
    assert not plain.HasField("timings")
    assert not plain.HasField("certificate")
    parts = [getattr(full.timings, name).ToNanoseconds() for name in ("embedding", "queueing", "search", "lookup")]
    assert min(parts) >= 0
    assert 0 < sum(parts) <= full.timings.total.ToNanoseconds()
    assert full.certificate.kind == "Flat"
    assert full.certificate.index_recall == 1
    assert full.certificate.query_count > 0
    assert full.certificate.query_kind == "texts"
    with grpc.insecure_channel(address) as channel:
        index_stub = index_service_pb2_grpc.IndexServiceStub(channel)
        assert index_stub.GetIndex(index_service_pb2.GetIndexRequest()).index.certificate == full.certificate


def test_copies_are_left_out_at_a_similarity(stub):
    mixed = SEARCH(query=QUERY(image=half_red_half_blue()), page_size=4)
    assert ids(stub.Search(mixed))[:3] == ["copy-0", "copy-1", "copy-2"]
    mixed.deduplicate_similarity = 0.9999
    found = ids(stub.Search(mixed))
    assert len(found) == 4
    assert [image_id for image_id in found if image_id.startswith("copy")] == ["copy-0"]
    for similarity in (0, -1, 1.5, float("nan")):
        assert invalid(stub, text("red", deduplicate_similarity=similarity)) == "deduplicate_similarity"


def test_exact_and_oversampled_searches_agree_with_the_exact_index(stub):
    hits = stub.Search(text("red")).hits
    assert stub.Search(text("red", exact=True)).hits == hits
    assert stub.Search(text("red", oversampling=16)).hits == hits
    for oversampling in (0.5, -1, 16.5, float("nan"), float("inf")):
        assert invalid(stub, text("red", oversampling=oversampling)) == "oversampling"


def test_a_bad_search_of_a_batch_leaves_the_others_alone(stub):
    requests = [text("red", page_size=1), text(" "), SEARCH(query=QUERY(image_id="nobody")), text("blue", page_size=2)]
    red, empty, nobody, blue = stub.BatchSearch(search_pb2.BatchSearchRequest(requests=requests)).results
    assert red.response == stub.Search(requests[0])
    assert blue.response == stub.Search(requests[3])
    assert (empty.error.code, nobody.error.code) == (3, 5)
    for request, result in ((requests[1], empty), (requests[2], nobody)):
        with pytest.raises(grpc.RpcError) as alone:
            stub.Search(request)
        assert result.error.message == alone.value.details()
        trailers = dict(alone.value.trailing_metadata())
        assert result.error.SerializeToString() == trailers["grpc-status-details-bin"]


@pytest.mark.parametrize("count", [0, 65])
def test_a_batch_holds_1_to_64_searches(stub, count):
    request = search_pb2.BatchSearchRequest(requests=[text("red")] * count)
    code, details = refused(stub.BatchSearch, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details["BadRequest"]["field_violations"][0]["field"] == "requests"
    assert len(stub.BatchSearch(search_pb2.BatchSearchRequest(requests=[text("red")] * 64)).results) == 64


def tagged(searches):
    return iter([search_pb2.StreamSearchRequest(tag=tag, request=search) for tag, search in enumerate(searches)])


def test_a_stream_answers_every_search_once(stub):
    colours = ["red", "green", "blue", "white"]
    searches = [text(f"{colours[tag % 4]} {tag}", page_size=3) for tag in range(200)]
    searches[50], searches[199] = text(""), SEARCH()
    answers = {answer.tag: answer.result for answer in stub.StreamSearch(tagged(searches), timeout=60)}
    assert set(answers) == set(range(200))
    assert {tag for tag, result in answers.items() if result.HasField("error")} == {50, 199}
    for tag in set(range(200)) - {50, 199}:
        assert {image_id.split("-")[0] for image_id in ids(answers[tag].response)} == {colours[tag % 4]}


def test_an_empty_stream_ends(stub):
    assert list(stub.StreamSearch(iter([]), timeout=30)) == []


def test_a_reader_who_pauses_gets_every_answer_and_holds_up_nobody_else(stub):
    answers = stub.StreamSearch(tagged([text(f"red {tag}", page_size=100) for tag in range(300)]), timeout=60)
    read = [next(answers).tag]
    assert stub.Search(text("blue"), timeout=30).hits
    assert sorted(read + [answer.tag for answer in answers]) == list(range(300))


def test_a_stream_answers_as_soon_as_it_can_and_outlives_a_client_that_cancels(index):
    with running(index) as (process, address), grpc.insecure_channel(address) as channel:
        with SearchClient(address) as client:
            client.wait_until_ready(30)
            vector = client.embed_texts(["red"])[0]
        stub = search_service_pb2_grpc.SearchServiceStub(channel)
        answers = stub.StreamSearch(
            tagged([text("wait"), SEARCH(query=QUERY(vector=VECTOR(values=vector)))]), timeout=60
        )
        assert next(answers).tag == 1  # the first is being embedded
        assert process.stdout.readline() == "waiting\n"
        answers.cancel()
        with pytest.raises(grpc.RpcError) as end:
            next(answers)
        assert end.value.code() is grpc.StatusCode.CANCELLED
        process.stdin.write("\n")
        process.stdin.flush()
        assert stub.Search(text("red"), timeout=30).hits
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in errors


def test_at_most_so_many_searches_of_a_stream_are_read_before_their_answers_are_taken():
    read = []

    async def requests():
        for number in range(500):
            read.append(number)
            yield number

    async def answer(number):
        await asyncio.sleep(0)
        return number

    async def take_one_and_wait():
        answers = as_they_come(requests(), answer)
        first = await anext(answers)
        for _ in range(1_000):
            await asyncio.sleep(0)
        ahead = len(read)
        rest = [number async for number in answers]
        return first, ahead, rest

    first, ahead, rest = asyncio.run(take_one_and_wait())
    assert ahead <= IN_FLIGHT + 2
    assert sorted([first, *rest]) == list(range(500))


def test_what_is_under_way_is_cancelled_when_nobody_takes_answers():
    cancelled = []

    async def requests():
        for number in range(5):
            yield number

    async def answer(number):
        try:
            return await asyncio.sleep(0 if number == 0 else 60, number)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    async def leave_after_one():
        answers = as_they_come(requests(), answer)
        assert await anext(answers) == 0
        await answers.aclose()
        for _ in range(10):
            await asyncio.sleep(0)

    asyncio.run(leave_after_one())
    assert sorted(cancelled) == [1, 2, 3, 4]


def test_a_reader_that_fails_ends_the_stream_with_its_error():
    async def requests():
        yield 1
        raise ConnectionError("gone")

    async def answer(number):
        return number

    async def take_all():
        return [number async for number in as_they_come(requests(), answer)]

    with pytest.raises(ConnectionError):
        asyncio.run(take_all())


def test_a_reader_that_fails_when_nobody_takes_answers_any_more_is_not_told_as_a_failure_of_the_server():
    told = []

    async def requests():
        yield 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ConnectionError("gone") from None

    async def answer(number):
        return number

    async def leave_after_one():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["message"]))
        answers = as_they_come(requests(), answer)
        assert await anext(answers) == 1
        await answers.aclose()
        del answers
        for _ in range(10):  # the reader fails now
            await asyncio.sleep(0)
        gc.collect()

    asyncio.run(leave_after_one())
    assert not told


def test_a_call_of_a_server_that_stops_while_a_request_is_waited_for_is_a_cancelled_one():
    async def requests():
        yield search_pb2.SearchRequest()
        raise grpc.aio.UsageError("Server already stopped.")

    async def read():
        return [request async for request in _well_formed(requests())]

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(read())
