"""Both clients and the command line look after the index of a real server by operations."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from either_client import BlockingClient
from fakes import ColourRuntime, ListSource, picture
from server_process import running

from serving import client as client_module
from serving.client import SearchClient, ServiceError, Upload
from serving.index_job import build_index

RUNTIME = ColourRuntime()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    out = tmp_path_factory.mktemp("served")
    build_index(RUNTIME, ListSource(), out)
    (out / "bundles" / RUNTIME.fingerprint).mkdir(parents=True)
    backups = tmp_path_factory.mktemp("backups")
    with running(out, "writable", f"--backup-directory={backups}") as (_, address):
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        yield address


@pytest.fixture(params=[SearchClient, BlockingClient], ids=["sync", "async"])
def client(request, address):
    with request.param(address, timeout=30) as client:
        yield client


def test_what_is_begun_is_waited_for_and_fails_as_a_call_does(client):
    told = client.status()
    assert told.writable
    assert {"colour", "number"} <= {attribute.name for attribute in told.attributes}
    assert [snapshot.name for snapshot in client.snapshots() if snapshot.live] == [told.snapshot]
    with pytest.raises(ServiceError, match="bundles") as refusal:  # this server's model is no file
        client.wait(client.verify().name, timeout=60)
    assert (refusal.value.code, refusal.value.reason) == ("DATA_LOSS", "INDEX_DAMAGED")
    latest = client.operations()[0]
    assert (latest.method, latest.done, latest.error.code) == ("VerifyIndex", True, "DATA_LOSS")
    assert latest.end_time >= latest.create_time


def test_an_operation_can_be_waited_for_in_vain_and_be_stopped(client):
    begun = client.build("slow")
    with pytest.raises(ServiceError) as refusal:
        client.publish()
    assert refusal.value.reason == "OPERATION_RUNNING"
    assert refusal.value.preconditions[0].subject == begun.name
    with pytest.raises(ServiceError, match="was not done after") as refusal:
        client.wait(begun, timeout=0.01)
    assert refusal.value.code == "DEADLINE_EXCEEDED"
    assert not client.get_operation(begun.name).done
    client.cancel_operation(begun.name)
    with pytest.raises(ServiceError) as refusal:
        client.wait(begun)
    assert (refusal.value.code, refusal.value.reason) == ("CANCELLED", "OPERATION_CANCELLED")
    with pytest.raises(ServiceError) as refusal:
        client.get_operation("operations/999")
    assert refusal.value.resource.name == "operations/999"


def run(capsys, address, *arguments):
    code = client_module.main([*arguments, "--address", address])
    return (code, *capsys.readouterr())


def test_the_command_line_publishes_takes_back_and_backs_up(capsys, address):
    with SearchClient(address) as client:
        client.upsert_image(Upload("own", picture("red")))
    code, output, _ = run(capsys, address, "publish", "--json")
    published = json.loads(output)
    assert (code, published["method"], published["done"]) == (0, "PublishIndex", True)
    code, output, _ = run(capsys, address, "snapshots")
    assert code == 0
    assert re.search(rf"live\W+{published['result']}", output)
    code, output, _ = run(capsys, address, "snapshots", "--json")
    kept = json.loads(output)
    assert [one["live"] for one in kept if one["name"] == published["result"]] == [True]
    (before, *_) = (one["name"] for one in kept if not one["live"])
    code, output, _ = run(capsys, address, "rollback", before)
    assert code == 0
    assert before in output
    code, output, _ = run(capsys, address, "backup", "monday.tar")
    assert code == 0
    assert Path(output.split(": ")[1].strip()).stat().st_size
    code, output, errors = run(capsys, address, "verify")
    assert (code, output) == (1, "")
    assert "DATA_LOSS: not as they were written: bundles" in errors
    with SearchClient(address) as client:
        assert client.get_image("own")
    code, output, _ = run(capsys, address, "operations")
    assert code == 0
    assert output.index("VerifyIndex") < output.index("BackUpIndex") < output.index("RollBackIndex")


def test_the_command_line_tells_of_operations_that_fail_or_go_on(capsys, address):
    code, output, errors = run(capsys, address, "build", "bad")
    assert (code, output) == (1, "")
    assert re.search(r"error: operations/\d+: FAILED_PRECONDITION", errors)
    code, output, _ = run(capsys, address, "build", "slow", "--no-wait")
    assert code == 0
    name = output.strip()
    code, output, _ = run(capsys, address, "operations", "--json")
    assert [one["done"] for one in json.loads(output) if one["name"] == name] == [False]
    assert run(capsys, address, "cancel", name)[0] == 0
    code, _, errors = run(capsys, address, "rollback", "yesterday")
    assert code == 2
    assert "snapshot" in errors
