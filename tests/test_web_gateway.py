"""The HTTP gateway of a real server: the answers and refusals of gRPC, pictures, headers, limits."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import signal
import socket
import time
import urllib.parse

import grpc
import pytest
from fakes import ColourRuntime, picture
from google.protobuf import json_format
from google.protobuf.json_format import MessageToDict
from PIL import Image
from server_process import running

from data.pairs import ImageFile, ImageTextPair
from protos.imageretrieval.v1 import (
    image_service_pb2,
    index_service_pb2,
    index_service_pb2_grpc,
    query_pb2,
    search_service_pb2,
    search_service_pb2_grpc,
)
from serving.client import SearchClient
from serving.index_job import build_index
from serving.method_policies import Scope
from serving.token_file import create
from serving.web.request_limits import MAX_BODY_BYTES
from serving.web.security_headers import HEADERS

COLOURS = ("red", "green", "blue", "yellow")
HOSTILE = "<script>alert(1)</script>"


class Folder:
    """Pictures in files, as a source."""

    name = "folder:drawn"

    def __init__(self, directory, count=40):
        self.directory, self.count = directory, count
        directory.mkdir(exist_ok=True)

    def __len__(self):
        return self.count

    def __iter__(self):
        for number in range(self.count):
            colour = COLOURS[number % len(COLOURS)]
            path = self.directory / f"{number:03}.png"
            if not path.exists():
                path.write_bytes(picture(colour, seed=number, size=24))
            attributes = {"colour": colour, "number": number, "even": number % 2 == 0, "tags": [colour, "drawn"]}
            yield ImageTextPair(
                f"{colour}/{number:03}?#%.png", ImageFile(path), (f"a {colour} picture",), None, attributes
            )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def server(tmp_path_factory, folder):
    """`(address, HOST:PORT of the page)`."""
    index = tmp_path_factory.mktemp("served") / "index"
    build_index(ColourRuntime(), Folder(folder), index)
    with running(index, "page") as (process, address):
        page = process.stdout.readline().strip().removeprefix("page on http://")
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        yield address, page


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server[0]) as channel:
        yield channel


@pytest.fixture
def ask(server):
    """Sends one HTTP request; gives status, headers and body."""

    def ask(method, path, body=None, **headers):
        with contextlib.closing(http.client.HTTPConnection(server[1], timeout=30)) as connection:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    return ask


def search_path(**parameters):
    return "/v1/search?" + urllib.parse.urlencode(parameters)


def refusal(answer):
    status, headers, body = answer
    assert headers["Content-Type"] == "application/problem+json"
    problem = json.loads(body)
    assert problem["status"] == status
    assert {"type", "title", "detail", "code", "reason"} <= set(problem)
    return status, problem["code"], problem["reason"], problem


def form(parts):
    """A multipart body and its content type; `parts` are (name, file name or None, content)."""
    lines = []
    for name, file, content in parts:
        extra = f'; filename="{file}"' if file else ""
        lines += [b"--xx", f'Content-Disposition: form-data; name="{name}"{extra}'.encode(), b"", content]
    return b"\r\n".join([*lines, b"--xx--", b""]), "multipart/form-data; boundary=xx"


REQUESTS = [
    {"query": {"text": "a red one"}, "pageSize": 7},
    {"query": {"imageId": "green/001?#%.png"}, "pageSize": 3, "readMask": "imageId,score,vector"},
    {"query": {"image": base64.b64encode(picture("blue", seed=99)).decode()}, "filter": "even = true"},
    {"query": {"vector": {"values": [0.1] * ColourRuntime().embedding_dim}}, "minScore": 0.2, "exact": True},
    {
        "query": {"composition": {"parts": [{"query": {"text": "red"}}, {"query": {"text": "blue"}, "weight": -0.5}]}},
        "pageSize": 1_000,
    },
]


@pytest.mark.parametrize("request_json", REQUESTS, ids=lambda request: str(next(iter(request["query"]))))
def test_answers_are_those_of_grpc_to_the_byte(request_json, channel, ask):
    request = json_format.ParseDict(request_json, search_service_pb2.SearchRequest())
    expected = search_service_pb2_grpc.SearchServiceStub(channel).Search(request)
    assert expected.hits
    status, headers, body = ask("POST", "/v1/search", json.dumps(request_json), Content_Type="application/json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json_format.Parse(body, search_service_pb2.SearchResponse()) == expected


def test_parameters_and_pages_mean_what_the_request_means(channel, ask):
    search = search_service_pb2_grpc.SearchServiceStub(channel).Search
    request = search_service_pb2.SearchRequest(
        query=query_pb2.Query(text="blue"), page_size=6, filter='colour != "red"'
    )
    asked = {"q": "blue", "k": 6, "filter": request.filter}
    for _ in range(3):
        expected = search(request)
        body = ask("GET", search_path(**asked))[2]
        assert json_format.Parse(body, search_service_pb2.SearchResponse()) == expected
        request.page_token = asked["page_token"] = expected.next_page_token
    body = ask("GET", search_path(image_id="red/000?#%.png", k=2, read_mask="image_id,rank"))[2]
    assert [list(hit) for hit in json.loads(body)["hits"]][0][:1] == ["imageId"]
    assert json.loads(body)["hits"][0]["captions"] == []


def test_the_status_is_what_get_index_says(channel, ask):
    expected = index_service_pb2_grpc.IndexServiceStub(channel).GetIndex(index_service_pb2.GetIndexRequest())
    body = ask("GET", "/v1/status")[2]
    assert json_format.Parse(body, index_service_pb2.GetIndexResponse()) == expected


def test_a_form_carries_images_in_the_places_of_queries_without_an_input(ask):
    blue = ("image", "b.png", picture("blue", seed=5))
    body, kind = form([blue])
    found = json.loads(ask("POST", "/v1/search", body, Content_Type=kind)[2])
    assert found["hits"][0]["attributes"]["colour"]["stringValue"] == "blue"
    parts = [{"query": {"text": "red"}, "weight": 0.1}, {"query": {}}]
    request = json.dumps({"query": {"composition": {"parts": parts}}, "pageSize": 1}).encode()
    body, kind = form([("request", None, request), blue])
    found = json.loads(ask("POST", "/v1/search", body, Content_Type=kind)[2])
    assert [hit["attributes"]["colour"]["stringValue"] for hit in found["hits"]] == ["blue"]
    for parts in ([], [blue, blue], [("else", None, b"1"), blue], [("request", None, b"{"), blue]):
        body, kind = form(parts)
        assert refusal(ask("POST", "/v1/search", body, Content_Type=kind))[:2] == (400, "INVALID_ARGUMENT")


REFUSALS = [
    ("/v1/search", 400, "INVALID_QUERY", "query"),
    ("/v1/search?q=", 400, "INVALID_QUERY", "query.text"),
    ("/v1/search?q=red&k=1001", 400, "INVALID_QUERY", "page_size"),
    ("/v1/search?q=red&k=many", 400, "INVALID_QUERY", "k"),
    ("/v1/search?q=red&k=99999999999", 400, "INVALID_QUERY", "page_size"),
    ("/v1/search?q=red&min_score=nan", 400, "INVALID_QUERY", "min_score"),
    ("/v1/search?q=red&q=blue", 400, "INVALID_QUERY", "q"),
    ("/v1/search?q=red&image_id=x", 400, "INVALID_QUERY", "query"),
    ("/v1/search?q=red&colour=red", 400, "INVALID_QUERY", "colour"),
    ("/v1/search?q=red&filter=colour", 400, "INVALID_QUERY", "filter"),
    ("/v1/search?q=red&read_mask=secret", 400, "INVALID_QUERY", "read_mask"),
    ("/v1/search?q=red&page_token=x", 400, "INVALID_QUERY", "page_token"),
]


@pytest.mark.parametrize(("path", "status", "reason", "field"), REFUSALS, ids=[path[10:40] for path, *_ in REFUSALS])
def test_a_field_that_breaks_its_limits_is_named(path, status, reason, field, ask):
    problem = refusal(ask("GET", path))
    assert problem[:3] == (status, "INVALID_ARGUMENT", reason)
    assert [violation["field"] for violation in problem[3]["violations"]] == [field]


def test_refusals_are_those_of_grpc(channel, ask):
    status, code, reason, problem = refusal(ask("GET", "/v1/search?image_id=nowhere"))
    assert (status, code, reason, problem["resource"]["resourceName"]) == (
        404,
        "NOT_FOUND",
        "IMAGE_NOT_FOUND",
        "nowhere",
    )
    body = json.dumps({"query": {"image": base64.b64encode(b"no image").decode()}})
    status, _, reason, problem = refusal(ask("POST", "/v1/search", body))
    assert (status, reason, problem["violations"][0]["reason"]) == (400, "INVALID_IMAGE", "NOT_AN_IMAGE")
    status, code, reason, problem = refusal(ask("GET", "/v1/search?q=break"))
    assert (status, code, reason) == (500, "INTERNAL", "INTERNAL")
    assert "secret" not in json.dumps(problem)
    assert problem["requestId"]


NO_REQUESTS = [
    b"",
    b"{",
    b"[]",
    b"\xff",
    b'{"quary": {}}',
    b"[" * 100_000,
    b'{"pageSize": 1e99}',
    b'{"query": {"text": "\\ud800"}}',
    b'{"query": {"image": 5}}',
]


@pytest.mark.parametrize("body", NO_REQUESTS, ids=range(len(NO_REQUESTS)))
def test_a_body_that_is_no_request_is_refused(body, ask):
    assert refusal(ask("POST", "/v1/search", body))[:3] == (400, "INVALID_ARGUMENT", "MALFORMED_REQUEST")


def test_what_only_http_can_get_wrong_has_its_own_status(ask, server):
    assert refusal(ask("GET", "/v1/nothing"))[:3] == (404, "UNIMPLEMENTED", "METHOD_NOT_FOUND")
    assert refusal(ask("DELETE", "/v1/search"))[0] == 405
    assert refusal(ask("POST", "/v1/search", b"x", Content_Type="text/plain"))[0] == 415
    host, port = server[1].split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
        )
        assert b" 413 " in connection.recv(100)
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):  # it may answer before all is sent
            for _ in range(MAX_BODY_BYTES // (1 << 20) + 1):
                connection.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        assert b" 413 " in connection.recv(100)


def test_an_image_is_told_of_as_grpc_would(ask):
    status, _, body = ask("GET", "/v1/images/" + urllib.parse.quote("red/000?#%.png", safe=""))
    told = json_format.Parse(body, image_service_pb2.GetImageResponse()).image
    assert (status, told.image_id, told.captions, told.version) == (200, "red/000?#%.png", ["a red picture"], 1)
    assert MessageToDict(told.attributes["number"]) == {"intValue": "0"}
    assert refusal(ask("GET", "/v1/images/nowhere"))[:3] == (404, "NOT_FOUND", "IMAGE_NOT_FOUND")


def test_pictures_are_shown_small_and_whole_and_kept_by_browsers(ask, folder):
    hit = json.loads(ask("GET", search_path(q="red", k=1, pictures="true"))[2])["hits"][0]
    shown = hit["picture"]
    assert (shown["width"], shown["height"]) == (24, 24)
    number = hit["imageId"].partition("/")[2][:3]
    status, headers, body = ask("GET", shown["content"])
    assert (status, headers["Content-Type"], body) == (200, "image/png", (folder / f"{number}.png").read_bytes())
    status, headers, body = ask("GET", shown["thumbnail"])
    assert (status, headers["Content-Type"], Image.open(io.BytesIO(body)).size) == (200, "image/webp", (24, 24))
    assert "immutable" in headers["Cache-Control"]
    assert ask("GET", shown["thumbnail"], If_None_Match=headers["ETag"])[0] == 304
    without_digest = shown["thumbnail"].partition("?")[0]
    assert "no-cache" in ask("GET", without_digest)[1]["Cache-Control"]
    assert ask("GET", shown["thumbnail"])[2] == body  # from the cache


def test_a_file_that_was_replaced_is_not_shown(ask, folder):
    image_id = "yellow/003?#%.png"
    path = folder / "003.png"
    kept = path.read_bytes()
    path.write_bytes(picture("blue", seed=1))
    place = "/v1/images/" + urllib.parse.quote(image_id, safe="")
    try:
        for what in ("thumbnail", "content"):
            assert refusal(ask("GET", f"{place}/{what}"))[:3] == (404, "NOT_FOUND", "PICTURE_NOT_FOUND")
    finally:
        path.write_bytes(kept)
    assert ask("GET", f"{place}/content")[2] == kept


def test_every_answer_has_the_headers_that_keep_browsers_safe(ask):
    for path in ("/", "/style.css", "/v1/status", "/v1/search?q=red", "/v1/nothing", "/v1/openapi.json"):
        _, headers, _ = ask("GET", path)
        assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_pages_of_others_may_not_call_unless_they_are_named(ask):
    _, headers, _ = ask("GET", "/v1/status", Origin="https://elsewhere.example")
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert (
        ask("OPTIONS", "/v1/search", Origin="https://elsewhere.example", Access_Control_Request_Method="POST")[0] == 405
    )


def test_a_name_that_was_made_to_lead_here_is_not_answered(ask):
    for name in ("evil.example", "evil.example:80", "", "127.0.0.1.evil.example"):
        assert refusal(ask("GET", "/v1/search?q=red", Host=name))[0] == 421
    for name in ("localhost", "LOCALHOST:5", "127.0.0.1:1", "[::1]:8080"):
        assert ask("GET", "/v1/search?q=red", Host=name)[0] == 200


def test_tokens_scopes_and_limits_are_those_of_grpc(tmp_path, folder):
    build_index(ColourRuntime(), Folder(folder), tmp_path / "index")
    tokens = tmp_path / "tokens.json"
    token = create(tokens, "page", frozenset({Scope.SEARCH}), time.time())
    flags = (f"--access-tokens={tokens}", "--limits-rate=0.01", "--limits-burst=50", "--http-hosts=known.example",
             "--http-origins=https://shop.example")  # fmt: skip
    with running(tmp_path / "index", "page", *flags) as (process, _):
        page = process.stdout.readline().strip().removeprefix("page on http://")

        def ask(path, **headers):
            with contextlib.closing(http.client.HTTPConnection(page, timeout=30)) as connection:
                connection.request("GET", path, headers=headers)
                response = connection.getresponse()
                return response.status, response.headers, response.read()

        answer = ask("/v1/status")
        assert refusal(answer)[:3] == (401, "UNAUTHENTICATED", "UNAUTHENTICATED")
        assert answer[1]["WWW-Authenticate"] == "Bearer"
        shop = "https://shop.example"
        assert ask("/v1/status", Origin=shop)[1]["Access-Control-Allow-Origin"] == shop
        assert ask("/v1/status", Origin="https://else.example")[1]["Access-Control-Allow-Origin"] is None
        assert ask("/")[0] == 200  # the page itself, which asks for the token
        known = {"Authorization": f"Bearer {token}", "Host": "known.example"}
        while ask("/v1/status", **known)[0] == 503:
            process.poll()
        answer = ask("/v1/search?q=red&read_mask=vector", **known)
        assert refusal(answer)[:3] == (403, "PERMISSION_DENIED", "PERMISSION_DENIED")
        limited = next(answer for answer in iter(lambda: ask("/v1/search?q=red", **known), None) if answer[0] != 200)
        assert refusal(limited)[1] == "RESOURCE_EXHAUSTED"
        assert int(limited[1]["Retry-After"]) >= 1


def test_files_of_the_page_come_compressed_and_once(ask):
    status, headers, body = ask("GET", "/", Accept_Encoding="gzip")
    assert (status, headers["Content-Encoding"], headers["Content-Type"]) == (200, "gzip", "text/html; charset=utf-8")
    assert ask("GET", "/", If_None_Match=headers["ETag"])[0] == 304
    assert ask("GET", "/")[2].startswith(b"<!doctype html>")


def test_calls_before_the_model_is_loaded_are_told_to_wait_and_the_server_drains(tmp_path, folder):
    build_index(ColourRuntime(), Folder(folder), tmp_path / "index")
    with running(tmp_path / "index", "hold", "page") as (process, address):
        page = process.stdout.readline().strip().removeprefix("page on http://")
        with contextlib.closing(http.client.HTTPConnection(page, timeout=30)) as connection:
            connection.request("GET", "/v1/status")
            response = connection.getresponse()
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert json.loads(response.read())["reason"] == "NOT_READY"
            process.stdin.write("go\n")
            process.stdin.flush()
            with SearchClient(address) as client:
                client.wait_until_ready(30)
            connection.request("GET", "/v1/search?q=wait")
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(signal.SIGTERM)
            process.stdin.write("go on\n")
            process.stdin.flush()
            assert connection.getresponse().status == 200
        assert process.wait(30) == 0


def test_an_address_that_is_taken_is_a_clear_error(tmp_path, folder):
    build_index(ColourRuntime(), Folder(folder), tmp_path / "index")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with running(tmp_path / "index", f"page=127.0.0.1:{taken.getsockname()[1]}") as (process, _):
            assert process.wait(30) == 2
            assert "--http-address" in process.stderr.read()
