"""Where and how the page is served; imports nothing of what serves it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HttpSettings:
    """Where the page and its JSON are served. `origins` lists the web origins whose pages may call, as CORS has them.

    Thumbnails are kept under the cache directory, up to `thumbnail_bytes`.
    """

    address: str
    origins: tuple[str, ...] = ()
    thumbnail_bytes: int = 512 * 1024 * 1024
