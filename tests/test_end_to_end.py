"""The commands in the order a user gives them, on real weights and drawings, without any network: from a data set to
right answers of the real server on a real port, equal to brute force over the stored vectors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from chain import EPOCHS, ROOT, SUBJECTS, Chain, Machine, Served

from data.sources.openmoji import OpenMoji
from dual_encoder.bundle import open_bundle
from serving.exact_index import ExactIndex
from serving.snapshot import Snapshot, open_snapshot

# A client and a server add in different orders; a score may differ by this much, and equal scores may change places.
TOLERANCE = 1e-5

# Each leads by a wide margin, also under other seeds and settings.
QUESTIONS = {
    "a red apple": "🍎",
    "a birthday cake with candles": "🎂",
    "umbrella": "☂",
    "key": "🔑",
    "a bicycle": "🚲🚴",
}


@pytest.fixture(scope="module")
def snapshot(chain):
    opened = open_snapshot(chain.index, open_bundle(chain.bundle).fingerprint)
    yield opened
    opened.close()


def test_every_command_says_what_it_made(chain: Chain):
    count = len(chain.pairs)
    assert count > 150
    manifest = json.loads((chain.data / "manifest.json").read_text())
    splits = {shard["split"]: shard["images"] for shard in manifest["shards"]}
    assert sum(splits.values()) == count
    assert min(splits[name] for name in ("train", "validation", "test")) > 5
    for number in splits.values():
        assert f" {number} " in chain.said["data.prepare"].output
    trained = chain.said["dual_encoder.train"].errors
    assert f"epoch {EPOCHS}/{EPOCHS}" in trained
    assert open_bundle(chain.bundle).fingerprint[:12] in trained
    assert "text → image" in chain.said["dual_encoder.evaluate"].output
    assert f"{count} images indexed" in chain.said["serving.build_index"].errors


def test_no_step_shows_anything_but_its_own_lines(chain: Chain):
    said = "\n".join(finished.output + finished.errors for finished in chain.said.values())
    for noise in ("Warning", "WARNING", "cuda", "oneDNN", "tensorflow/"):
        assert noise not in said


def test_metrics_are_written_for_both_directions(chain: Chain):
    report = json.loads(chain.metrics.read_text())
    captions = sum(len(pair.captions) for pair in chain.pairs.values())
    for direction, queries in (("text_to_image", captions), ("image_to_text", len(chain.pairs))):
        figures = report[direction]
        assert figures["queries"] == queries
        assert 0 < figures["recall@1"] <= figures["recall@5"] <= figures["recall@10"] <= 1
        assert figures["median_rank"] >= 1
    # Trained on most of these pairs; chance is 10 / 163.
    assert report["text_to_image"]["recall@10"] > 0.5
    assert report["bundle"]["fingerprint"] == open_bundle(chain.bundle).fingerprint


def test_the_bundle_runs_without_tensorflow(chain: Chain):
    files = open_bundle(chain.bundle).manifest["files"]
    assert {"image_tower.onnx", "text_tower.onnx"} <= files.keys()


@pytest.mark.parametrize("k", [1, 10, 1_000])
@pytest.mark.parametrize("kind", ["text", "image", "image_id", "vector"])
def test_answers_equal_the_exact_reference(chain: Chain, served: Served, snapshot: Snapshot, kind: str, k: int):
    client = served.client
    somewhere = np.random.default_rng(k).normal(size=snapshot.manifest.dimension)
    of_kind = {"text": [*QUESTIONS, "a drawing", "東京 🚲"], "vector": [somewhere.tolist(), (-9 * somewhere).tolist()]}
    entries = snapshot.catalog.by_rows([0, 40, len(chain.pairs) - 1])
    of_kind["image_id"] = [entry.image_id for entry in entries]
    of_kind["image"] = [chain.pairs[entry.image_id].image.read() for entry in entries]
    for query in of_kind[kind]:
        if kind == "text":
            embedding = client.embed_texts([query])[0]
        elif kind == "image":
            embedding = client.embed_images([query])[0]
        elif kind == "image_id":
            embedding = snapshot.vectors[snapshot.catalog.by_id(query).row, : snapshot.manifest.dimension]
        else:
            embedding = np.array(query) / np.linalg.norm(query)
        if snapshot.manifest.corrected:  # a text takes each image's offset off its score, others do not
            embedding = [*embedding, float(kind == "text")]
        assert_exact(snapshot, np.asarray(embedding, np.float32), client.search(**{kind: query}, k=k), k)


def assert_exact(snapshot: Snapshot, embedding: np.ndarray, hits, k: int) -> None:
    """The hits are the best k by brute force, in order, where rows whose scores are equal may change places."""
    count = min(k, len(snapshot.vectors))
    scores, _ = ExactIndex(snapshot.vectors).search(embedding[np.newaxis], count)
    assert [hit.rank for hit in hits] == list(range(1, count + 1))
    assert len({hit.image_id for hit in hits}) == count
    np.testing.assert_allclose([hit.score for hit in hits], scores[0], atol=TOLERANCE)
    rows = [snapshot.catalog.by_id(hit.image_id).row for hit in hits]
    np.testing.assert_allclose(snapshot.vectors[rows].astype(np.float32) @ embedding, scores[0], atol=TOLERANCE)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_right_drawing_comes_first(served: Served, question: str):
    hits = served.client.search(question, k=3)
    assert hits[0].attributes["emoji"].removesuffix("\ufe0f") in QUESTIONS[question], hits


def test_a_stored_drawing_finds_itself_with_what_is_known_of_it(chain: Chain, served: Served):
    subjects = [name for name, pair in chain.pairs.items() if pair.attributes["emoji"][0] in SUBJECTS]
    assert len(subjects) == len(SUBJECTS)
    for image_id in subjects:
        hits = served.client.search(image=chain.pairs[image_id].image.read(), k=3)
        assert hits[0].image_id == image_id
        assert hits[0].score == pytest.approx(1, abs=1e-4)
        assert hits[0].captions == chain.pairs[image_id].captions
        assert hits[1].score < 0.999


def test_the_command_line_client_gives_the_same_answers(chain: Chain, served: Served, tmp_path: Path):
    client, address = served.client, served.client.address
    expected = client.search("a red apple", k=4)
    said = chain.machine.done("serving.client", "search", "a red apple", "-k", 4, "--json", "--address", address)
    answer = json.loads(said.output)
    assert [hit["image_id"] for hit in answer["hits"]] == [hit.image_id for hit in expected]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit.score for hit in expected], abs=TOLERANCE)
    assert answer["index_revision"] == expected.index_revision

    picture = tmp_path / "apple.png"
    picture.write_bytes(chain.pairs[expected[0].image_id].image.read())
    table = chain.machine.done("serving.client", "search-image", picture, "-k", 1, "--address", address)
    assert expected[0].image_id in table.output
    assert "1.000" in table.output

    status = json.loads(chain.machine.done("serving.client", "status", "--json", "--address", address).output)
    assert status["image_count"] == len(chain.pairs)
    assert status["model_revision"] == open_bundle(chain.bundle).fingerprint


def test_buf_curl_asks_through_reflection(served: Served):
    address = f"http://{served.client.address}/imageretrieval.v1.SearchService/Search"
    request = json.dumps({"query": {"text": "a red apple"}, "page_size": 3})
    buf = Path(sys.executable).with_name("buf")
    result = subprocess.run(
        [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", request, address],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    hits = json.loads(result.stdout)["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert hits[0]["attributes"]["emoji"] == {"stringValue": "🍎"}
    assert hits[0]["score"] == pytest.approx(served.client.search("a red apple")[0].score, abs=TOLERANCE)


def test_the_demonstration_serves_a_folder_of_ones_own(chain: Chain, tmp_path: Path):
    pictures = tmp_path / "my pictures"
    pictures.mkdir()
    for pair in OpenMoji():
        if pair.attributes["emoji"] in ("🍎", "🐘", "🚕"):
            (pictures / f"{pair.captions[0]}.png").write_bytes(pair.image.read())
    demo = ("tools.demo", "--mode", "check", "--images", pictures)
    said = chain.machine.done(*demo, cwd=tmp_path, own_network=True)  # results go to a folder "build" there
    assert "3 images, index Flat, model default" in said.errors
    assert "--bundle default" in said.errors


def test_whatever_is_not_this_machine_would_have_been_refused_and_noted(tmp_path: Path):
    (tmp_path / "calling.py").write_text(
        "import json, socket, sys, urllib.request\n"
        "for call in (lambda: urllib.request.urlopen('http://example.org', timeout=9),\n"
        "             lambda: socket.create_connection(('192.0.2.1', 80), timeout=9),\n"
        "             lambda: socket.socket().connect(('192.0.2.2', 80)),\n"
        "             lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.3', 53))):\n"
        "    try:\n"
        "        call()\n"
        "    except OSError as error:\n"
        "        print(error)\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    socket.create_connection(server.getsockname()).close()\n"
        "print('loopback answers')\n"
    )
    machine = Machine.at(tmp_path / "home")
    machine.environment["PYTHONPATH"] += f":{tmp_path}"
    process = machine.start("calling", own_network=True)
    output, errors = process.communicate(timeout=60)
    assert output.count("is not this machine") == 4, errors
    assert output.endswith("loopback answers\n")
    for host in ("example.org", "192.0.2.1", "192.0.2.2", "192.0.2.3"):
        assert host in machine.refused_connections


def test_nothing_above_called_for_the_network(chain: Chain, served: Served):
    served.client.search("a red apple")
    assert chain.machine.refused_connections == ""
