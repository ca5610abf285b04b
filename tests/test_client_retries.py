"""Clients repeat what may come twice, when the server says so; TLS, certificates and tokens go as they are told."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import time

import grpc
import pytest
from either_client import BlockingClient
from fake_service import answering
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from data.errors import UserError
from protos.imageretrieval.v1 import (
    image_service_pb2,
    image_service_pb2_grpc,
    index_service_pb2,
    index_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
)
from serving.async_client import AsyncSearchClient
from serving.client import SearchClient, ServiceError, Upload
from serving.client_connection import Connection, from_environment
from serving.error_details import ResponseTooLarge, status_of
from serving.grpc_methods import _told
from serving.image_changes import StoreFailed
from serving.overload import Overloaded

UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(params=[SearchClient, BlockingClient], ids=["sync", "async"])
def client_class(request):
    return request.param


class Unwell:
    """Answers each call by the next of `answers`: a status code, its code with the trailers, or None for success."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests, self.moments, self.metadata = [], [], []

    async def answer(self, request, context, response):
        self.requests.append(request)
        self.moments.append(time.monotonic())
        self.metadata.append(dict(context.invocation_metadata()))
        answer = self.answers.pop(0) if self.answers else None
        if answer is None:
            return response
        code, trailers = answer if isinstance(answer, tuple) else (answer, ())
        return await context.abort(code, "unwell", trailers)

    async def Search(self, request, context):
        return await self.answer(request, context, search_service_pb2.SearchResponse(model_revision="well"))

    async def UpsertImage(self, request, context):
        return await self.answer(request, context, image_service_pb2.UpsertImageResponse(version=1))

    async def PublishIndex(self, request, context):
        return await self.answer(request, context, index_service_pb2.PublishIndexResponse())

    def serve(self, credentials=None):
        return answering(
            [
                (
                    search_service_pb2_grpc.add_SearchServiceServicer_to_server,
                    _of(self, search_service_pb2_grpc.SearchServiceServicer),
                ),
                (
                    image_service_pb2_grpc.add_ImageServiceServicer_to_server,
                    _of(self, image_service_pb2_grpc.ImageServiceServicer),
                ),
                (
                    index_service_pb2_grpc.add_IndexServiceServicer_to_server,
                    _of(self, index_service_pb2_grpc.IndexServiceServicer),
                ),
            ],
            credentials,
        )


def _of(unwell, kind):
    """A servicer of `kind` with those methods that `unwell` has."""
    methods = {name: getattr(unwell, name) for name in vars(kind) if not name.startswith("_") and hasattr(unwell, name)}
    return type("Servicer", (kind,), {name: staticmethod(method) for name, method in methods.items()})()


@pytest.mark.parametrize("code", [UNAVAILABLE, EXHAUSTED])
def test_a_search_is_repeated_until_the_server_is_well(client_class, code):
    unwell = Unwell(code, code, code)
    with unwell.serve() as address, client_class(address, timeout=30) as client:
        assert client.search("red").model_revision == "well"
    assert len(unwell.requests) == 4


def test_calls_are_no_longer_repeated_while_most_fail(client_class):
    """By the budget of the service config: ten tokens, one less a failure, and no repetition from half of them on."""
    unwell = Unwell(*[UNAVAILABLE] * 50)
    with unwell.serve() as address, client_class(address, timeout=30) as client:
        tries = []
        for _ in range(4):
            before = len(unwell.requests)
            with pytest.raises(ServiceError, match="unwell"):
                client.search("red")
            tries.append(len(unwell.requests) - before)
    assert tries == [4, 1, 1, 1]


def test_a_call_is_given_up_after_four_tries_with_the_servers_reason(client_class):
    unwell = Unwell(*[UNAVAILABLE] * 10)
    with (
        unwell.serve() as address,
        client_class(address, timeout=30) as client,
        pytest.raises(ServiceError, match="unwell") as refusal,
    ):
        client.search("red")
    assert refusal.value.code == "UNAVAILABLE"
    assert len(unwell.requests) == 4


def test_an_upload_is_repeated_under_its_one_request_id_whatever_its_size(client_class):
    unwell = Unwell(UNAVAILABLE)
    with unwell.serve() as address, client_class(address, timeout=30) as client:
        assert client.upsert_image(Upload("a", b"x" * 3_000_000)).version == 1
    first, second = unwell.requests
    assert first == second
    assert first.request_id


def test_several_addresses_are_asked_in_turn(client_class):
    one, other = Unwell(), Unwell()
    with one.serve() as first, other.serve() as second, client_class(f"ipv4:{first},{second}", timeout=30) as client:
        for _ in range(2_000):
            client.search("red")
            if one.requests and other.requests:
                break
    assert one.requests
    assert other.requests


def test_what_would_have_an_effect_twice_is_not_repeated(client_class):
    unwell = Unwell(UNAVAILABLE)
    with (
        unwell.serve() as address,
        client_class(address, timeout=30) as client,
        pytest.raises(ServiceError, match="unwell"),
    ):
        client.publish()
    assert len(unwell.requests) == 1


def test_a_refusal_for_good_is_not_repeated(client_class):
    unwell = Unwell(grpc.StatusCode.INVALID_ARGUMENT)
    with unwell.serve() as address, client_class(address, timeout=30) as client, pytest.raises(ServiceError) as refusal:
        client.search("red")
    assert (refusal.value.code, refusal.value.reason) == ("INVALID_ARGUMENT", "")
    assert len(unwell.requests) == 1


@pytest.mark.parametrize("error", [StoreFailed(OSError(errno.ENOSPC, "full")), ResponseTooLarge()])
def test_what_a_second_try_cannot_mend_is_not_repeated(client_class, error):
    status = status_of(error, "")
    code, _, trailers = _told(status, None)
    unwell = Unwell(*[(code, trailers)] * 4)
    with unwell.serve() as address, client_class(address, timeout=30) as client, pytest.raises(ServiceError) as refusal:
        client.upsert_image(Upload("a", b"x"))
    assert refusal.value.reason in ("DISK_FULL", "RESPONSE_TOO_LARGE")
    assert len(unwell.requests) == 1


@pytest.mark.parametrize("then", [None, "RESOURCE_EXHAUSTED"])
def test_an_async_stream_that_broke_is_not_told_as_a_defect(monkeypatch, then):
    """grpc.aio tells INTERNAL of a stream that ends while it writes, whatever the server said."""

    class Ended:
        def __init__(self, error):
            self.error = error

        async def __aiter__(self):
            if self.error is not None:
                raise self.error
            return
            yield

        def cancel(self):
            pass

    def error(code, details):
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)

    told = [error(grpc.StatusCode.INTERNAL, "Internal error from Core"), then and error(EXHAUSTED, "later")]

    async def scene():
        async with AsyncSearchClient("127.0.0.1:1") as client:
            monkeypatch.setattr(client, "_method", lambda name: lambda *_, **__: Ended(told.pop(0)))
            return [answer async for answer in client.stream_search(["red"])]

    with pytest.raises(ServiceError) as refusal:
        asyncio.run(scene())
    assert refusal.value.code == (then or "UNAVAILABLE")
    assert told == []


def test_the_server_tells_when_to_come_again(client_class):
    status = status_of(Overloaded("much", 0.6), "")
    unwell = Unwell((EXHAUSTED, _told(status, None)[2]))
    with unwell.serve() as address, client_class(address, timeout=30) as client:
        assert client.search("red").model_revision == "well"
    first, second = unwell.moments
    assert second - first >= 0.6  # the client's own pause would be shorter


@pytest.mark.parametrize(("remaining", "told"), [(None, "600"), (0.7, "600"), (0.5, "-1")])
def test_who_has_no_time_for_another_try_is_told_so(remaining, told):
    trailers = dict(_told(status_of(Overloaded("much", 0.6), ""), remaining)[2])
    assert trailers["grpc-retry-pushback-ms"] == told


def test_what_does_not_pass_by_itself_tells_no_time():
    assert "grpc-retry-pushback-ms" not in dict(_told(status_of(TimeoutError(), ""), 0.5)[2])


def test_repeating_stops_when_most_calls_fail(client_class):
    unwell = Unwell(*[UNAVAILABLE] * 100)
    with unwell.serve() as address, client_class(address, timeout=30) as client:
        for _ in range(6):
            with pytest.raises(ServiceError):
                client.search("red")
    assert len(unwell.requests) < 6 * 2


def test_a_refusal_brings_its_delay_and_unknown_details_do_no_harm(client_class):
    status = status_pb2.Status(code=3, message="no")
    for detail in (error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo(retry_delay={"seconds": 2})):
        status.details.add().Pack(detail)
    status.details.append(Any(type_url="type.googleapis.com/other.Thing", value=b"\xff"))
    status.details.append(Any(type_url="type.googleapis.com/google.rpc.BadRequest", value=b"\xff"))
    told = rpc_status.to_status(status)
    unwell = Unwell((told.code, told.trailing_metadata), (told.code, (("grpc-status-details-bin", b"\xff"),)))
    with unwell.serve() as address, client_class(address, timeout=30) as client:
        with pytest.raises(ServiceError) as refusal:
            client.search("red")
        assert refusal.value.retry_delay == 2
        with pytest.raises(ServiceError, match="unwell"):
            client.search("red")


def test_the_token_goes_with_each_call_on_this_machine(client_class, monkeypatch):
    unwell = Unwell()
    with unwell.serve() as address:
        monkeypatch.setenv("SEARCH_CLIENT_ADDRESS", address)
        monkeypatch.setenv("SEARCH_CLIENT_TOKEN", "from-environment")
        with client_class(token="given") as client:
            client.search("red")
        with client_class() as client:
            client.search("red")
    assert [one["authorization"] for one in unwell.metadata] == ["Bearer given", "Bearer from-environment"]
    assert "given" not in repr(Connection(token="given"))


@pytest.mark.parametrize(
    "address",
    [
        *("192.0.2.1:50051", "search.example.org:50051", "dns:///localhost.example.org:1"),
        "ipv4:127.0.0.1:1,192.0.2.1:2",
    ],
)
def test_a_token_is_not_sent_to_another_machine_in_the_clear(address):
    with pytest.raises(UserError, match="TLS on the way to another machine"):
        SearchClient(address, token="secret")
    assert Connection(address, token="secret", tls=True).encrypted


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:50051", "[::1]:50051", "localhost:50051", "unix:/run/search.sock", "ipv4:127.0.0.1:1,127.0.0.1:2"],
)
def test_this_machine_is_known_by_its_names(address):
    assert not Connection(address, token="secret").encrypted


def test_settings_come_from_arguments_then_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SEARCH_CLIENT_ROOTS", str(tmp_path / "roots.pem"))
    monkeypatch.setenv("SEARCH_CLIENT_TLS", "0")
    assert from_environment(address="host:1").roots == tmp_path / "roots.pem"
    assert from_environment(address="host:1", tls=True).tls
    monkeypatch.setenv("SEARCH_CLIENT_TLS", "yes")
    with pytest.raises(UserError, match="SEARCH_CLIENT_TLS to be 1 or 0"):
        from_environment()
    with pytest.raises(UserError, match="certificate with its key"):
        Connection(certificate=tmp_path / "client.pem")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and a certificate of it for localhost."""
    directory = tmp_path_factory.mktemp("certificates")
    for command in (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=authority",
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out own.csr -subj /CN=own",
        "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out own.pem -extfile names.txt",
    ):
        (directory / "names.txt").write_text("subjectAltName=DNS:localhost,DNS:search.example.org")
        subprocess.run(["openssl", *command.split()], cwd=directory, check=True, capture_output=True)
    return directory


def test_tls_with_the_authority_a_client_certificate_and_a_token(client_class, certificates):
    roots, own, key = (certificates / name for name in ("ca.pem", "own.pem", "key.pem"))
    pairs = [(key.read_bytes(), own.read_bytes())]
    credentials = grpc.ssl_server_credentials(pairs, roots.read_bytes(), require_client_auth=True)
    unwell = Unwell()
    with unwell.serve(credentials) as address:
        named = address.replace("127.0.0.1", "localhost")
        with client_class(named, roots=roots, certificate=own, key=key, token="secret") as client:
            assert client.search("red").model_revision == "well"
        assert unwell.metadata[0]["authorization"] == "Bearer secret"
        with client_class(address, roots=roots, certificate=own, key=key, server_name="search.example.org") as client:
            assert client.search("red").model_revision == "well"
        for refused in ({"roots": roots}, {"certificate": own, "key": key}):  # no certificate; an unknown authority
            with client_class(named, **refused) as client, pytest.raises(ServiceError) as refusal:
                client.search("red", timeout=10)
            assert refusal.value.code == "UNAVAILABLE"
        assert len(unwell.requests) == 2
