"""IndexService and OperationService of a real server: what is told of an index, and operations on it from their
beginning to their end."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
import pytest
from fakes import ColourRuntime, ListSource, picture
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2
from server_process import running
from test_grpc_service import refused

from protos.imageretrieval.v1 import (
    image_service_pb2,
    image_service_pb2_grpc,
    index_service_pb2,
    index_service_pb2_grpc,
    operation_service_pb2,
    operation_service_pb2_grpc,
)
from serving.builder_lock import only_builder
from serving.client import SearchClient
from serving.index_job import build_index
from serving.snapshot import current_name

RUNTIME = ColourRuntime()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    out = tmp_path_factory.mktemp("kept")
    build_index(RUNTIME, ListSource(), out)
    (out / "bundles" / RUNTIME.fingerprint).mkdir(parents=True)
    return out


@pytest.fixture(scope="module")
def address(index, tmp_path_factory):
    backups = tmp_path_factory.mktemp("backups")
    with running(index, "writable", f"--backup-directory={backups}") as (process, address):
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


@pytest.fixture
def channel(address):
    with grpc.insecure_channel(address) as channel:
        yield channel


@pytest.fixture
def indexes(channel):
    return index_service_pb2_grpc.IndexServiceStub(channel)


@pytest.fixture
def operations(channel):
    return operation_service_pb2_grpc.OperationServiceStub(channel)


def done(operations, response):
    """The operation when it is done."""
    request = operation_service_pb2.WaitOperationRequest(name=response.operation.name)
    return operations.WaitOperation(request, timeout=60).operation


def reason(error):
    info = error_details_pb2.ErrorInfo()
    assert error.details[0].Unpack(info)
    return info.reason


def test_an_index_is_told_with_its_attributes(indexes):
    told = indexes.GetIndex(index_service_pb2.GetIndexRequest()).index
    assert told.writable
    known = {(summary.name, summary.kind): summary for summary in told.attributes}
    assert sorted(known) == [
        ("colour", "string"), ("even", "bool"), ("number", "number"), ("share", "number"), ("tags", "strings"),
        ("taken", "timestamp"),
    ]  # fmt: skip
    assert {summary.image_count for summary in known.values()} == {told.image_count}
    assert len(known["colour", "string"].frequent_values) == 8
    assert known["tags", "strings"].frequent_values[0] == "drawn"
    assert not known["number", "number"].frequent_values


def test_changes_are_published_and_taken_back_and_none_is_lost(index, channel, indexes, operations):
    images = image_service_pb2_grpc.ImageServiceStub(channel)
    images.UpsertImage(image_service_pb2.UpsertImageRequest(image_id="own", data=picture("red")))
    before = indexes.GetIndex(index_service_pb2.GetIndexRequest()).index
    assert before.change_count == 1
    published = done(operations, indexes.PublishIndex(index_service_pb2.PublishIndexRequest()))
    assert (published.method, published.result) == ("PublishIndex", current_name(index))
    after = indexes.GetIndex(index_service_pb2.GetIndexRequest()).index
    assert (after.snapshot, after.change_count, after.image_count) == (published.result, 0, before.image_count)
    snapshots = indexes.ListSnapshots(index_service_pb2.ListSnapshotsRequest()).snapshots
    assert [(found.name, found.live) for found in snapshots] == [(after.snapshot, True), (before.snapshot, False)]
    back = done(operations, indexes.RollBackIndex(index_service_pb2.RollBackIndexRequest()))
    assert back.result == before.snapshot
    images.GetImage(image_service_pb2.GetImageRequest(image_id="own"))
    assert indexes.GetIndex(index_service_pb2.GetIndexRequest()).index.change_count == 1


def test_a_build_takes_the_place_of_what_batch_jobs_brought(channel, indexes, operations):
    built = done(operations, indexes.BuildIndex(index_service_pb2.BuildIndexRequest(source="48")))
    told = indexes.GetIndex(index_service_pb2.GetIndexRequest()).index
    assert (told.snapshot, told.source) == (built.result, "colours:48")
    refusal = done(operations, indexes.BuildIndex(index_service_pb2.BuildIndexRequest(source="bad")))
    assert (refusal.error.code, reason(refusal.error)) == (code_pb2.FAILED_PRECONDITION, "OPERATION_FAILED")
    assert "a data set" in refusal.error.message
    assert indexes.GetIndex(index_service_pb2.GetIndexRequest()).index.snapshot == built.result


def test_one_publishes_at_a_time_and_may_be_cancelled(index, indexes, operations):
    live = current_name(index)
    begun = indexes.BuildIndex(index_service_pb2.BuildIndexRequest(source="slow")).operation
    code, details = refused(indexes.PublishIndex, index_service_pb2.PublishIndexRequest())
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert details["ErrorInfo"]["reason"] == "OPERATION_RUNNING"
    assert details["PreconditionFailure"]["violations"][0]["subject"] == begun.name
    soon = operation_service_pb2.WaitOperationRequest(name=begun.name, timeout=Duration(nanos=1_000_000))
    assert not operations.WaitOperation(soon).operation.done
    assert not operations.WaitOperation(soon, timeout=1).operation.done
    operations.CancelOperation(operation_service_pb2.CancelOperationRequest(name=begun.name))
    ended = operations.WaitOperation(operation_service_pb2.WaitOperationRequest(name=begun.name)).operation
    assert (ended.error.code, reason(ended.error)) == (code_pb2.CANCELLED, "OPERATION_CANCELLED")
    assert current_name(index) == live
    listed = operations.ListOperations(operation_service_pb2.ListOperationsRequest()).operations
    assert listed[0] == operations.GetOperation(operation_service_pb2.GetOperationRequest(name=begun.name)).operation


def test_what_publishes_waits_for_a_compaction_of_the_server(index, channel, indexes, operations):
    images = image_service_pb2_grpc.ImageServiceStub(channel)
    images.UpsertImage(image_service_pb2.UpsertImageRequest(image_id="late", data=picture("blue")))
    with only_builder(index, "compaction"):
        begun = indexes.PublishIndex(index_service_pb2.PublishIndexRequest()).operation
        asked = operation_service_pb2.WaitOperationRequest(name=begun.name, timeout=Duration(nanos=50_000_000))
        while not (now := operations.WaitOperation(asked).operation).progress and not now.done:
            pass
        assert "waiting for a compaction" in now.progress
    ended = operations.WaitOperation(operation_service_pb2.WaitOperationRequest(name=begun.name)).operation
    assert ended.result == current_name(index)
    assert indexes.GetIndex(index_service_pb2.GetIndexRequest()).index.change_count == 0


def test_an_operation_that_is_not_there_is_not_found(operations):
    for call, request in (
        (operations.GetOperation, operation_service_pb2.GetOperationRequest(name="operations/999")),
        (operations.WaitOperation, operation_service_pb2.WaitOperationRequest(name="")),
        (operations.CancelOperation, operation_service_pb2.CancelOperationRequest(name="x")),
    ):
        code, details = refused(call, request)
        assert code == grpc.StatusCode.NOT_FOUND
        assert details["ErrorInfo"]["reason"] == "OPERATION_NOT_FOUND"


def test_backups_go_to_their_directory_alone(indexes, operations):
    made = done(operations, indexes.BackUpIndex(index_service_pb2.BackUpIndexRequest(name="monday.tar")))
    assert made.result.endswith("/monday.tar")
    assert Path(made.result).stat().st_size
    for name in ("monday.tar", "", ".hidden", "../up", "a/b", "a" * 101, "ä"):
        code, details = refused(indexes.BackUpIndex, index_service_pb2.BackUpIndexRequest(name=name))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert details["BadRequest"]["field_violations"][0]["field"] == "name"


def test_what_is_not_there_is_refused_before_it_begins(indexes):
    for call, request, field in (
        (indexes.RollBackIndex, index_service_pb2.RollBackIndexRequest(snapshot="yesterday"), "snapshot"),
        (indexes.BuildIndex, index_service_pb2.BuildIndexRequest(), "source"),
    ):
        code, details = refused(call, request)
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert details["BadRequest"]["field_violations"][0]["field"] == field


def test_damage_is_found_and_named(tmp_path):
    build_index(RUNTIME, ListSource(), tmp_path)
    with running(tmp_path) as (process, address), SearchClient(address) as client:
        client.wait_until_ready(30)
        with grpc.insecure_channel(address) as channel:
            indexes = index_service_pb2_grpc.IndexServiceStub(channel)
            operations = operation_service_pb2_grpc.OperationServiceStub(channel)
            whole = done(operations, indexes.VerifyIndex(index_service_pb2.VerifyIndexRequest()))
            assert (whole.WhichOneof("outcome"), whole.result) == ("result", "")
            snapshot = f"snapshots/{current_name(tmp_path)}"
            (tmp_path / snapshot / "catalog.sqlite").chmod(0o600)
            with (tmp_path / snapshot / "catalog.sqlite").open("r+b") as file:
                file.seek(5_000)
                file.write(b"damaged")
            found = done(operations, indexes.VerifyIndex(index_service_pb2.VerifyIndexRequest()))
            assert (found.error.code, reason(found.error)) == (code_pb2.DATA_LOSS, "INDEX_DAMAGED")
            assert current_name(tmp_path) in found.error.message
            # no backups without a directory for them; and jobs end with their server
            code, details = refused(indexes.BackUpIndex, index_service_pb2.BackUpIndexRequest(name="x"))
            assert (code, details["ErrorInfo"]["reason"]) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_OFFERED")
            (tmp_path / "bundles" / RUNTIME.fingerprint).mkdir(parents=True)
            begun = indexes.BuildIndex(index_service_pb2.BuildIndexRequest(source="slow"))
            waiting = operations.WaitOperation.future(
                operation_service_pb2.WaitOperationRequest(name=begun.operation.name)
            )
            process.send_signal(signal.SIGTERM)
            assert waiting.result().operation.error.code == code_pb2.CANCELLED
        assert process.wait(timeout=30) == 0
