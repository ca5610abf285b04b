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


BUF = Path(sys.executable).parent / "buf"


def broken(tmp_path, change) -> str:
    """What `buf breaking` says of the published interface after `change` of the text of query.proto."""
    for name in ("buf.yaml", "protos"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    query = tmp_path / "protos" / "imageretrieval" / "v1" / "query.proto"
    text = query.read_text("utf-8")
    assert change(text) != text or change is unchanged
    query.write_text(change(text), "utf-8")
    command = [BUF, "breaking", "--against", "protos/published.binpb"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout


def unchanged(text):
    return text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (unchanged, ""),
        (lambda text: text.replace("int64 int_value = 2", "int64 int_value = 12"), "int_value"),
        (lambda text: text.replace("repeated float values = 1", "repeated double values = 1"), "values"),
        (lambda text: text.replace("string image_id = 3", "string identifier = 3"), "identifier"),
        (lambda text: text.replace("string text = 1;", "string text = 1;\n    // More.\n    string more = 77;"), ""),
    ],
    ids=["nothing", "a number", "a type", "a name", "a new field"],
)
def test_what_would_break_clients_fails_the_lint(tmp_path, change, told):
    said = broken(tmp_path, change)
    assert bool(said) is bool(told), said
    assert told in said
