"""A real server with tokens, an address for operators and limits: who may call what, where and how much."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import threading
import time
from collections import Counter

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from server_process import COMMAND, ENVIRONMENT, running

from protos.imageretrieval.v1 import query_pb2, search_service_pb2, search_service_pb2_grpc
from serving.call_guard import READ_EVERY
from serving.grpc_methods import peer_address
from serving.method_policies import POLICIES, Scope
from serving.token_file import create, revoke

SEARCH = search_service_pb2.SearchRequest(query=query_pb2.Query(text="red"), page_size=1)
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """The file, and a token for each scope, and for all but it."""
    file = tmp_path_factory.mktemp("tokens") / "tokens.json"
    made = {}
    for scope in Scope:
        made[scope] = create(file, f"only-{scope}", frozenset({scope}), 0.0)
        made[f"all but {scope}"] = create(file, f"all-but-{scope}", frozenset(Scope) - {scope}, 0.0)
    return file, made


def until_serving(channel):
    for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30):
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            break


@contextlib.contextmanager
def serving(index, *flags):
    """The main and the admin channel of a server that is ready."""
    with running(index, "--admin-address", "127.0.0.1:0", *flags) as (process, address):
        told = process.stdout.readline()
        assert told.startswith("operators on 127.0.0.1:")
        with grpc.insecure_channel(address) as main, grpc.insecure_channel(told.split()[-1]) as admin:
            for channel in (main, admin):
                until_serving(channel)
            yield main, admin


@pytest.fixture(scope="module")
def channels(index, tokens):
    with serving(index, "--access-tokens", str(tokens[0])) as both:
        yield both


@pytest.fixture
def main(channels):
    return channels[0]


@pytest.fixture
def admin(channels):
    return channels[1]


def bearing(token):
    return None if token is None else (("authorization", f"Bearer {token}"),)


def outcome(channel, name, request=b"", token=None, path="imageretrieval.v1."):
    """Code and details by type name of a call of "Service.Method" with bytes."""
    service, _, method = name.partition(".")
    ask = channel.stream_stream(f"/{path}{service}/{method}")
    call = ask(iter([request]), metadata=bearing(token), timeout=30)
    with contextlib.suppress(grpc.RpcError):
        list(call)
    status = rpc_status.from_call(call)
    details = {}
    for packed in status.details if status else ():
        detail = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        packed.Unpack(detail)
        details[type(detail).__name__] = MessageToDict(detail, preserving_proto_field_name=True)
    return call.code(), details


@pytest.mark.parametrize("name", POLICIES)
def test_every_rpc_asks_for_its_scope(admin, tokens, name):
    _, made = tokens
    for token in (None, "ist_" + "x" * 43, made[POLICIES[name].scope][:-1]):
        code, details = outcome(admin, name, token=token)
        assert (code, details["ErrorInfo"]["reason"]) == (CODE.UNAUTHENTICATED, "UNAUTHENTICATED")
    code, details = outcome(admin, name, token=made[f"all but {POLICIES[name].scope}"])
    assert (code, details["ErrorInfo"]["reason"]) == (CODE.PERMISSION_DENIED, "PERMISSION_DENIED")
    code, _ = outcome(admin, name, request=b"\xff", token=made[POLICIES[name].scope])  # refused for what it asks
    assert code in (CODE.INVALID_ARGUMENT, CODE.UNIMPLEMENTED)


@pytest.mark.parametrize("name", [name for name in POLICIES if POLICIES[name].admin])
def test_what_operators_do_is_not_to_be_had_at_the_main_address(main, tokens, name):
    code, details = outcome(main, name, token=tokens[1][Scope.ADMIN])
    assert (code, details["ErrorInfo"]["reason"]) == (CODE.UNIMPLEMENTED, "METHOD_NOT_FOUND")


def test_stored_vectors_need_a_scope_of_their_own_also_within_batches_and_streams(main, tokens):
    _, made = tokens
    request = search_service_pb2.SearchRequest()
    request.CopyFrom(SEARCH)
    request.read_mask.paths.append("vector")
    code, details = outcome(main, "SearchService.Search", request.SerializeToString(), made[Scope.SEARCH])
    assert (code, details["ErrorInfo"]["reason"]) == (CODE.PERMISSION_DENIED, "PERMISSION_DENIED")
    stub = search_service_pb2_grpc.SearchServiceStub(main)
    allowed = bearing(made["all but write"])
    (hit,) = stub.Search(request, metadata=allowed).hits
    assert len(hit.vector.values) == 8
    searching = bearing(made[Scope.SEARCH])
    batch = search_service_pb2.BatchSearchRequest(requests=[SEARCH, request])
    found, refused = stub.BatchSearch(batch, metadata=searching).results
    assert (len(found.response.hits), refused.error.code) == (1, CODE.PERMISSION_DENIED.value[0])
    stream = [search_service_pb2.StreamSearchRequest(request=one) for one in (request, SEARCH)]
    results = [answer.result for answer in stub.StreamSearch(iter(stream), metadata=searching)]
    assert sorted(result.error.code for result in results) == [0, CODE.PERMISSION_DENIED.value[0]]


def test_a_token_that_is_taken_back_ends_its_streams_searches(index, tmp_path):
    file = tmp_path / "tokens.json"
    token = create(file, "website", frozenset({Scope.SEARCH}), 0.0)
    asked = threading.Semaphore(0)
    wanted = itertools.count()

    def requests():
        for tag in wanted:
            asked.acquire()
            yield search_service_pb2.StreamSearchRequest(tag=tag, request=SEARCH)

    with serving(index, "--access-tokens", str(file)) as (main, _):
        stub = search_service_pb2_grpc.SearchServiceStub(main)
        stream = stub.StreamSearch(requests(), metadata=bearing(token), timeout=30)
        asked.release()
        assert next(stream).result.response.hits
        revoke(file, "website")
        while True:  # until the server has looked at the file
            asked.release()
            result = next(stream).result
            if not result.response.hits:
                break
        assert result.error.code == CODE.UNAUTHENTICATED.value[0]
        stream.cancel()


def test_reflection_is_where_operators_are_and_health_is_everywhere(main, admin):
    with pytest.raises(grpc.RpcError) as refusal:
        ProtoReflectionDescriptorDatabase(main).get_services()
    assert refusal.value.code() is CODE.UNIMPLEMENTED
    assert "imageretrieval.v1.SearchService" in ProtoReflectionDescriptorDatabase(admin).get_services()
    for channel in (main, admin):
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_metadata_beyond_the_limit_is_refused(main, tokens):
    stub = search_service_pb2_grpc.SearchServiceStub(main)
    with pytest.raises(grpc.RpcError) as refusal:
        stub.Search(SEARCH, metadata=(*bearing(tokens[1][Scope.SEARCH]), ("x", "y" * 100_000)), timeout=10)
    assert refusal.value.code() is CODE.RESOURCE_EXHAUSTED


def test_a_caller_that_asks_too_often_is_told_when_to_come_back_and_others_are_not_affected(index, tmp_path):
    file = tmp_path / "tokens.json"
    greedy, modest = (create(file, name, frozenset({Scope.SEARCH}), 0.0) for name in ("greedy", "modest"))
    with serving(index, "--access-tokens", str(file), "--limits-rate", "0.01", "--limits-burst", "3") as (main, _):
        data = SEARCH.SerializeToString()
        codes = [outcome(main, "SearchService.Search", data, greedy) for _ in range(4)]
        assert [code for code, _ in codes] == [CODE.OK, CODE.OK, CODE.OK, CODE.RESOURCE_EXHAUSTED]
        details = codes[-1][1]
        assert details["ErrorInfo"]["reason"] == "RATE_LIMITED"
        assert 50 < float(details["RetryInfo"]["retry_delay"].removesuffix("s")) <= 100
        assert outcome(main, "SearchService.Search", data, modest)[0] is CODE.OK
        batch = search_service_pb2.BatchSearchRequest(requests=[SEARCH] * 3)
        code, details = outcome(main, "SearchService.BatchSearch", batch.SerializeToString(), modest)
        assert (code, details["ErrorInfo"]["reason"]) == (CODE.RESOURCE_EXHAUSTED, "RATE_LIMITED")


def test_a_caller_with_too_many_calls_under_way_is_refused_before_its_request_is_read(index):
    with serving(index, "--limits-concurrent-calls", "2") as (main, _):
        stub = search_service_pb2_grpc.SearchServiceStub(main)
        never = threading.Event()

        def silence():
            never.wait()
            yield from ()

        open_streams = [stub.StreamSearch(silence()) for _ in range(2)]
        while True:  # until both have come
            code, details = outcome(main, "SearchService.Search", SEARCH.SerializeToString())
            if code is not CODE.OK:
                break
        assert (code, details["ErrorInfo"]["reason"]) == (CODE.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert "RetryInfo" in details
        waiting = main.stream_unary("/imageretrieval.v1.SearchService/Search")
        with pytest.raises(grpc.RpcError) as refusal:
            waiting(silence(), timeout=30)  # a request that never comes
        assert refusal.value.code() is CODE.RESOURCE_EXHAUSTED
        for stream in open_streams:
            stream.cancel()
        while outcome(main, "SearchService.Search", SEARCH.SerializeToString())[0] is not CODE.OK:
            pass
        never.set()


def test_while_too_much_waits_calls_are_refused_before_anything_of_them_is_looked_at(index, tokens):
    """Neither their token nor their request; but a few are read all the same, for their answers may be kept."""
    file, made = tokens
    slow = search_service_pb2.SearchRequest(query=query_pb2.Query(text="wait"))
    with (
        running(index, "narrow", "--access-tokens", str(file)) as (process, address),
        grpc.insecure_channel(address) as channel,
    ):
        until_serving(channel)
        ask = search_service_pb2_grpc.SearchServiceStub(channel).Search
        first = ask.future(slow, metadata=bearing(made[Scope.SEARCH]), timeout=30)
        assert process.stdout.readline() == "waiting\n"
        began = time.monotonic()
        told = [outcome(channel, "SearchService.Search", b"\xff nothing that can be read") for _ in range(100)]
        most = 1 + (time.monotonic() - began) / READ_EVERY
        reasons = Counter((code, details["ErrorInfo"]["reason"]) for code, details in told)
        overloaded, read = (CODE.RESOURCE_EXHAUSTED, "OVERLOADED"), (CODE.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert reasons.keys() == {overloaded, read}
        assert reasons[read] <= most
        assert all("RetryInfo" in details for code, details in told if code is CODE.RESOURCE_EXHAUSTED)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert first.result().hits


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--access-tokens", "/nowhere/tokens.json"), "make it by python -m serving.tokens create"),
        (("--tls-certificate", "/nowhere/a.pem", "--tls-key", "/nowhere/a.key"), "expected readable files of cert"),
    ],
)
def test_files_that_are_not_there_end_the_start_with_the_reason(index, flags, told):
    ended = subprocess.run(
        [*COMMAND, str(index), "127.0.0.1:0", *flags], env=ENVIRONMENT, text=True, capture_output=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert told in ended.stderr.replace("\n", " ")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:50051", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:50051", "2001:db8::1"),
        ("ipv6:[::1]:50051", "::1"),
        ("unix:/run/search.sock", "unix:/run/search.sock"),
    ],
)
def test_the_address_of_a_peer_has_no_port(peer, address):
    assert peer_address(peer) == address
