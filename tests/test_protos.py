"""The committed stubs are those of the .proto files, and import without path tricks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import generate_protos

ROOT = Path(__file__).resolve().parent.parent


def test_the_committed_stubs_are_up_to_date():
    assert generate_protos.main(["--check"]) == 0


def test_a_changed_stub_is_noticed_and_repaired(tmp_path, monkeypatch):
    copy = tmp_path / "protos"
    shutil.copytree(ROOT / "protos", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(generate_protos, "PROTOS", copy)
    changed = copy / "imageretrieval" / "v1" / "query_pb2.pyi"
    changed.write_text(changed.read_text() + "\n")
    (copy / "imageretrieval" / "v1" / "stale_pb2.py").touch()
    assert generate_protos.main(["--check"]) == 1
    assert generate_protos.main([]) == 0
    assert generate_protos.main(["--check"]) == 0
    assert not (copy / "imageretrieval" / "v1" / "stale_pb2.py").exists()


@pytest.mark.parametrize("module", ["search_service", "embedding_service", "index_service"])
def test_stubs_import_as_modules_of_the_project_without_warnings(module):
    code = f"from protos.imageretrieval.v1 import {module}_pb2, {module}_pb2_grpc"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True, timeout=60)


def test_field_numbers_are_those_that_clients_were_built_with():
    from protos.imageretrieval.v1 import index_service_pb2, query_pb2, search_service_pb2

    def numbers(message):
        return {field.name: field.number for field in message.DESCRIPTOR.fields}

    assert numbers(query_pb2.Query) == {"text": 1, "image": 2, "image_id": 3, "vector": 4}
    assert numbers(query_pb2.Vector) == {"values": 1}
    assert numbers(search_service_pb2.SearchRequest) == {"query": 1, "page_size": 2, "min_score": 4, "filter": 5}
    assert numbers(search_service_pb2.SearchResponse) == {"hits": 1, "model_revision": 3, "index_revision": 4}
    assert numbers(search_service_pb2.SearchHit) == {
        "image_id": 1, "score": 2, "rank": 3, "captions": 4, "attributes": 5,
    }  # fmt: skip
    assert list(numbers(index_service_pb2.Index).values()) == list(range(1, 9))
