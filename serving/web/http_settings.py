"""Where and how the page is served; imports nothing of what serves it."""

from __future__ import annotations

from dataclasses import dataclass

from serving.settings_sources import setting


@dataclass(frozen=True)
class HttpSettings:
    """Where the page and its JSON are served. Thumbnails are kept under the cache directory."""

    address: str = setting("", "where the page and its JSON are served; if not given, nowhere", "HOST:PORT")
    origins: tuple[str, ...] = setting((), "web origins whose pages may call, as CORS has them", "ORIGIN,…")
    hosts: tuple[str, ...] = setting((), "names by which a proxy before a loopback address is called", "NAME,…")
    thumbnail_bytes: int = setting(512 * 1024 * 1024, "kept of thumbnails on the disk", "BYTES", 0)
