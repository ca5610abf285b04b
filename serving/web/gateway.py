"""The HTTP gateway: routes to the handlers that gRPC calls, through the same guard, JSON in and out; searches nothing.

Answers are the JSON form of the interface's messages (https://protobuf.dev/programming-guides/json/), with every field
that has no presence written out.
"""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from protos.imageretrieval.v1 import image_service_pb2, index_service_pb2, search_service_pb2
from serving.call_guard import Call, CallGuard, CallRefused
from serving.callers import Origin
from serving.grpc_service import SearchService
from serving.image_service import ImageService
from serving.index_service import IndexService
from serving.vector_store import StoredImage
from serving.web.api_description import description
from serving.web.known_hosts import KnownHosts
from serving.web.page_files import page_files
from serving.web.pictures import PictureNotFound, Pictures, thumbnail_name
from serving.web.problems import no_picture, problem, unknown_path
from serving.web.request_limits import RequestLimits
from serving.web.search_requests import from_body, from_parameters, wants_pictures
from serving.web.security_headers import SecurityHeaders

CALL_SECONDS = 30.0  # how long a call may take that names no limit itself
IMMUTABLE = "private, max-age=31536000, immutable"  # what an address with a digest names never changes
REVALIDATE = "private, no-cache"
_TOLD_IN_THE_LOOP = 100  # hits

R = TypeVar("R")


class ClientGone(BaseException):
    """Nobody waits for the answer any more: no error of ours, so not an Exception."""


class Gateway:
    """The ASGI application is `app`. `origins` may call from pages of their own; without any, only ours may.

    `hosts` are the names by which a proxy is called.
    """

    def __init__(
        self, guard: CallGuard, pictures: Pictures, origins: Sequence[str] = (), hosts: Sequence[str] = ()
    ) -> None:
        self.guard, self._pictures = guard, pictures
        self._search, self._images, self._index = SearchService(guard), ImageService(guard), IndexService(guard)
        self._description = json.dumps(description(), separators=(",", ":")).encode()
        routes = [
            Route("/v1/search", self.get_search, methods=["GET"]),
            Route("/v1/search", self.post_search, methods=["POST"]),
            Route("/v1/images/{path:path}", self.image, methods=["GET"]),
            Route("/v1/status", self.status, methods=["GET"]),
            Route("/v1/openapi.json", self.openapi, methods=["GET"]),
            *(Route(path, file.respond, methods=["GET"]) for path, file in page_files().items()),
        ]
        known = Middleware(KnownHosts, names=hosts)
        layers = [Middleware(SecurityHeaders), known, *_cors(origins), Middleware(RequestLimits)]
        self.app = Starlette(routes=routes, middleware=layers, exception_handlers={HTTPException: _http_error})
        self.app.router.redirect_slashes = False

    async def get_search(self, request: Request) -> Response:
        """Search by parameters."""

        async def work(call: Call) -> Response:
            return await self._found(request, from_parameters(request.query_params), call)

        return await self._answered(request, "SearchService.Search", work)

    async def post_search(self, request: Request) -> Response:
        """Search by the JSON form of a SearchRequest, or by a form with images."""

        async def work(call: Call) -> Response:
            return await self._found(request, await from_body(request), call)

        return await self._answered(request, "SearchService.Search", work)

    async def image(self, request: Request) -> Response:
        """Tell what is known about an image, or show it; an id in the path has its slashes escaped or not."""
        _, _, rest = request.scope["raw_path"].partition(b"/images/")
        name, _, what = rest.rpartition(b"/")
        if what not in (b"thumbnail", b"content") or not name:
            name, what = rest, b""
        image_id = urllib.parse.unquote(name.decode("latin-1"), errors="replace")
        shown = {b"thumbnail": self._thumbnail, b"content": self._content}

        async def work(call: Call) -> Response:
            if not what:
                return _json(await self._images.GetImage(image_service_pb2.GetImageRequest(image_id=image_id), call))
            known, _ = await call.engine.images.get(image_id, deadline=call.deadline)
            return await _while_connected(request, shown[what](request, call, known.image))

        return await self._answered(request, "ImageService.GetImage", work)

    async def status(self, request: Request) -> Response:
        """Describe the index that answers searches now."""

        async def work(call: Call) -> Response:
            return _json(await self._index.GetIndex(index_service_pb2.GetIndexRequest(), call))

        return await self._answered(request, "IndexService.GetIndex", work)

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document of all this."""
        return Response(self._description, media_type="application/json", headers={"Cache-Control": "no-cache"})

    async def _answered(self, request: Request, method: str, work: Callable[[Call], Awaitable[Response]]) -> Response:
        try:
            with self.guard.admit(method, _origin(request)) as call:
                return await work(call)
        except CallRefused as refused:
            return problem(refused.status, refused.__cause__)
        except ClientGone:
            return Response(status_code=499)  # which nobody reads

    async def _found(self, request: Request, asked: search_service_pb2.SearchRequest, call: Call) -> Response:
        with_pictures = wants_pictures(request.query_params)
        response = await _while_connected(request, self._search.Search(asked, call))
        # Translating takes 0.1 ms a hit, for which many would hold others up.
        many = len(response.hits) > _TOLD_IN_THE_LOOP
        told = await asyncio.to_thread(_as_json, response) if many else _as_json(response)
        if with_pictures and response.hits:
            await self._add_pictures(told, [hit.image_id for hit in response.hits], call)
        return JSONResponse(told, headers={"Cache-Control": "no-store"})

    async def _add_pictures(self, told: dict[str, Any], image_ids: Sequence[str], call: Call) -> None:
        """Put `picture` beside the fields of each hit that has one; hits without ids, by a read mask, have none."""
        if not all(image_ids):
            return
        found, _ = await call.engine.images.batch_get(image_ids, deadline=call.deadline)
        known = [one.image if one else StoredImage(name) for name, one in zip(image_ids, found, strict=True)]
        sizes = await self._pictures.sizes(known, _index_of(call), call.deadline)
        for hit, image, size in zip(told["hits"], known, sizes, strict=True):
            if size is not None:
                place = f"/v1/images/{urllib.parse.quote(image.image_id, safe='')}"
                hit["picture"] = {
                    "width": size.width,
                    "height": size.height,
                    "thumbnail": f"{place}/thumbnail?digest={image.digest}",
                    "content": f"{place}/content?digest={image.digest}",
                }

    async def _thumbnail(self, request: Request, call: Call, image: StoredImage) -> Response:
        async def make() -> tuple[bytes, str]:
            return await self._pictures.thumbnail(image, _index_of(call), call.deadline), "image/webp"

        return await _picture(request, image, thumbnail_name(image), make)

    async def _content(self, request: Request, call: Call, image: StoredImage) -> Response:
        async def make() -> tuple[bytes, str]:
            return await self._pictures.original(image, _index_of(call), call.deadline)

        return await _picture(request, image, image.digest, make)


def _cors(origins: Sequence[str]) -> list[Middleware]:
    """What lets pages of `origins` call; nothing without any."""
    if not origins:
        return []
    allowed: dict[str, Any] = {
        "allow_origins": list(origins),
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["Authorization", "Content-Type"],
        "expose_headers": ["Retry-After"],
    }
    return [Middleware(CORSMiddleware, **allowed)]


async def _picture(
    request: Request, image: StoredImage, name: str, make: Callable[[], Awaitable[tuple[bytes, str]]]
) -> Response:
    """A picture that browsers keep: for good when its address names the digest, else as long as the tag is the same."""
    named = request.query_params.get("digest")
    headers = {"ETag": f'"{name}"', "Cache-Control": IMMUTABLE if named == image.digest else REVALIDATE}
    if image.digest and headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    try:
        data, media_type = await make()
    except PictureNotFound:
        return no_picture(image.image_id)
    return Response(data, media_type=media_type, headers=headers)


async def _while_connected(request: Request, work: Awaitable[R]) -> R:
    """The result of `work`, which is cancelled when the client leaves; `ClientGone` then."""
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        leaving.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _origin(request: Request) -> Origin:
    return Origin(request.client.host if request.client else "", dict(request.headers), remaining=CALL_SECONDS)


def _index_of(call: Call) -> Path | None:
    """The directory of the index, where there is one."""
    return getattr(call.engine.store, "index", None)


def _as_json(message: Message) -> dict[str, Any]:
    return MessageToDict(message, always_print_fields_with_no_presence=True)


def _json(message: Message) -> Response:
    return JSONResponse(_as_json(message), headers={"Cache-Control": "no-store"})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return unknown_path(error.status_code, error.headers)
