"""The async client behind the methods of the sync one, so that one test holds for both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

from serving.async_client import AsyncSearchClient


class BlockingClient:
    """Waits for what the methods of an `AsyncSearchClient` give, in an event loop of its own."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(self._open(*arguments, **keywords))

    async def _open(self, *arguments: Any, **keywords: Any) -> AsyncSearchClient:
        return AsyncSearchClient(*arguments, **keywords)

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def wait(*arguments: Any, **keywords: Any) -> Any:
            given = method(*arguments, **keywords)
            if inspect.isasyncgen(given):
                return self._each(given)
            return self._loop.run_until_complete(given)

        return wait if callable(method) else method

    def _each(self, items: AsyncIterator[Any]) -> Any:
        try:
            while True:
                try:
                    yield self._loop.run_until_complete(anext(items))
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run_until_complete(items.aclose())
