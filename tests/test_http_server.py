"""The HTTP server in an event loop: slow heads are given up, what is under way is finished, the port is free again."""

from __future__ import annotations

import asyncio

import pytest

from data.errors import UserError
from serving.call_guard import CallGuard
from serving.web import http_server as module
from serving.web.http_server import http_server
from serving.web.http_settings import HttpSettings

HEAD = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n"
ANYWHERE = HttpSettings("127.0.0.1:0")


async def connected(page):
    host, port = page.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


def test_a_client_that_sends_no_whole_head_is_closed_and_others_are_answered(monkeypatch):
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.2)

    async def scene():
        async with http_server(ANYWHERE, CallGuard(), 1.0) as page:
            slow, slow_writer = await connected(page)
            slow_writer.write(HEAD)  # without the empty line that ends it
            quick, quick_writer = await connected(page)
            answers = []
            for _ in range(2):  # on one connection
                quick_writer.write(HEAD + b"\r\n")
                head = await quick.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                answers.append(head.split()[1])
                await quick.readexactly(length)
            closed = await slow.read()
            slow_writer.close()
            quick_writer.close()
            return answers, closed

    answers, closed = asyncio.run(scene())
    assert answers == [b"503", b"503"]  # nothing is loaded
    assert closed == b""


def test_the_port_is_free_again_after_the_end():
    async def scene():
        async with http_server(ANYWHERE, CallGuard(), 1.0) as page:
            address = page.removeprefix("http://")
            with pytest.raises(UserError, match="free"):
                async with http_server(HttpSettings(address), CallGuard(), 1.0):
                    pass
        async with http_server(HttpSettings(address), CallGuard(), 1.0) as page:
            return page

    assert asyncio.run(scene())


@pytest.mark.parametrize("address", ["8080", "localhost", "127.0.0.1:port", "127.0.0.1:70000", "nowhere.invalid:0"])
def test_an_address_that_is_none_is_refused(address):
    async def scene():
        async with http_server(HttpSettings(address), CallGuard(), 1.0):
            pass

    with pytest.raises(UserError):
        asyncio.run(scene())
