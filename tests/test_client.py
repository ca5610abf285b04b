"""The client's errors say what to do, and its command line prints readable answers, JSON, and useful exit codes."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time

import pytest
from fakes import ColourRuntime, ImageBytes, ImageTextPair, ListSource, colour_pair, picture
from server_process import ROOT, running

from serving import client as client_module
from serving.client import SearchClient, ServiceError
from serving.index_job import build_index

HOSTILE = "\x1b[31m[bold]<script>[/x]\u202e " + "long " * 1_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    out = tmp_path_factory.mktemp("client")
    hostile = ImageTextPair(
        "hostile", ImageBytes(lambda: picture("black", seed=1)), (HOSTILE,), attributes={"text": HOSTILE}
    )
    colours = [colour_pair(number) for number in range(40)]
    build_index(
        ColourRuntime(), ListSource([pair for pair in colours if "black" not in pair.image_id] + [hostile]), out
    )
    with running(out) as (_, address):
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        yield address


@pytest.fixture
def nobody():
    """An address where nothing listens, and nothing can begin to."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def run(capsys, *arguments):
    code = client_module.main(list(arguments))
    return (code, *capsys.readouterr())


def test_search_prints_score_id_and_caption(capsys, server):
    code, output, errors = run(capsys, "search", "something red", "-k", "3", "--address", server)
    assert (code, errors) == (0, "")
    assert output.startswith("3 images for “something red”")
    assert len(re.findall(r"[01]\.\d{3} .*red-\d{4} .*a red picture; number \d+", output)) == 3


def test_search_prints_json(capsys, server):
    code, output, _ = run(capsys, "search", "red", "-k", "2", "--json", "--address", server)
    answer = json.loads(output)
    assert code == 0
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2]
    assert answer["hits"][0]["attributes"]["tags"] == ["red", "drawn"]
    assert answer["hits"][0]["captions"][0] == "a red picture"
    assert answer["model_revision"] == ColourRuntime().fingerprint
    assert answer["index_revision"]


def test_a_filter_leaves_images_by_their_attributes(capsys, server):
    wanted = 'colour IN ("red", "blue") AND number > 8'
    code, output, _ = run(capsys, "search", "red", "--filter", wanted, "--json", "--address", server)
    found = [hit["attributes"] for hit in json.loads(output)["hits"]]
    assert code == 0
    assert {hit["colour"] for hit in found} == {"red", "blue"}
    assert min(hit["number"] for hit in found) > 8
    assert all(hit["taken"]["$timestamp"].endswith("Z") for hit in found)
    code, _, errors = run(capsys, "search", "red", "--filter", "colour = red", "--address", server)
    assert code == 2
    assert 'received red at character 10 of the filter; write "red"' in errors


def test_search_image_takes_a_file(capsys, server, tmp_path):
    (tmp_path / "some.jpg").write_bytes(picture("yellow", seed=5, format="JPEG"))
    code, output, _ = run(capsys, "search-image", str(tmp_path / "some.jpg"), "-k", "3", "--json", "--address", server)
    assert code == 0
    assert {hit["attributes"]["colour"] for hit in json.loads(output)["hits"]} == {"yellow"}


def test_embed_text_prints_a_vector_a_line(capsys, server):
    code, output, _ = run(capsys, "embed-text", "red", "blue", "--address", server)
    assert code == 0
    assert [len(json.loads(line)) for line in output.splitlines()] == [8, 8]


def test_status_prints_what_is_served(capsys, server):
    code, output, _ = run(capsys, "status", "--json", "--wait", "5", "--address", server)
    assert code == 0
    assert json.loads(output)["image_count"] == 36
    code, output, _ = run(capsys, "status", "--address", server)
    assert code == 0
    assert re.search(r"image_count .* 36 ", output)


def test_what_a_data_set_says_does_not_steer_the_terminal(capsys, server):
    code, output, _ = run(capsys, "search", "black", "-k", "1", "--address", server)
    assert code == 0
    assert "[bold]<script>[/x]" in output
    assert "\x1b" not in output
    assert "\u202e" not in output
    assert len(output) < 2_000
    with SearchClient(server) as client:  # the data itself arrives as it is
        hit = client.search("black", k=1)[0]
        assert hit.captions == (HOSTILE,)
        assert hit.attributes == {"text": HOSTILE}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", " "), "INVALID_ARGUMENT: query.text: expected a text; received only spaces"),
        (("search", "red", "-k", "1001"), "page_size: expected 1 to 1,000 hits; received 1,001"),
        (("search", "\udcff"), "surrogates not allowed"),
        (("search-image", "/nonexistent.jpg"), "No such file"),
        (("search-image", __file__), "expected a JPEG, PNG, WebP or GIF image"),
    ],
)
def test_a_refusal_is_readable_and_exits_2(capsys, server, arguments, message):
    code, output, errors = run(capsys, *arguments, "--address", server)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert "Traceback" not in errors


def test_an_absent_server_is_told_at_once(capsys, nobody):
    code, _, errors = run(capsys, "search", "red", "--address", nobody)
    assert code == 2
    assert f"no server answers at {nobody}" in errors


def test_waiting_ends_with_the_reason(nobody):
    begin = time.monotonic()
    with SearchClient(nobody) as client, pytest.raises(ServiceError, match=f"{nobody} was not ready") as refusal:
        client.wait_until_ready(0.5)
    assert refusal.value.code == "DEADLINE_EXCEEDED"
    assert time.monotonic() - begin < 5


def test_errors_carry_code_reason_and_fields(server):
    with SearchClient(server) as client:
        with pytest.raises(ServiceError) as refusal:
            client.search(image=b"text")
        error = refusal.value
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_IMAGE")
        assert [(violation.field, violation.reason) for violation in error.field_violations] == [
            ("query.image", "NOT_AN_IMAGE")
        ]
        with pytest.raises(ServiceError) as refusal:
            client.search(image_id="nobody")
        assert (refusal.value.code, refusal.value.reason) == ("NOT_FOUND", "IMAGE_NOT_FOUND")


def test_exactly_one_query_is_asked_for(server):
    with SearchClient(server) as client:
        with pytest.raises(TypeError, match="received none"):
            client.search()
        with pytest.raises(TypeError, match="received text, image_id"):
            client.search("red", image_id="red-0000")
        with pytest.raises(ValueError, match="k of at least 1"):
            client.search("red", k=0)


def test_a_server_without_its_bundle_is_refused_with_the_reason(tmp_path):
    command = [sys.executable, "-m", "serving.server", "--bundle", str(tmp_path / "absent"), "--index", str(tmp_path)]
    result = subprocess.run(
        [*command, "--address", "127.0.0.1:0"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stdout.startswith("listening on 127.0.0.1:")
    assert "expected a bundle directory" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("module", ["client", "server"])
def test_help_is_fast_and_light(module):
    begin = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"serving.{module}", "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0
    assert time.monotonic() - begin < 3  # a second on a quiet machine
    assert not re.search(r"\b(tensorflow|keras|faiss|onnxruntime|numpy|PIL)\b", result.stderr)


def test_the_client_works_without_numpy(server):
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from serving.client import SearchClient\n"
        f"print(SearchClient('{server}').search('red', k=1)[0].captions[0])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout == "a red picture\n", result.stderr
