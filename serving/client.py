"""Typed Python client of the search server, and the command line on it; knows no model and imports no NumPy.

Example:
    with SearchClient("127.0.0.1:50051") as client:
        for hit in client.search(text="a red bicycle", k=5):
            print(hit.score, hit.image_id)
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from data import console
from data.attributes import attributes_to_json
from protos.imageretrieval.v1 import (
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    index_service_pb2,
    index_service_pb2_grpc,
    query_pb2,
    search_service_pb2,
    search_service_pb2_grpc,
)
from serving.filter_syntax import unparse
from serving.vector_index import SearchHit

if TYPE_CHECKING:
    from data.pairs import AttributeValue
    from serving.filters import Filter

DEFAULT_ADDRESS = "127.0.0.1:50051"

_OPTIONS = [
    ("grpc.max_send_message_length", 33 * 1024 * 1024),
    ("grpc.max_receive_message_length", 33 * 1024 * 1024),
    # A proxy for web pages is of no use on the way to a search server.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


@dataclass(frozen=True)
class FieldViolation:
    """A field of the request at fault, and why; `reason` is a stable word, or empty."""

    field: str
    description: str
    reason: str = ""


class ServiceError(Exception):
    """A call did not succeed.

    `code` is gRPC's name such as "INVALID_ARGUMENT"; `reason` is the server's stable word such as "INVALID_QUERY", or
    empty when the answer did not come from the server itself.
    """

    def __init__(self, code: str, reason: str, message: str, field_violations: Sequence[FieldViolation] = ()) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.reason, self.message = code, reason, message
        self.field_violations = tuple(field_violations)


class SearchResults(list[SearchHit]):
    """The hits of a search, best first, and the model and index that gave them."""

    def __init__(self, hits: Sequence[SearchHit], model_revision: str, index_revision: str) -> None:
        super().__init__(hits)
        self.model_revision, self.index_revision = model_revision, index_revision


@dataclass(frozen=True)
class IndexStatus:
    """What a server serves."""

    snapshot: str
    image_count: int
    dimension: int
    kind: str
    model_name: str
    model_revision: str
    source: str
    create_time: datetime


class SearchClient:
    """A connection to a server; safe to share between threads. Every call raises `ServiceError` on failure.

    `timeout` is in seconds and holds for each call.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, timeout: float = 10.0) -> None:
        self.address = address
        self.timeout = timeout
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._search = search_service_pb2_grpc.SearchServiceStub(self._channel)
        self._embedding = embedding_service_pb2_grpc.EmbeddingServiceStub(self._channel)
        self._index = index_service_pb2_grpc.IndexServiceStub(self._channel)

    def __enter__(self) -> SearchClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def search(
        self,
        text: str | None = None,
        *,
        image: bytes | None = None,
        image_id: str | None = None,
        vector: Sequence[float] | None = None,
        k: int = 10,
        min_score: float | None = None,
        filter: str | Filter = "",
    ) -> SearchResults:
        """The `k` best images for a text, an encoded image, the id of an indexed one, or an embedding (give one).

        Only those that `filter` matches, such as 'kind = "photo" AND year >= 2010', can be found.
        """
        given = {"text": text, "image": image, "image_id": image_id, "vector": vector}
        inputs: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if len(inputs) != 1:
            raise TypeError(f"expected one of text, image, image_id and vector; received {', '.join(inputs) or 'none'}")
        if k < 1:
            raise ValueError(f"expected k of at least 1; received {k}")  # 0 would stand for the server's default
        if vector is not None:
            inputs["vector"] = query_pb2.Vector(values=vector)
        request = search_service_pb2.SearchRequest(
            query=query_pb2.Query(**inputs),
            page_size=k,
            min_score=min_score,
            filter=filter if isinstance(filter, str) else unparse(filter),
        )
        response = self._call(self._search.Search, request)
        return SearchResults([_hit(hit) for hit in response.hits], response.model_revision, response.index_revision)

    def embed_texts(self, texts: Sequence[str]) -> list[list[float]]:
        """An embedding of unit length for each text."""
        response = self._call(self._embedding.EmbedTexts, embedding_service_pb2.EmbedTextsRequest(texts=texts))
        return [list(embedding.values) for embedding in response.embeddings]

    def embed_images(self, images: Sequence[bytes]) -> list[list[float]]:
        """An embedding of unit length for each encoded image."""
        response = self._call(self._embedding.EmbedImages, embedding_service_pb2.EmbedImagesRequest(images=images))
        return [list(embedding.values) for embedding in response.embeddings]

    def status(self) -> IndexStatus:
        """What the server serves."""
        index = self._call(self._index.GetIndex, index_service_pb2.GetIndexRequest()).index
        names = ("snapshot", "image_count", "dimension", "kind", "model_name", "model_revision", "source")
        return IndexStatus(
            **{name: getattr(index, name) for name in names},
            create_time=datetime.fromisoformat(index.create_time.ToJsonString()),
        )

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Return when the server's health is SERVING; `ServiceError` "DEADLINE_EXCEEDED" after `timeout` seconds."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        check = health_pb2_grpc.HealthStub(self._channel).Check
        end = time.monotonic() + timeout
        answer = "no answer"
        while (remaining := end - time.monotonic()) > 0:
            try:
                response = check(health_pb2.HealthCheckRequest(), timeout=remaining, wait_for_ready=True)
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                answer = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
            except grpc.RpcError as error:
                answer = error.code().name
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))
        raise ServiceError("DEADLINE_EXCEEDED", "", f"{self.address} was not ready after {timeout:g} s ({answer})")

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=self.timeout)
        except grpc.RpcError as error:
            raise _service_error(error, self.address) from None


def _service_error(error: grpc.RpcError, address: str) -> ServiceError:
    """Read the status and its google.rpc details."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    reason, violations = "", []
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad_request):
            violations = [FieldViolation(v.field, v.description, v.reason) for v in bad_request.field_violations]
    code, message = error.code().name, error.details() or ""
    if not status and code == "UNAVAILABLE":
        message = f"no server answers at {address} ({message})"
    return ServiceError(code, reason, message, violations)


def _hit(hit: search_service_pb2.SearchHit) -> SearchHit:
    attributes = {name: _attribute(value) for name, value in hit.attributes.items()}
    return SearchHit(hit.image_id, hit.score, hit.rank, tuple(hit.captions), attributes)


def _attribute(value: query_pb2.AttributeValue) -> AttributeValue:
    kind = value.WhichOneof("kind")
    if kind == "string_list_value":
        return list(value.string_list_value.values)
    if kind == "timestamp_value":
        return value.timestamp_value.ToDatetime(UTC)
    return getattr(value, kind) if kind else ""


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="default %(default)s")
    common.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for the answer")
    common.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="first wait until the server is ready"
    )
    common.add_argument("--json", action="store_true", help="print JSON instead of a table")
    hits = argparse.ArgumentParser(add_help=False)
    hits.add_argument("-k", type=_positive, default=10, metavar="HITS", help="how many, default %(default)s")
    hits.add_argument("--min-score", type=float, help="leave out images that score less")
    example = """such as 'kind = "photo" AND year >= 2010 AND tags:"red"'; see docs/search.md"""
    hits.add_argument("--filter", default="", metavar="TEXT", help=f"only images whose attributes match, {example}")

    parser = argparse.ArgumentParser(prog="python -m serving.client", description="Ask a search server.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    search = commands.add_parser("search", parents=[common, hits], help="images that match a text")
    search.add_argument("text", help='such as "a red bicycle"')
    search.set_defaults(command=_run_search)
    search_image = commands.add_parser("search-image", parents=[common, hits], help="images that look like one")
    search_image.add_argument("file", type=Path, help="a JPEG, PNG, WebP or GIF file")
    search_image.set_defaults(command=_run_search_image)
    embed = commands.add_parser("embed-text", parents=[common], help="embeddings of texts, as JSON")
    embed.add_argument("texts", nargs="+", metavar="text")
    embed.set_defaults(command=_run_embed_text)
    status = commands.add_parser("status", parents=[common], help="what the server serves")
    status.set_defaults(command=_run_status)
    return parser


def _run_search(client: SearchClient, arguments: argparse.Namespace) -> None:
    results = client.search(arguments.text, **_hit_options(arguments))
    _print_results(results, arguments.text, arguments.json)


def _run_search_image(client: SearchClient, arguments: argparse.Namespace) -> None:
    results = client.search(image=arguments.file.read_bytes(), **_hit_options(arguments))
    _print_results(results, arguments.file.name, arguments.json)


def _hit_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"k": arguments.k, "min_score": arguments.min_score, "filter": arguments.filter}


def _run_embed_text(client: SearchClient, arguments: argparse.Namespace) -> None:
    for embedding in client.embed_texts(arguments.texts):
        print(json.dumps(embedding))


def _run_status(client: SearchClient, arguments: argparse.Namespace) -> None:
    status = {**asdict(client.status()), "address": client.address}
    status["create_time"] = status["create_time"].isoformat()
    if arguments.json:
        print(json.dumps(status, indent=2))
    else:
        console.print_table(
            "Index", ("what", "value"), [(name, _printable(str(value))) for name, value in status.items()]
        )


def _print_results(results: SearchResults, query: str, as_json: bool) -> None:
    if as_json:
        hits = [{**asdict(hit), "attributes": attributes_to_json(hit.attributes)} for hit in results]
        revisions = {"model_revision": results.model_revision, "index_revision": results.index_revision}
        print(json.dumps({"hits": hits, **revisions}, indent=2))
        return
    rows = [(f"{hit.score:.3f}", _printable(hit.image_id), _printable("; ".join(hit.captions))) for hit in results]
    console.print_table(f"{len(results)} images for “{_printable(query)}”", ("score", "id", "caption"), rows)


def _printable(text: str, limit: int = 120) -> str:
    """One short line; what a data set contains must not steer the terminal."""
    text = "".join(character if character.isprintable() else " " for character in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more; received {value}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, ask the server, print the answer."""
    arguments = _parser().parse_args(argv)
    try:
        with SearchClient(arguments.address, arguments.timeout) as client:
            if arguments.wait:
                client.wait_until_ready(arguments.wait)
            arguments.command(client, arguments)
    except (ServiceError, UnicodeError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        console.say(f"error: {error}")
        return console.EXIT_REFUSED
    return console.EXIT_OK


if __name__ == "__main__":
    console.run(main)
