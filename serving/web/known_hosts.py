"""Answers only to the names that the page is known by; a layer around an ASGI application.

A page of somebody else's whose own name is made to lead to this machine (DNS rebinding) counts as ours for its reader's
browser. The name that it was called by gives it away.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.network import host_of, is_loopback
from serving.web.problems import HttpRefusal, problem_of


class KnownHosts:
    """Refuses calls to a loopback address by other names than its own and `names`, those of a proxy before it."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app, self._names = app, frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and is_loopback((scope.get("server") or ("",))[0]):
            name = host_of(Headers(scope=scope).get("host", "").lower())
            if not is_loopback(name) and name not in self._names:
                refused = HttpRefusal(421, "the server answers to other names; a proxy's own is told by http.hosts")
                return await problem_of(refused)(scope, receive, send)
        return await self._app(scope, receive, send)
