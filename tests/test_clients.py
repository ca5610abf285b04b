"""The sync and the async client ask the real server for the whole interface, alike; their streams hold little back."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from either_client import BlockingClient
from fakes import ColourRuntime, picture
from server_process import held, running

from protos.imageretrieval.v1 import image_service_pb2, index_service_pb2, operation_service_pb2, search_service_pb2
from serving import client_calls as calls
from serving import client_search_calls as searching
from serving.async_client import AsyncSearchClient
from serving.client import Composition, ImageId, Search, SearchClient, ServiceError
from serving.client_connection import _REPEATABLE, Connection, ConnectionKeywords
from serving.client_values import SearchKeywords
from serving.filters import Compare
from serving.page_tokens import PageToken

RUNTIME = ColourRuntime()


@pytest.fixture(scope="module")
def server(index):
    with running(index) as (process, address):
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        yield process, address


@pytest.fixture
def address(server):
    return server[1]


@pytest.fixture(params=[SearchClient, BlockingClient], ids=["sync", "async"])
def client(request, address):
    with request.param(address, timeout=30) as client:
        client.wait_until_ready(30)
        yield client


def ids(hits):
    return [hit.image_id for hit in hits]


def colours(hits):
    return {hit.image_id.split("-")[0] for hit in hits}


def test_a_composition_weighs_texts_images_ids_and_vectors(client):
    vector = RUNTIME.embed_texts(["orange"])[0].tolist()
    mixed = Composition("red blue", ("blue", -0.5), picture("red"), ImageId("red-0000"), (vector, 0.1))
    assert [weight for _, weight in mixed.parts] == [1, -0.5, 1, 1, 0.1]
    assert colours(client.search(composition=mixed, k=5)) == {"red"}
    without = Composition(("red green", 1), ("green", -1))
    assert colours(client.search(composition=without, k=5)) == {"red"}
    assert Composition((0.5, 0.25)).parts == (((0.5, 0.25), 1.0),)  # a vector, no weight


def test_every_option_reaches_the_server(client):
    results = client.search("red", k=3, fields=["image_id", "attributes.number", "vector"], exact=True, oversampling=4)
    assert [set(hit.attributes) for hit in results] == [{"number"}] * 3
    assert results[0].captions == ()
    np.testing.assert_allclose(np.linalg.norm(results[0].vector), 1, atol=1e-3)
    assert results.timings is None
    told = client.search("red", with_timings=True, with_certificate=True, filter=Compare("colour", "=", "red"))
    assert 0 <= told.timings.embedding <= told.timings.total
    assert told.timings.total > 0
    assert (told.certificate.kind, told.certificate.index_recall) == ("Flat", 1)
    assert len(client.search("red", k=40, deduplicate_similarity=0.001)) < 40
    assert client.search("red", min_score=2) == []
    with pytest.raises(ServiceError, match="oversampling"):
        client.search("red", oversampling=17)
    with pytest.raises(TypeError, match="unexpected keyword"):
        client.search("red", page_size=3)


def test_pages_follow_each_other_to_the_last_hit(client):
    pages = list(client.search_pages("red", k=15))
    assert [len(page) for page in pages] == [15, 15, 10]
    assert ids(hit for page in pages for hit in page) == ids(client.search("red", k=40))
    assert ids(client.search("red", k=25, page_token=pages[0].next_page_token)) == ids([*pages[1], *pages[2]])


def test_errors_carry_everything_that_the_server_told(server, client):
    with pytest.raises(ServiceError) as refusal:
        client.search(image_id="nobody")
    assert refusal.value.resource.name == "nobody"
    assert (refusal.value.code, refusal.value.reason) == ("NOT_FOUND", "IMAGE_NOT_FOUND")
    gone = PageToken.decode(client.search("red").next_page_token)
    with pytest.raises(ServiceError) as refusal:
        client.search("red", page_token=PageToken(gone.request, "gone", 0, gone.first).encode())
    assert refusal.value.reason == "PAGE_TOKEN_EXPIRED"
    assert [one.subject for one in refusal.value.preconditions] == ["page_token"]
    with pytest.raises(ServiceError) as refusal:
        client.search("break")
    assert refusal.value.code == "INTERNAL"
    assert refusal.value.request_id in str(refusal.value)
    assert refusal.value.request_id
    with held(server[0]), pytest.raises(ServiceError) as refusal:
        client.search(f"wait for {id(client)}", timeout=1)
    assert refusal.value.code == "DEADLINE_EXCEEDED"


def test_batches_of_any_size_are_answered_in_order(client):
    wanted = ["red", "green", "blue"]
    searches = [Search(wanted[place % 3], k=4) for place in range(130)]
    searches[7], searches[100] = "", Search(image_id="nobody")
    answers = client.batch_search(searches)
    assert [place for place, answer in enumerate(answers) if isinstance(answer, ServiceError)] == [7, 100]
    assert (answers[7].code, answers[7].field_violations[0].field) == ("INVALID_ARGUMENT", "query.text")
    assert answers[100].resource.name == "nobody"
    for place in set(range(130)) - {7, 100}:
        assert colours(answers[place]) == {wanted[place % 3]}
    assert client.batch_search([]) == []


def test_a_stream_answers_every_search_and_takes_few_before_it_has(client):
    taken = 0

    def searches():
        nonlocal taken
        for place in range(200):
            taken += 1
            yield "" if place == 50 else f"red {place}"

    answered, ahead = {}, []
    for place, answer in client.stream_search(searches()):
        ahead.append(taken - len(answered))
        answered[place] = answer
    assert sorted(answered) == list(range(200))
    assert [place for place, answer in answered.items() if isinstance(answer, ServiceError)] == [50]
    assert max(ahead) <= calls.IN_FLIGHT + 1


def test_what_an_iterator_of_searches_raises_comes_after_the_answers(client):
    def searches():
        yield "red"
        yield "blue"
        raise OSError("unplugged")

    answers = []
    with pytest.raises(OSError, match="unplugged"):
        answers.extend(place for place, _ in client.stream_search(searches()))
    assert sorted(answers) == [0, 1]
    assert list(client.stream_search([])) == []


def test_a_stream_can_be_left(client):
    def endless():
        while True:
            yield "red"

    stream = client.stream_search(endless())
    next(stream)
    stream.close()
    assert colours(client.search("blue", k=3)) == {"blue"}


def test_embeddings_of_more_than_one_call_takes(client):
    texts = [f"red {number}" for number in range(300)]
    np.testing.assert_allclose(client.embed_texts(texts), RUNTIME.embed_texts(texts), atol=1e-6)
    images = [picture("green", seed=number) for number in range(70)]
    np.testing.assert_allclose(client.embed_images(images), RUNTIME.embed_images(images), atol=1e-6)
    with pytest.raises(ServiceError, match="texts"):
        client.embed_texts([*texts, ""])


def test_what_is_asked_together_is_cut_by_number_and_bytes(monkeypatch):
    monkeypatch.setattr(calls, "MOST_BYTES", 6)
    assert list(calls.chunks([b"1234", b"12", b"1", b"123456", b"1234567", b"1"], 64, len)) == [
        [b"1234", b"12"], [b"1"], [b"123456"], [b"1234567"], [b"1"],
    ]  # fmt: skip
    assert [len(some) for some in calls.chunks(range(600), 256)] == [256, 256, 88]
    assert list(calls.chunks([], 5)) == []
    monkeypatch.setattr(calls, "MOST_BYTES", 2_000)
    batches = searching.batch_search([Search(image=bytes(900))] * 5)
    assert [len(call.request.requests) for call in batches] == [2, 2, 1]


def test_both_clients_have_the_same_methods():
    def methods(kind):
        return {name: method for name, method in vars(kind).items() if not name.startswith("_")}

    sync, asynchronous = methods(SearchClient), methods(AsyncSearchClient)
    assert sync.keys() == asynchronous.keys()
    for name, method in sync.items():
        parameters, others = (inspect.signature(one).parameters for one in (method, asynchronous[name]))
        assert [(one.name, one.kind, one.default if name != "wait" else None) for one in parameters.values()] == [
            (one.name, one.kind, one.default if name != "wait" else None) for one in others.values()
        ]


def test_keywords_are_those_of_what_they_describe():
    assert set(SearchKeywords.__annotations__) == set(Search.__dataclass_fields__) - {"text"}
    assert set(ConnectionKeywords.__annotations__) == set(Connection.__dataclass_fields__) - {"address"}


def test_what_is_repeated_is_named_as_in_the_interface():
    files = (search_service_pb2, image_service_pb2, index_service_pb2, operation_service_pb2)
    services = {name: one for file in files for name, one in file.DESCRIPTOR.services_by_name.items()}
    for service, methods in _REPEATABLE.items():
        assert set(methods) <= set(services[service].methods_by_name) if service in services else not methods
