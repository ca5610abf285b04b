"""A real server on a real port, asked by the real client: answers, refusals with their details, health, deadlines."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
from datetime import UTC, datetime, timedelta

import grpc
import numpy as np
import pytest
from fakes import ColourRuntime, picture
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from server_process import COMMAND, ENVIRONMENT, held, running

from protos.imageretrieval.v1 import (
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    query_pb2,
    search_service_pb2,
    search_service_pb2_grpc,
)
from serving.client import SearchClient, ServiceError
from serving.filters import Compare
from serving.grpc_service import SERVICES
from serving.snapshot import current_name

RUNTIME = ColourRuntime()


@pytest.fixture(scope="module")
def started(index):
    with running(index) as (process, address):
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        yield process, address


@pytest.fixture
def server(started):
    return started[1]


@pytest.fixture
def client(server):
    with SearchClient(server) as client:
        yield client


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server) as channel:
        yield channel


def refused(call, request, **options):
    """The status of a refused call and its details by type name."""
    with pytest.raises(grpc.RpcError) as refusal:
        call(request, **options)
    status = rpc_status.from_call(refusal.value)
    details = {}
    for packed in status.details:
        detail = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        packed.Unpack(detail)
        details[type(detail).__name__] = MessageToDict(detail, preserving_proto_field_name=True)
    return refusal.value.code(), details


def test_every_sort_of_query_is_answered(client, index):
    results = client.search("a red one", k=5)
    assert [hit.attributes["colour"] for hit in results] == ["red"] * 5
    assert results.model_revision == RUNTIME.fingerprint
    assert results.index_revision == f"{current_name(index)}-1"
    assert {hit.attributes["colour"] for hit in client.search(image=picture("blue", seed=77), k=5)} == {"blue"}
    assert {hit.attributes["colour"] for hit in client.search(image_id="green-0001", k=5)} == {"green"}
    vector = RUNTIME.embed_texts(["a red one"])[0].tolist()
    assert [hit.image_id for hit in client.search(vector=vector, k=5)] == [hit.image_id for hit in results]


def test_hits_carry_what_is_known_about_the_image(client):
    hit = client.search("red", k=1)[0]
    number = hit.attributes["number"]
    assert hit.image_id == f"red-{number:04}"
    assert hit.captions == ("a red picture", f"number {number}")
    assert hit.attributes == {
        "colour": "red", "number": number, "even": number % 2 == 0, "share": 0.5, "tags": ["red", "drawn"],
        "taken": datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=number),
    }  # fmt: skip
    assert type(hit.attributes["even"]) is bool
    assert (hit.rank, -1 <= hit.score <= 1) == (1, True)


def test_ten_hits_are_the_default_and_min_score_cuts(client, channel):
    request = search_service_pb2.SearchRequest(query=query_pb2.Query(text="red"))
    response = search_service_pb2_grpc.SearchServiceStub(channel).Search(request)
    assert [hit.rank for hit in response.hits] == list(range(1, 11))
    assert client.search("red", k=40, min_score=2.0) == []
    assert len(client.search("red", k=1_000)) == 40


def test_a_filter_is_text_or_an_object(client):
    where = Compare("colour", "=", "blue")
    assert [hit.attributes["colour"] for hit in client.search("red", k=40, filter=where)] == ["blue"] * 5
    assert client.search("red", k=3, filter='colour = "blue"') == client.search("red", k=3, filter=where)


def test_embeddings_are_the_models(client):
    np.testing.assert_allclose(client.embed_texts(["red", "blue"]), RUNTIME.embed_texts(["red", "blue"]), atol=1e-6)
    images = [picture("red"), picture("green", format="JPEG")]
    np.testing.assert_allclose(client.embed_images(images), RUNTIME.embed_images(images), atol=1e-6)


def test_status_tells_what_is_served(client, index):
    status = client.status()
    assert (status.image_count, status.dimension, status.kind) == (40, 8, "Flat")
    assert (status.model_name, status.model_revision) == ("colours", RUNTIME.fingerprint)
    assert (status.source, status.snapshot) == ("colours:40", current_name(index))
    assert status.create_time.tzinfo is not None


QUERY = query_pb2.Query
SEARCH = search_service_pb2.SearchRequest


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (SEARCH(), "query"),
        (SEARCH(query=QUERY(text="")), "query.text"),
        (SEARCH(query=QUERY(text="x" * 10_001)), "query.text"),
        (SEARCH(query=QUERY(text="red"), page_size=-1), "page_size"),
        (SEARCH(query=QUERY(text="red"), page_size=1_001), "page_size"),
        (SEARCH(query=QUERY(text="red"), min_score=float("nan")), "min_score"),
        (SEARCH(query=QUERY(text="red"), filter="colour = red"), "filter"),
        (SEARCH(query=QUERY(image_id="")), "query.image_id"),
        (SEARCH(query=QUERY(vector=query_pb2.Vector())), "query.vector"),
        (SEARCH(query=QUERY(vector=query_pb2.Vector(values=[float("nan")] * 8))), "query.vector"),
        (SEARCH(query=QUERY(vector=query_pb2.Vector(values=[0] * 8))), "query.vector"),
    ],
    ids=str,
)
def test_a_bad_field_is_named(channel, request_, field):
    code, details = refused(search_service_pb2_grpc.SearchServiceStub(channel).Search, request_)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details["ErrorInfo"] == {"reason": "INVALID_QUERY", "domain": "imageretrieval"}
    (violation,) = details["BadRequest"]["field_violations"]
    assert violation["field"] == field
    assert violation["description"].startswith("expected ")


@pytest.mark.parametrize(
    ("data", "reason"), [(b"text", "NOT_AN_IMAGE"), (b"", "NOT_AN_IMAGE"), (picture("red")[:150], "DAMAGED")]
)
def test_a_bad_image_is_refused_with_its_reason(channel, data, reason):
    request = SEARCH(query=QUERY(image=data))
    code, details = refused(search_service_pb2_grpc.SearchServiceStub(channel).Search, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details["ErrorInfo"]["reason"] == "INVALID_IMAGE"
    (violation,) = details["BadRequest"]["field_violations"]
    assert (violation["field"], violation["reason"]) == ("query.image", reason)


def test_the_bad_one_of_several_is_named(channel):
    stub = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)
    _, details = refused(stub.EmbedTexts, embedding_service_pb2.EmbedTextsRequest(texts=["red", " "]))
    assert details["BadRequest"]["field_violations"][0]["field"] == "texts[1]"
    _, details = refused(stub.EmbedImages, embedding_service_pb2.EmbedImagesRequest(images=[picture("red"), b"x"]))
    assert details["BadRequest"]["field_violations"][0]["field"] == "images[1]"


def test_an_unknown_image_is_not_found(channel):
    request = SEARCH(query=QUERY(image_id="nobody"))
    code, details = refused(search_service_pb2_grpc.SearchServiceStub(channel).Search, request)
    assert code is grpc.StatusCode.NOT_FOUND
    assert details["ErrorInfo"]["reason"] == "IMAGE_NOT_FOUND"
    assert details["ResourceInfo"]["resource_name"] == "nobody"


def test_refusals_stay_small_enough_for_trailers(channel):
    request = SEARCH(query=QUERY(image_id="é" * 1_024))
    code, details = refused(search_service_pb2_grpc.SearchServiceStub(channel).Search, request)
    assert code is grpc.StatusCode.NOT_FOUND
    assert details["ResourceInfo"]["resource_name"] == "é" * 1_024


def test_a_defect_is_logged_under_a_request_id_and_nothing_of_it_is_told(index):
    with running(index) as (process, address), grpc.insecure_channel(address) as channel:
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        stub = search_service_pb2_grpc.SearchServiceStub(channel)
        code, details = refused(stub.Search, SEARCH(query=QUERY(text="break")))
        assert code is grpc.StatusCode.INTERNAL
        assert details["ErrorInfo"]["reason"] == "INTERNAL"
        assert "secret" not in str(details)
        assert stub.Search(SEARCH(query=QUERY(text="red"))).hits
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert details["RequestInfo"]["request_id"] in errors
        assert "secret path" in errors


def test_a_large_image_fits_and_a_larger_request_is_refused(client):
    noise = np.random.default_rng(0).bytes(25 * 2**20)
    with pytest.raises(ServiceError) as refusal:
        client.search(image=b"\x89PNG\r\n\x1a\n" + noise)
    assert refusal.value.code == "INVALID_ARGUMENT"
    with pytest.raises(ServiceError) as refusal:
        client.search(image=noise + noise)
    assert refusal.value.code == "RESOURCE_EXHAUSTED"


def test_a_small_message_that_unpacks_to_a_large_one_is_refused(server):
    request = SEARCH(query=QUERY(image=bytes(40 * 2**20)))
    with grpc.insecure_channel(server) as channel, pytest.raises(grpc.RpcError) as refusal:
        search_service_pb2_grpc.SearchServiceStub(channel).Search(request, compression=grpc.Compression.Gzip)
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_deadline_that_cannot_be_kept_is_told(started, server, channel):
    request = SEARCH(query=QUERY(text="wait"))
    with held(started[0]), pytest.raises(grpc.RpcError) as refusal:
        search_service_pb2_grpc.SearchServiceStub(channel).Search(request, timeout=1)
    assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with SearchClient(server) as client:
        assert client.search("red", k=1)


def test_many_clients_at_once_get_their_own_answers(server):
    wrong = []

    def ask(colour):
        with SearchClient(server) as client:
            answers = [{hit.attributes["colour"] for hit in client.search(colour, k=5)} for _ in range(20)]
        wrong.extend(answer for answer in answers if answer != {colour})

    threads = [threading.Thread(target=ask, args=(colour,)) for colour in ("red", "green", "blue", "white") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_reflection_lists_the_services_and_their_messages(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    listed = set(database.get_services())
    assert listed == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    file = database.FindFileContainingSymbol("imageretrieval.v1.SearchService")
    assert file.name == "imageretrieval/v1/search_service.proto"
    assert database.FindFileByName("imageretrieval/v1/query.proto").package == "imageretrieval.v1"


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x04\x0a\x02\xc3\x28"], ids=["tag", "cut", "not UTF-8"])
def test_what_is_no_request_is_the_callers_mistake(channel, data):
    """Python's gRPC would answer INTERNAL."""
    path = "/imageretrieval.v1.SearchService/"
    code, details = refused(channel.unary_unary(f"{path}Search"), data)
    assert (code, details["ErrorInfo"]["reason"]) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    assert "SearchRequest" in details["BadRequest"]["field_violations"][0]["description"]
    stream = channel.stream_stream(f"{path}StreamSearch")
    code, details = refused(lambda data: list(stream(iter([data]))), bytes([0x12, len(data)]) + data)
    assert (code, details["ErrorInfo"]["reason"]) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


@pytest.mark.parametrize("method", ["imageretrieval.v1.SearchService/Nothing", "other.Service/Search", "x"])
def test_an_unknown_method_is_refused_with_details(channel, method):
    code, details = refused(channel.unary_unary(f"/{method}"), b"")
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert details["ErrorInfo"] == {"reason": "METHOD_NOT_FOUND", "domain": "imageretrieval"}


def health_of(channel, service=""):
    response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def test_calls_before_loading_are_unavailable_and_health_says_so(index):
    with running(index, "hold") as (process, address), grpc.insecure_channel(address) as channel:
        assert {health_of(channel, name) for name in ("", *SERVICES)} == {"NOT_SERVING"}
        code, details = refused(
            search_service_pb2_grpc.SearchServiceStub(channel).Search, SEARCH(query=QUERY(text="red"))
        )
        assert code is grpc.StatusCode.UNAVAILABLE
        assert details["ErrorInfo"]["reason"] == "NOT_READY"
        assert details["RetryInfo"]["retry_delay"] == "1s"
        process.stdin.write("\n")
        process.stdin.flush()
        with SearchClient(address) as client:
            client.wait_until_ready(30)
            assert client.search("red")
        assert {health_of(channel, name) for name in ("", *SERVICES)} == {"SERVING"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_drains_and_exits_cleanly(index, number):
    with running(index) as (process, address), grpc.insecure_channel(address) as channel:
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(number)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        assert "experiment" not in errors, "gRPC knows all of `server.POLLING`"
        assert output == ""


def test_a_running_call_is_finished_before_the_server_stops(index):
    with running(index) as (process, address), grpc.insecure_channel(address) as channel:
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        stub = search_service_pb2_grpc.SearchServiceStub(channel)
        call = stub.Search.future(SEARCH(query=QUERY(text="wait")), timeout=30)
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        assert not call.done()
        process.stdin.write("\n")
        process.stdin.flush()
        assert len(call.result(timeout=30).hits) == 10
        assert process.wait(timeout=30) == 0


def test_a_server_that_is_told_to_stop_answers_until_callers_go_elsewhere(index):
    with running(index, "--drain", "60") as (process, address), grpc.insecure_channel(address) as channel:
        with SearchClient(address) as client:
            client.wait_until_ready(30)
            client.search("red")
            process.send_signal(signal.SIGTERM)
            while health_of(channel, "") == "SERVING":
                client.search("red")
            for _ in range(100):
                assert client.search("red")
        assert process.wait(timeout=30) == 0  # well before the end of the time


def test_callers_that_do_not_go_elsewhere_are_waited_for_only_so_long(index):
    with running(index, "--drain", "0.5") as (process, address), SearchClient(address) as client:
        client.wait_until_ready(30)
        process.send_signal(signal.SIGTERM)
        while process.poll() is None:
            with contextlib.suppress(ServiceError):
                client.search("red")
        assert process.returncode == 0


def test_a_call_that_gives_up_while_others_run_costs_no_work(index):
    with running(index) as (process, address), grpc.insecure_channel(address) as channel:
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        stub = search_service_pb2_grpc.SearchServiceStub(channel)
        first = stub.Search.future(SEARCH(query=QUERY(text="wait")), timeout=30)
        assert process.stdout.readline() == "waiting\n"
        code = None
        try:
            stub.Search(SEARCH(query=QUERY(text="break")), timeout=0.2)  # would fail with INTERNAL if it ever ran
        except grpc.RpcError as error:
            code = error.code()
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        process.stdin.write("\n")
        process.stdin.flush()
        assert first.result(timeout=30).hits
        assert stub.Search(SEARCH(query=QUERY(text="red")), timeout=30).hits
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert "secret" not in errors


def test_a_stop_signal_while_loading_ends_at_once(index):
    with running(index, "hold") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_a_bad_index_ends_the_server_with_the_reason(tmp_path):
    with running(tmp_path / "absent") as (process, _):
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 2
        assert "error: expected an index directory" in errors
        assert "Traceback" not in errors


def test_a_taken_port_and_a_bad_address_are_clear_errors(index):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for address, message in [
            (f"127.0.0.1:{taken.getsockname()[1]}", "which cannot be opened"),
            ("nowhere", "expected an address HOST:PORT"),
            ("127.0.0.1:99999", "expected an address HOST:PORT"),
            ("127.0.0.1:", "expected an address HOST:PORT"),
        ]:
            result = subprocess.run(
                [*COMMAND, str(index), address], env=ENVIRONMENT, text=True, capture_output=True, timeout=60
            )
            assert (result.returncode, result.stdout) == (2, "")
            assert message in result.stderr
            assert "Traceback" not in result.stderr


def test_two_servers_do_not_share_a_port(index, server):
    result = subprocess.run([*COMMAND, str(index), server], env=ENVIRONMENT, text=True, capture_output=True, timeout=60)
    assert result.returncode == 2
