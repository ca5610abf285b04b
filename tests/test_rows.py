"""What no row may hold is refused with its place, before it can harm what comes after."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from data.errors import ImageError, SourceError, UserError
from data.pairs import ImageFile
from data.prepare import pairs_digest
from data.sources import open_source, rows


@pytest.mark.parametrize("name", ["x" * 256 + ".jpg", "ü" * 128, "/".join(["d" * 100] * 30)])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": name}) + "\n")
    with pytest.raises(SourceError, match=r"captions\.jsonl, line 1"):
        pairs_digest(open_source(f"jsonl:{tmp_path}"))


@pytest.mark.parametrize("attributes", [{"\ud800": 1}, {"a": "\udfff"}, {"a": ["b", "\ud800"]}])
def test_half_characters_in_attributes_are_refused(attributes: dict, tmp_path: Path) -> None:
    rows_file = tmp_path / "captions.jsonl"
    rows_file.write_text('{"image": "a.jpg"}\n' + json.dumps({"image": "b.jpg", "attributes": attributes}) + "\n")
    with pytest.raises(SourceError, match=r"Unicode.* line 2"):
        list(open_source(f"jsonl:{tmp_path}"))


def test_times_in_attributes_are_written_as_objects(tmp_path: Path) -> None:
    attributes = {"taken": {"$timestamp": "2024-05-17T14:00:00+02:00"}, "text": "2024-05-17T14:00:00+02:00"}
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "a.jpg", "attributes": attributes}) + "\n")
    (pair,) = open_source(f"jsonl:{tmp_path}")
    assert pair.attributes == {**attributes, "taken": datetime(2024, 5, 17, 12, tzinfo=UTC)}


@pytest.mark.parametrize(("scheme", "file"), [("jsonl", "captions.jsonl"), ("imagefolder", "metadata.jsonl")])
def test_a_file_that_is_one_endless_line_is_refused_before_it_fills_memory(
    scheme: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1000)
    key = "image" if scheme == "jsonl" else "file_name"
    good = json.dumps({key: "a.jpg"})
    (tmp_path / file).write_text(f"{good}\n{' ' * 900}\n")
    assert len(open_source(f"{scheme}:{tmp_path}")) == 1
    (tmp_path / file).write_text(f"{good}\n" + json.dumps([{key: f"{number}.jpg"} for number in range(100)]))
    with pytest.raises(SourceError, match="one JSON array") as caught:
        list(open_source(f"{scheme}:{tmp_path}"))
    assert file in str(caught.value)


def test_errors_can_be_shown_whatever_a_file_is_called(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        ImageFile(tmp_path / os.fsdecode(b"caf\xe9.jpg")).read()
    assert "caf\\udce9.jpg" in caught.value.received.encode("utf-8").decode()
    assert str(UserError("\ud800", "\ud801", "\ud802")).encode("utf-8")
