"""The files of the page, read once and compressed once; knows nothing of what is in them."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from data.durable import digest_bytes
from data.html_page import STYLE_SHEET

STATIC = Path(__file__).parent / "static"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class PageFile:
    """One file as it is sent."""

    media_type: str
    plain: bytes
    compressed: bytes
    tag: str

    async def respond(self, request: Request) -> Response:
        """The file, or that it is still what the browser has."""
        headers = {"ETag": self.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(self.plain, media_type=self.media_type, headers=headers)
        return Response(self.compressed, media_type=self.media_type, headers={**headers, "Content-Encoding": "gzip"})


def page_files() -> dict[str, PageFile]:
    """The files by path; the style sheet that reports share is /style.css."""
    files = {f"/{path.name}": _read(path) for path in sorted(STATIC.iterdir()) if path.suffix in _MEDIA_TYPES}
    files["/"] = files.pop("/index.html")
    files["/style.css"] = _read(STYLE_SHEET)
    return files


def _read(path: Path) -> PageFile:
    plain = path.read_bytes()
    return PageFile(_MEDIA_TYPES[path.suffix], plain, gzip.compress(plain, 9, mtime=0), f'"{digest_bytes(plain)[:32]}"')
