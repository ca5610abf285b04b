"""Clients of every kind show who they are to a real server with TLS and tokens, and are told what they may not do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import javascript_packages
import pytest
from certificates import Authority
from either_client import BlockingClient
from fakes import picture
from server_process import ROOT, running

from serving import client as client_module
from serving.client import SearchClient, ServiceError, Upload
from serving.method_policies import Scope
from serving.token_file import create


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A file of tokens, and the tokens by what they allow."""
    file = tmp_path_factory.mktemp("tokens") / "tokens.json"
    scopes = {"reader": {Scope.SEARCH}, "writer": {Scope.SEARCH, Scope.WRITE, Scope.VECTORS}}
    return file, {name: create(file, name, frozenset(some), time.time()) for name, some in scopes.items()}


@pytest.fixture(scope="module")
def address(index, authority, tokens):
    certificate, key = authority.issue("server")
    flags = ("--tls-certificate", str(certificate), "--tls-key", str(key), "--access-tokens", str(tokens[0]))
    with running(index, "writable", *flags) as (_, address):
        with SearchClient(address, roots=authority.certificate) as client:
            client.wait_until_ready(30)
        yield address


@pytest.mark.parametrize("client_class", [SearchClient, BlockingClient], ids=["sync", "async"])
def test_a_token_allows_its_scopes_over_tls(client_class, address, authority, tokens):
    roots = authority.certificate
    with client_class(address, roots=roots, token=tokens[1]["reader"]) as client:
        assert client.search("red", k=1)
        for refused in (
            lambda: client.upsert_image(Upload("new", picture("red"))),
            lambda: client.search("red", fields=["vector"]),
            lambda: list(client.upsert_images([Upload("new", picture("red"))])),
        ):
            with pytest.raises(ServiceError) as refusal:
                refused()
            assert (refusal.value.code, refusal.value.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    with client_class(address, roots=roots, token=tokens[1]["writer"]) as client:
        assert client.upsert_image(Upload("new", picture("red"))).version
        assert client.get_image("new", fields=["vector"]).vector
        client.delete_image("new")
    with client_class(address, roots=roots) as client, pytest.raises(ServiceError) as refusal:
        client.search("red")
    assert refusal.value.code == "UNAUTHENTICATED"


def test_the_command_line_reads_a_token_file(capsys, address, authority, tokens, tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{tokens[1]['reader']}\n")
    to = ["--address", address, "--roots", str(authority.certificate)]
    assert client_module.main(["search", "red", *to, "--token-file", str(file)]) == 0
    assert client_module.main(["search", "red", *to]) == 2
    assert "error: UNAUTHENTICATED" in capsys.readouterr().err


def environment(address, authority, token):
    return {
        **os.environ, "SEARCH_CLIENT_ADDRESS": address, "SEARCH_CLIENT_ROOTS": str(authority.certificate),
        "SEARCH_CLIENT_TOKEN": token, "PYTHONPATH": str(ROOT),
    }  # fmt: skip


@pytest.mark.parametrize("token", ["reader", "none"])
def test_javascript_sends_the_token_over_tls(address, authority, tokens, tmp_path, token):
    packages = javascript_packages.install()
    if isinstance(packages, str):
        pytest.skip(packages)
    (tmp_path / "protos").symlink_to(ROOT / "protos")
    copy = tmp_path / "examples" / "javascript"
    shutil.copytree(javascript_packages.EXAMPLE, copy, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "node_modules").symlink_to(packages)
    given = environment(address, authority, tokens[1].get(token, token))
    done = subprocess.run(["node", "search.js", "red"], cwd=copy, env=given, capture_output=True, text=True, timeout=60)
    if token == "reader":
        assert (done.returncode, len(done.stdout.splitlines())) == (0, 5), done.stderr
    else:
        assert done.returncode == 2
        assert "UNAUTHENTICATED: the token" in done.stderr


def test_buf_curl_sends_the_token_over_tls(address, authority, tokens):
    command = [
        str(Path(sys.executable).parent / "buf"), "curl", "--protocol", "grpc", "--cacert", str(authority.certificate),
        "--schema", ".", "-d", '{"query": {"text": "red"}, "page_size": 1}',
        "-H", f"authorization: Bearer {tokens[1]['reader']}",
        f"https://{address}/imageretrieval.v1.SearchService/Search",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert '"imageId":"red-' in done.stdout.replace(" ", ""), done.stderr
