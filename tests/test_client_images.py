"""Both clients and the command line add, look up, list and remove images of a real server."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import pytest
from either_client import BlockingClient
from fakes import ColourRuntime, picture
from server_process import running

from serving import client as client_module
from serving import client_calls as calls
from serving.client import SearchClient, ServiceError, Upload

RUNTIME = ColourRuntime()


@pytest.fixture(scope="module")
def address(index):
    with running(index, "writable") as (_, address):
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        yield address


@pytest.fixture(params=[SearchClient, BlockingClient], ids=["sync", "async"])
def client(request, address):
    with request.param(address, timeout=30) as client:
        yield client
        client.delete_images([image.image_id for image in client.list_images() if image.image_id.startswith("new")])


def new(number, colour="red", **fields):
    return Upload(f"new-{number:04}", picture(colour, seed=number), **fields)


def test_an_image_is_added_found_replaced_and_removed(client):
    taken = datetime(2024, 5, 17, 12, 0, 0, 5, UTC)
    attributes = {"kind": "photo", "year": 2024, "share": 0.5, "good": True, "tags": ["a", "b"], "taken": taken}
    upload = new(1, captions=["first", "second"], attributes=attributes)
    receipt = client.upsert_image(upload)
    assert receipt.model_revision == RUNTIME.fingerprint
    image = client.get_image("new-0001")
    assert (image.captions, image.attributes) == (("first", "second"), attributes)
    assert type(image.attributes["good"]) is bool
    assert (image.version, len(image.digest), image.vector) == (receipt.version, 64, None)
    assert client.search("red", k=1, filter='kind = "photo"')[0].image_id == "new-0001"
    assert client.upsert_image(upload) == receipt  # came twice, happened once
    replaced = client.upsert_image(new(1, "blue", if_version=receipt.version))
    assert replaced.version > receipt.version
    with pytest.raises(ServiceError) as refusal:
        client.delete_image("new-0001", if_version=receipt.version)
    assert (refusal.value.code, refusal.value.reason) == ("ABORTED", "VERSION_CONFLICT")
    assert refusal.value.preconditions
    assert client.delete_image("new-0001", if_version=replaced.version) > replaced.version
    with pytest.raises(ServiceError) as refusal:
        client.get_image("new-0001")
    assert (refusal.value.code, refusal.value.resource.name) == ("NOT_FOUND", "new-0001")


def test_a_request_id_names_one_change(client):
    upload = new(2)
    client.upsert_image(upload)
    with pytest.raises(ServiceError) as refusal:
        client.upsert_image(new(3, request_id=upload.request_id))
    assert (refusal.value.code, refusal.value.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")


def test_a_vector_is_kept_as_it_is(client):
    vector = RUNTIME.embed_texts(["purple"])[0].tolist()
    client.upsert_image(Upload("new-vector", vector=vector))
    image = client.get_image("new-vector", fields=["vector", "digest"])
    assert image.vector == pytest.approx(vector, abs=1e-3)
    assert (image.image_id, image.digest) == ("", "")
    for both in ({}, {"image": b"x", "vector": vector}):
        with pytest.raises(TypeError, match="an image or a vector"):
            Upload("a", **both)


def test_several_are_looked_up_in_order_and_listed_page_by_page(client):
    found = client.get_images(["red-0000", "nobody", "blue-0002", "red-0000"], fields=["attributes.number"])
    assert [image and image.attributes["number"] for image in found] == [0, None, 2, 0]
    assert sum(image is not None for image in client.get_images([f"red-{n:04}" for n in range(1_500)])) == 5
    listed = [image.image_id for image in client.list_images(page_size=7)]
    assert listed == sorted(listed)
    assert len(listed) == 40
    assert [image.image_id for image in client.list_images(filter='colour = "blue"', fields=["image_id"])] == [
        image_id for image_id in listed if image_id.startswith("blue")
    ]


def test_a_stream_of_uploads_takes_few_before_their_receipts(client):
    taken = 0

    def uploads():
        nonlocal taken
        for number in range(100):
            taken += 1
            yield new(number) if number != 40 else Upload("new-bad", b"no image")

    answered, ahead = [], []
    for upload, receipt in client.upsert_images(uploads()):
        ahead.append(taken - len(answered))
        answered.append((upload.image_id, receipt))
    assert max(ahead) <= calls.IN_FLIGHT + 1
    refused = {image_id: answer for image_id, answer in answered if isinstance(answer, ServiceError)}
    assert list(refused) == ["new-bad"]
    assert refused["new-bad"].reason == "INVALID_IMAGE"
    assert len(answered) == 100
    kept = {image.image_id: image.version for image in client.list_images() if image.image_id.startswith("new")}
    assert kept == {image_id: receipt.version for image_id, receipt in answered if image_id != "new-bad"}


def test_uploads_that_are_sent_again_change_nothing(client):
    uploads = [new(number) for number in range(5)]
    first = {upload.image_id: receipt for upload, receipt in client.upsert_images(uploads)}
    second = {upload.image_id: receipt for upload, receipt in client.upsert_images(uploads)}
    assert first == second
    again = [dataclasses.replace(upload, request_id="") for upload in uploads]
    assert all(receipt.version > first[upload.image_id].version for upload, receipt in client.upsert_images(again))


def test_what_an_iterator_of_uploads_raises_comes_after_the_receipts(client):
    def uploads():
        yield new(1)
        raise OSError("unplugged")

    receipts = []
    with pytest.raises(OSError, match="unplugged"):
        receipts.extend(upload.image_id for upload, _ in client.upsert_images(uploads()))
    assert receipts == ["new-0001"]


def run(capsys, *arguments):
    code = client_module.main(list(map(str, arguments)))
    return (code, *capsys.readouterr())


def test_the_command_line_adds_lists_gets_and_removes(capsys, address, tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "one.png").write_bytes(picture("yellow", seed=1))
    (folder / "two.jpg").write_bytes(picture("yellow", seed=2, format="JPEG"))
    (folder / "notes.txt").write_text("no image")
    alone = tmp_path / "alone.png"
    alone.write_bytes(picture("yellow", seed=3))
    to = ("--address", address)
    described = ("--caption", "a\x1b[31m yellow one", "--attribute", "kind=test", "--attribute", "year=2024")
    code, output, errors = run(capsys, "upsert", folder, alone, *described, *to)
    assert (code, output) == (0, "")
    assert "upserting: 3 done" in errors
    code, output, _ = run(capsys, "list", "--filter", 'kind = "test"', "--json", *to)
    assert code == 0
    listed = json.loads(output)
    assert [image["image_id"] for image in listed] == ["alone.png", "deep/one.png", "two.jpg"]
    assert listed[0]["attributes"] == {"kind": "test", "year": 2024}
    code, output, _ = run(capsys, "get", "two.jpg", *to)
    assert code == 0
    assert "two.jpg" in output
    assert "\x1b" not in output
    code, output, errors = run(capsys, "get", "two.jpg", "nobody", *to)
    assert code == 1
    assert "no image 'nobody' in this index" in errors
    alone.write_bytes(b"broken")
    code, _, errors = run(capsys, "upsert", alone, folder / "two.jpg", *to)
    assert code == 1
    assert "refused: alone.png: INVALID_ARGUMENT" in errors
    code, output, _ = run(capsys, "delete", "alone.png", "deep/one.png", "two.jpg", "--json", *to)
    assert code == 0
    assert set(json.loads(output)) == {"alone.png", "deep/one.png", "two.jpg"}
    code, output, _ = run(capsys, "list", "--limit", "3", *to)
    assert code == 0
    assert output.startswith("3 images")


def test_the_command_line_mixes_examples(capsys, address, tmp_path):
    file = tmp_path / "blue.png"
    file.write_bytes(picture("blue", seed=9))
    to = ("--address", address, "-k", "5", "--json")

    def colours(*arguments):
        code, output, _ = run(capsys, "search", *arguments, *to)
        assert code == 0
        return {hit["attributes"]["colour"] for hit in json.loads(output)["hits"]}

    assert colours("red green", "--minus", "green") == {"red"}
    assert colours("--like", "purple-0004") == {"purple"}
    assert colours("--image", file) == {"blue"}
    assert colours("blue", "--image", file, "--like", "blue-0002") == {"blue"}
    code, output, _ = run(capsys, "search", "red", "--minus", "blue", "-k", "2", "--timings", "--address", address)
    assert code == 0
    assert output.startswith("2 images for “red − blue”")
    code, output, _ = run(capsys, "search", "red", "--pages", "3", *to)
    assert [hit["rank"] for hit in json.loads(output)["hits"]] == list(range(1, 16))
