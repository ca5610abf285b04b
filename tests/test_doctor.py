"""The doctor lists what should not be learned from, keeps copies together, changes nothing, and prepare obeys."""

from __future__ import annotations

import json
import shutil
from itertools import permutations
from pathlib import Path

from PIL import Image
from shapes import write_shapes

from data.doctor import join_groups, main
from data.prepare import main as prepare
from data.quarantine import read_entries
from data.sources import open_source


def dirty(directory: Path) -> str:
    source = write_shapes(directory)
    rows = [json.loads(line) for line in (directory / "captions.jsonl").read_text("utf-8").splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    test = next(row for row in rows if row["split"] == "test")
    Image.new("RGB", (64, 64), "grey").save(directory / train[0]["image"])
    Image.new("RGB", (8, 64), "grey").save(directory / train[1]["image"])
    (directory / train[2]["image"]).write_bytes(b"not an image")
    shutil.copy(directory / test["image"], directory / train[3]["image"])
    shutil.copy(directory / test["image"], directory / train[7]["image"])
    shutil.copy(directory / train[5]["image"], directory / train[4]["image"])
    train[6]["captions"] = ["IMG_1234.jpg", "a blue circle"]
    (directory / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return source


def test_every_defect_is_listed_and_nothing_else(tmp_path: Path) -> None:
    source = dirty(tmp_path / "shapes")
    before = {path: path.read_bytes() for path in (tmp_path / "shapes").rglob("*") if path.is_file()}
    options = ["--data", source, "--out", str(tmp_path / "doctor"), "--only", "images,captions"]
    assert main(options) == 0
    assert main([*options, "--strict"]) == 1
    train = [pair for pair in open_source(source) if pair.split == "train"]
    found = {(entry.image_id, entry.reason) for entry in read_entries(tmp_path / "doctor" / "quarantine.jsonl")}
    assert found == {
        (train[0].image_id, "blank image"),
        (train[1].image_id, "tiny image"),
        (train[2].image_id, "image not an image"),
        (train[3].image_id, "copy of a test image"),
        (train[7].image_id, "copy of a test image"),
        (train[6].image_id, "file name as caption"),
    }
    assert {path: path.read_bytes() for path in before} == before
    lists = ["--quarantine", f"{tmp_path}/doctor/quarantine.jsonl", "--groups", f"{tmp_path}/doctor/groups.jsonl"]
    assert prepare(["--data", source, "--out", str(tmp_path / "prepared"), *lists]) == 0
    left = {pair.image_id: pair for pair in open_source(str(tmp_path / "prepared"))}
    assert not {pair.image_id for pair in train[:4]} & set(left)
    assert left[train[4].image_id].group == left[train[5].image_id].group is not None
    assert left[train[6].image_id].captions == ("a blue circle",)


def test_groups_with_an_image_in_common_become_one_with_all_their_images() -> None:
    one, two = ("a", "first", None), ("b", "second", None)
    found = join_groups(
        [[one, two], [("c", "second", None)], [("d", "first", None)], [("e", "other", None)], [("f", None, None)]]
    )
    assert set(found) == {"a", "b", "c", "d"}
    assert len(set(found.values())) == 1


def test_a_chain_of_copies_is_one_group_in_any_order() -> None:
    sets = [
        [("a", None, None), ("b", "g", None)],
        [("c", "g", None), ("d", "h", None)],
        [("e", "h", None), ("f", None, None)],
    ]
    for order in permutations(sets):
        found = join_groups(order)
        assert set(found) == set("abcdef")
        assert len(set(found.values())) == 1
