"""Images are selected by their attributes; a condition that selects nothing is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.errors import SourceError
from data.selection import Selection
from data.sources import open_source


@pytest.fixture
def source(tmp_path: Path):
    attributes = [{"kind": "photo", "n": 1}, {"kind": "Art", "n": 2, "tags": ["a", "b"]}, {"kind": "diagram"}, {}]
    rows = [{"image": f"{number}.jpg", "attributes": each} for number, each in enumerate(attributes)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_source(f"jsonl:{tmp_path}")


@pytest.mark.parametrize(
    ("conditions", "ids"),
    [
        (["kind=photo"], ["0.jpg"]),
        (["kind=art, photo"], ["0.jpg", "1.jpg"]),
        (["kind=photo,art", "n=2"], ["1.jpg"]),
        (["tags=b"], ["1.jpg"]),
    ],
)
def test_pairs_that_meet_every_condition_are_selected(conditions: list[str], ids: list[str], source) -> None:
    selection = Selection(source, conditions)
    assert [pair.image_id for pair in selection] == ids
    assert len(selection) == len(ids)
    assert all(condition in selection.name for condition in conditions)


@pytest.mark.parametrize("condition", ["kind", "=photo", "kind=", "kind=,"])
def test_a_malformed_condition_is_refused(condition: str, source) -> None:
    with pytest.raises(SourceError, match="ATTRIBUTE=VALUE"):
        Selection(source, [condition])


def test_an_empty_selection_is_refused(source) -> None:
    with pytest.raises(SourceError, match="none in jsonl:"):
        Selection(source, ["kind=film"])
