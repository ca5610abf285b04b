"""The way that docs/training.md takes a newcomer, from a table of real pictures to answers, command by command."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from chain import ROOT, Machine

from data.pairs import ImageTextPair
from data.sources import open_source
from data.sources.openmoji import OpenMoji
from dual_encoder.bundle import CARD, METRICS, open_bundle

IMAGES = 320
SECTION = "## The way from a table to a server"


def documented() -> list[list[str]]:
    """Module and arguments of each command of the section, in its order."""
    text = (ROOT / "docs" / "training.md").read_text("utf-8").split(SECTION, 1)[1]
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None
    lines = [shlex.split(line) for line in block[1].splitlines()]
    assert all(words[:2] == ["python", "-m"] for words in lines)
    return [words[2:] for words in lines]


def pictures() -> list[ImageTextPair]:
    """Photographs of openstax where that data set is, else drawings; the same ones every time."""
    directory = Path(os.environ.get("DATASETS_DIR", "datasets")) / "openstax"
    if not directory.is_dir():
        return list(OpenMoji())[:: len(OpenMoji()) // IMAGES][:IMAGES]
    photographs = [pair for pair in open_source(f"jsonl:{directory}") if pair.attributes["kind"] == "photo"]
    return photographs[:: len(photographs) // IMAGES][:IMAGES]


def write_table(directory: Path, pairs: list[ImageTextPair]) -> None:
    (directory / "pictures").mkdir()
    with (directory / "my_pairs.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for number, pair in enumerate(pairs):
            name = f"pictures/{number}.img"  # what it is, its bytes say
            (directory / name).write_bytes(pair.image.read())
            table.writerows([name, caption] for caption in pair.captions)


@pytest.mark.slow  # tests/test_docs.py runs the same commands on a few drawings
@pytest.mark.timeout(1800)
def test_a_table_becomes_a_server_that_finds_its_pictures(tmp_path: Path) -> None:
    machine, pairs = Machine.at(tmp_path / "home"), pictures()
    write_table(tmp_path, pairs)
    *steps, serve, search = documented()
    said = {module: machine.done(module, *arguments, cwd=tmp_path, timeout=900) for module, *arguments in steps}

    assert set(said) >= {"data.doctor", "data.prepare", "dual_encoder.train", "dual_encoder.evaluate"}
    assert "because" in said["dual_encoder.train"].output, "the recipe was chosen, with reasons"
    bundle = open_bundle(tmp_path / "build" / "clean_model")
    assert bundle.manifest["trained"]["recipe"]["name"] == "auto"
    test = json.loads((bundle.path / METRICS).read_text("utf-8"))["test"]["text_to_image"]
    assert test["gallery"] > 10
    assert test["recall@10"] > 2 * 10 / test["gallery"], "well above chance on pictures that training never saw"
    assert "| test | text to image |" in (bundle.path / CARD).read_text("utf-8")
    assert (tmp_path / "build" / "clean_evaluation.html").stat().st_size > 10_000
    again = machine.done("dual_encoder.train", *steps[2][1:], cwd=tmp_path, timeout=900)
    assert "left as it is" in again.errors, "the same choice on the same machine is the same run"

    assert serve[0] == "serving.server"
    options = dict(zip(serve[1::2], serve[2::2], strict=True))
    with machine.server(tmp_path / options["--bundle"], tmp_path / options["--index"]) as served:
        arguments = [served.client.address if word == options["--address"] else word for word in search[1:]]
        assert "1.000" not in machine.done(search[0], *arguments, cwd=tmp_path).output, "a text is no picture"
        found = 0
        for number, pair in enumerate(pairs[:40]):
            hits = served.client.search(pair.captions[0], k=10)
            assert len(hits) == 10
            found += any(Path(hit.image_id).stem == str(number) for hit in hits)
        assert found >= 20, "most captions find their picture among the first ten of all"
