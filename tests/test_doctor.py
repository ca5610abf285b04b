"""The doctor lists what should not be learned from, keeps copies together, changes nothing, and prepare obeys."""

from __future__ import annotations

import json
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from shapes import write_shapes

from data.doctor import main
from data.groups import join_groups
from data.prepare import main as prepare
from data.quarantine import read_entries
from data.sources import open_source


def pattern(seed: int) -> Image.Image:
    """A picture like no other: six by five patches of random colours."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(patches).resize((96, 80), Image.Resampling.BICUBIC)


def dirty(directory: Path) -> str:
    source = write_shapes(directory)
    rows = [json.loads(line) for line in (directory / "captions.jsonl").read_text("utf-8").splitlines()]
    for seed, row in enumerate(rows):
        pattern(seed).save(directory / row["image"])
    train = [row for row in rows if row["split"] == "train"]
    test, validation = (next(row for row in rows if row["split"] == split) for split in ("test", "validation"))
    Image.new("RGB", (64, 64), "grey").save(directory / train[0]["image"])
    pattern(1).resize((8, 64)).save(directory / train[1]["image"])
    (directory / train[2]["image"]).write_bytes(b"not an image")
    shutil.copy(directory / test["image"], directory / train[3]["image"])
    shutil.copy(directory / test["image"], directory / train[7]["image"])
    shutil.copy(directory / train[5]["image"], directory / train[4]["image"])
    train[6]["captions"] = ["IMG_1234.jpg", "a blue circle"]
    with Image.open(directory / test["image"]) as image:
        ImageOps.mirror(image).resize((60, 50)).save(directory / train[8]["image"], "JPEG", quality=60)
    shutil.copy(directory / validation["image"], directory / train[9]["image"])
    train[9]["group"] = train[10]["group"] = "a group of training images"
    pattern(99).resize((600, 50)).save(directory / train[11]["image"])
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
        (train[8].image_id, "near copy of a test image"),
        (train[9].image_id, "copy of a validation image"),
    }
    figures = json.loads((tmp_path / "doctor" / "report.json").read_text("utf-8"))
    assert (figures["identical images"], figures["near-duplicate images"]) == (4, 1)
    assert figures["worth a look"] == {"extreme aspect ratio": 1}
    assert {path: path.read_bytes() for path in before} == before
    lists = ["--quarantine", f"{tmp_path}/doctor/quarantine.jsonl", "--groups", f"{tmp_path}/doctor/groups.jsonl"]
    assert prepare(["--data", source, "--out", str(tmp_path / "prepared"), *lists]) == 0
    left = {pair.image_id: pair for pair in open_source(str(tmp_path / "prepared"))}
    assert not {pair.image_id for pair in (*train[:4], *train[7:10])} & set(left)
    assert left[train[10].image_id].split == "train", "the group of a copy that is left out stays"
    assert left[train[4].image_id].group == left[train[5].image_id].group is not None
    assert left[train[6].image_id].captions == ("a blue circle",)


def test_the_page_shows_every_finding_and_runs_nothing(tmp_path: Path) -> None:
    source = dirty(tmp_path / "shapes")
    captions = tmp_path / "shapes" / "captions.jsonl"
    rows = [json.loads(line) for line in captions.read_text("utf-8").splitlines()]
    hostile = "<script>alert(1)</script>.jpg"
    next(row for row in rows if row["split"] == "validation")["captions"].append(hostile.replace(" ", ""))
    captions.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert main(["--data", source, "--out", str(tmp_path / "out"), "--only", "images,captions"]) == 0
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    figures = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    for reason in figures["listed"]:
        assert f"<h2>{reason.capitalize()}</h2>" in page
    for heading in ("Images of one picture", "Worth a look", "Sizes", "Figures", "Scripts"):
        assert f"<h2>{heading}</h2>" in page
    assert "mirrored" in page
    assert page.count("no picture") == 1, "of the file that is no image"
    assert page.count("data:image/webp;base64,") >= 10
    assert page.count("<svg") == 2


def test_a_page_about_nothing_is_a_page(tmp_path: Path) -> None:
    source = write_shapes(tmp_path / "shapes")
    assert main(["--data", source, "--out", str(tmp_path / "out"), "--only", "captions", "--strict"]) == 0
    assert "nothing" in (tmp_path / "out" / "report.html").read_text("utf-8")


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
