"""ImageService of a real server: every method, refusals with their details, and a server that is killed while images
stream in."""

from __future__ import annotations

import itertools
import shutil
import signal
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from fakes import COLOURS, ColourRuntime, ListSource, picture
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2
from server_process import running
from test_grpc_service import refused

from protos.imageretrieval.v1 import image_service_pb2 as pb
from protos.imageretrieval.v1 import image_service_pb2_grpc, query_pb2
from serving.client import SearchClient
from serving.index_job import build_index

RUNTIME = ColourRuntime()
TEXT = query_pb2.AttributeValue(string_value="red")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("images")
    build_index(RUNTIME, ListSource(), out)
    return out


@pytest.fixture
def index(built, tmp_path):
    return Path(shutil.copytree(built, tmp_path / "index"))


@pytest.fixture(scope="module")
def server(built, tmp_path_factory):
    """One for all tests that ask it; each has ids of its own."""
    index = Path(shutil.copytree(built, tmp_path_factory.mktemp("served") / "index"))
    with running(index, "writable", "isolated") as (_, address), SearchClient(address) as client:
        client.wait_until_ready(30)
        yield client, address


@pytest.fixture
def client(server):
    return server[0]


@pytest.fixture
def images(server):
    with grpc.insecure_channel(server[1]) as channel:
        yield image_service_pb2_grpc.ImageServiceStub(channel)


def upsert(name, **fields):
    return pb.UpsertImageRequest(**{"image_id": name, "data": picture("red", seed=9), **fields})


def test_an_image_is_added_found_looked_up_and_removed(client, images):
    taken = Timestamp(seconds=1_700_000_000)
    attributes = {"kind": TEXT, "taken": query_pb2.AttributeValue(timestamp_value=taken)}
    added = images.UpsertImage(upsert("new", captions=["a new one"], attributes=attributes, if_version=0))
    assert added.model_revision == RUNTIME.fingerprint
    (hit,) = client.search("red", filter='kind = "red"')
    assert (hit.image_id, hit.captions) == ("new", ("a new one",))
    got = images.GetImage(pb.GetImageRequest(image_id="new"))
    assert (got.image.version, list(got.image.captions)) == (added.version, ["a new one"])
    assert dict(got.image.attributes) == attributes
    assert not got.image.HasField("vector")
    assert got.index_revision == client.search("red", k=1).index_revision
    mask = FieldMask(paths=["vector", "attributes.kind"])
    got = images.GetImage(pb.GetImageRequest(image_id="new", read_mask=mask)).image
    assert (got.image_id, dict(got.attributes)) == ("", {"kind": TEXT})
    expected = RUNTIME.embed_images([picture("red", seed=9)])[0].astype(np.float16)
    assert list(got.vector.values) == expected.tolist()
    removed = images.DeleteImage(pb.DeleteImageRequest(image_id="new", if_version=added.version))
    assert removed.version > added.version
    code, details = refused(images.GetImage, pb.GetImageRequest(image_id="new"))
    assert code == grpc.StatusCode.NOT_FOUND
    assert details["ResourceInfo"]["resource_name"] == "new"


def test_many_images_are_looked_up_listed_and_removed(images):
    got = images.BatchGetImages(pb.BatchGetImagesRequest(image_ids=["red-0000", "nobody", "blue-0002"]))
    assert [image.image_id for image in got.images] == ["red-0000", "blue-0002"]
    assert list(got.missing_image_ids) == ["nobody"]
    request, seen = pb.ListImagesRequest(page_size=6, filter='colour IN ("red", "blue")'), []
    while True:
        page = images.ListImages(request)
        seen += [image.image_id for image in page.images]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    expected = [pair.image_id for pair in ListSource().pairs if pair.attributes["colour"] in ("red", "blue")]
    assert seen == sorted(expected)
    removed = images.BatchDeleteImages(pb.BatchDeleteImagesRequest(image_ids=expected))
    assert len(removed.versions) == len(expected)
    assert not images.ListImages(pb.ListImagesRequest(filter='colour IN ("red", "blue")')).images


def test_a_vector_is_taken_in_every_form(images):
    vector = RUNTIME.embed_texts(["red"])[0]
    half = query_pb2.Vector.DATA_TYPE_FLOAT16
    for name, sent in (
        ("values", query_pb2.Vector(values=vector.tolist())),
        ("half", query_pb2.Vector(data=vector.astype("<f2").tobytes(), data_type=half)),
    ):
        images.UpsertImage(pb.UpsertImageRequest(image_id=name, vector=sent))
        got = images.GetImage(pb.GetImageRequest(image_id=name, read_mask=FieldMask(paths=["*"]))).image
        np.testing.assert_allclose(got.vector.values, vector, atol=1e-3)
        assert got.digest == ""


def test_a_repeated_request_changes_nothing_and_another_with_its_id_is_refused(images):
    request = upsert("again", request_id="r1")
    first = images.UpsertImage(request)
    assert images.UpsertImage(request) == first
    code, details = refused(images.UpsertImage, upsert("other", request_id="r1"))
    assert code == grpc.StatusCode.ALREADY_EXISTS
    assert details["ErrorInfo"]["reason"] == "REQUEST_ID_REUSED"


def test_a_change_of_what_has_changed_meanwhile_is_refused_with_the_version(images):
    version = images.UpsertImage(upsert("changed")).version
    for call, request in (
        (images.UpsertImage, upsert("changed", if_version=0)),
        (images.DeleteImage, pb.DeleteImageRequest(image_id="changed", if_version=1)),
    ):
        code, details = refused(call, request)
        assert code == grpc.StatusCode.ABORTED
        assert details["ErrorInfo"]["reason"] == "VERSION_CONFLICT"
        assert details["ErrorInfo"]["metadata"] == {"current_version": str(version)}
        assert details["PreconditionFailure"]["violations"][0]["subject"] == "changed"


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("content", pb.UpsertImageRequest(image_id="x")),
        ("image_id", upsert("")),
        ("data", upsert("x", data=b"no image")),
        ("attributes['a']", upsert("x", attributes={"a": query_pb2.AttributeValue()})),
        (
            "attributes['a']",
            upsert("x", attributes={"a": query_pb2.AttributeValue(timestamp_value=Timestamp(seconds=2**62))}),
        ),
        ("attributes", upsert("x", attributes={"a": query_pb2.AttributeValue(double_value=float("nan"))})),
        ("vector", pb.UpsertImageRequest(image_id="x", vector=query_pb2.Vector(values=[1.0]))),
        ("request_id", upsert("x", request_id="k" * 300)),
    ],
)
def test_what_breaks_a_limit_is_refused_with_its_field(images, field, request_):
    code, details = refused(images.UpsertImage, request_)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details["BadRequest"]["field_violations"][0]["field"] == field
    assert details["ErrorInfo"]["reason"] == ("INVALID_IMAGE" if field == "data" else "INVALID_QUERY")


def test_one_bad_image_does_not_end_a_stream(client, images):
    def requests():
        for tag in range(100):
            data = b"no image" if tag % 10 == 3 else picture(list(COLOURS)[tag % 8], seed=tag)
            yield pb.StreamUpsertImagesRequest(tag=tag, request=upsert(f"s{tag}", data=data))

    answers = {answer.tag: answer for answer in images.StreamUpsertImages(requests())}
    assert sorted(answers) == list(range(100))
    for tag, answer in answers.items():
        assert answer.WhichOneof("result") == ("error" if tag % 10 == 3 else "response")
    error = answers[3].error
    assert error.code == code_pb2.INVALID_ARGUMENT
    assert any(detail.Is(error_details_pb2.BadRequest.DESCRIPTOR) for detail in error.details)
    stored = images.BatchGetImages(pb.BatchGetImagesRequest(image_ids=[f"s{tag}" for tag in range(100)]))
    assert len(stored.images) == 90
    assert list(stored.missing_image_ids) == [f"s{tag}" for tag in range(3, 100, 10)]


def test_a_server_that_was_not_told_to_accept_changes_refuses_them(index):
    with running(index) as (_, address), SearchClient(address) as client, grpc.insecure_channel(address) as channel:
        client.wait_until_ready(30)
        images = image_service_pb2_grpc.ImageServiceStub(channel)
        for call, request in (
            (images.UpsertImage, upsert("x")),
            (images.DeleteImage, pb.DeleteImageRequest(image_id="x")),
            (images.BatchDeleteImages, pb.BatchDeleteImagesRequest(image_ids=["x"])),
        ):
            code, details = refused(call, request)
            assert code == grpc.StatusCode.UNIMPLEMENTED
            assert details["ErrorInfo"]["reason"] == "READ_ONLY"
        assert images.GetImage(pb.GetImageRequest(image_id="red-0000")).image.version == 1


def stream_until_killed(index, seed: int, acknowledged: dict[str, int], after: int) -> None:
    """Stream changes of a few ids into a server and kill it after some were answered; `acknowledged` learns which
    change of each id, by its number, was the last."""
    pictures = [picture(colour, seed=seed) for colour in COLOURS]
    with running(index, "writable") as (process, address), SearchClient(address) as client:
        client.wait_until_ready(30)
        with grpc.insecure_channel(address) as channel:
            numbers = itertools.count(seed * 1_000_000)
            room = threading.Semaphore(16)

            def requests():
                for number in numbers:
                    room.acquire()
                    name = f"k{number % 500}"
                    attributes = {"number": query_pb2.AttributeValue(int_value=number)}
                    data = pictures[number % len(pictures)]
                    request = upsert(name, data=data, attributes=attributes, request_id=f"r{number}")
                    yield pb.StreamUpsertImagesRequest(tag=number, request=request)

            try:
                for count, answer in enumerate(image_service_pb2_grpc.ImageServiceStub(channel).StreamUpsertImages(
                    requests()
                )):  # fmt: skip
                    assert answer.HasField("response"), answer.error
                    acknowledged[f"k{answer.tag % 500}"] = answer.tag
                    room.release()
                    if count == after:
                        process.send_signal(signal.SIGKILL)
            except grpc.RpcError:
                assert process.wait() == -signal.SIGKILL  # nothing else ends a stream
            finally:
                room.release(1_000_000)


def check_nothing_lost(index, acknowledged: dict[str, int]) -> None:
    with running(index, "writable") as (_, address), SearchClient(address) as client:
        client.wait_until_ready(30)
        with grpc.insecure_channel(address) as channel:
            images = image_service_pb2_grpc.ImageServiceStub(channel)
            got = images.BatchGetImages(pb.BatchGetImagesRequest(image_ids=sorted(acknowledged)))
            assert not got.missing_image_ids
            for image in got.images:
                assert image.attributes["number"].int_value >= acknowledged[image.image_id]
            # a request that was answered is answered as before
            name, number = next(iter(acknowledged.items()))
            data = [picture(colour, seed=number // 1_000_000) for colour in COLOURS][number % len(COLOURS)]
            attributes = {"number": query_pb2.AttributeValue(int_value=number)}
            again = images.UpsertImage(upsert(name, data=data, attributes=attributes, request_id=f"r{number}"))
            stored = {image.image_id: image for image in got.images}[name]
            if stored.attributes["number"].int_value == number:
                assert again.version == stored.version


def test_nothing_acknowledged_is_lost_when_the_server_is_killed_while_images_stream_in(index):
    acknowledged: dict[str, int] = {}
    stream_until_killed(index, 1, acknowledged, after=150)
    assert acknowledged
    check_nothing_lost(index, acknowledged)


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_in_many_kills_with_compactions_between(index):
    from serving.compaction import compact

    acknowledged: dict[str, int] = {}
    for seed in range(1, 9):
        stream_until_killed(index, seed, acknowledged, after=100 * seed)
        check_nothing_lost(index, acknowledged)
        if seed % 3 == 0:
            compact(index)
    check_nothing_lost(index, acknowledged)
