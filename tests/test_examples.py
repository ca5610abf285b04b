"""The examples in examples/ ask the real server, as a reader would run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import javascript_packages
import pytest
from fakes import picture
from server_process import ROOT, running

from serving.client import SearchClient


@pytest.fixture(scope="module")
def address(index):
    with running(index, "writable") as (_, address):
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        yield address


def run(command, address, directory=ROOT):
    environment = {**os.environ, "SEARCH_CLIENT_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60)


def python(address, name, *arguments):
    return run([sys.executable, f"examples/python/{name}.py", *arguments], address)


def test_python_searches(address):
    done = python(address, "search", "red")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == 5 + 1 + 2
    assert all(line.split()[1].startswith("red-") for line in lines[:5])
    assert lines[-2:] == ["page 1: 20 hits", "page 2: 20 hits"]
    refused = python(address, "search", " ")
    assert refused.returncode == 1
    assert refused.stderr.startswith("query.text: expected a text")
    assert "INVALID_QUERY" in refused.stderr


def test_python_streams_searches(address):
    done = python(address, "many_searches", "red", " ", "blue")
    assert done.returncode == 0, done.stderr
    answers = dict(line.split(":") for line in done.stdout.splitlines())
    assert answers[" "] == " INVALID_QUERY"
    assert {word.split("-")[0] for word in answers["blue"].split()} == {"blue"}


def test_python_adds_a_folder(address, tmp_path):
    (tmp_path / "a_red_one.png").write_bytes(picture("red"))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    done = python(address, "add_images", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a_red_one.png: version ")
    assert done.stderr == "broken.jpg: INVALID_IMAGE\n"
    with SearchClient(address) as client:
        assert client.get_image("a_red_one.png").captions == ("a red one",)
        client.delete_image("a_red_one.png")


@pytest.fixture(scope="module")
def javascript(tmp_path_factory):
    """A copy of the example with its packages."""
    packages = javascript_packages.install()
    if isinstance(packages, str):
        pytest.skip(packages)
    root = tmp_path_factory.mktemp("checkout")
    (root / "protos").symlink_to(ROOT / "protos")
    copy = root / "examples" / "javascript"
    shutil.copytree(javascript_packages.EXAMPLE, copy, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "node_modules").symlink_to(packages)
    return copy


def test_javascript_searches_and_reads_refusals(address, javascript):
    done = run(["node", "search.js", "red"], address, javascript)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1].split("-")[0] for line in done.stdout.splitlines()] == ["red"] * 5
    done = run(["node", "search.js", "red green", "green"], address, javascript)
    assert {line.split()[1].split("-")[0] for line in done.stdout.splitlines()} == {"red"}
    refused = run(["node", "search.js", " "], address, javascript)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("INVALID_QUERY: query.text: expected a text")
    assert refused.stderr.endswith("  query.text\n")


def test_javascript_streams(address, javascript):
    done = run(["node", "stream.js", "red", " ", "blue"], address, javascript)
    assert done.returncode == 0, done.stderr
    answers = dict(line.split(":") for line in done.stdout.splitlines())
    assert answers[" "] == " INVALID_QUERY"
    assert {word.split("-")[0] for word in answers["red"].split()} == {"red"}
