"""What TensorFlow Datasets wrote is read as TensorFlow Datasets itself reads it; damaged files are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.durable import digest_bytes
from data.errors import ImageError, SourceError
from data.sources import open_source
from data.sources.tfds import FEATURES, INFO

FIXTURE = Path(__file__).parent / "fixtures/tfds"  # by tools/make_tfds_fixture.py
AS_READ = json.loads((FIXTURE / "as_read.json").read_text())
VERSION = "tiny_captions/2014/1.10.0"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The newest version of tiny_captions, to be harmed."""
    return Path(shutil.copytree(FIXTURE / VERSION, tmp_path / VERSION))


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", AS_READ)
def test_examples_are_what_tensorflow_datasets_reads(name: str) -> None:
    source = open_source(f"tfds:{name}@{FIXTURE}")
    expected = {f"{split}/{n}": each for split, examples in AS_READ[name].items() for n, each in enumerate(examples)}
    found = {pair.image_id: pair for pair in source}
    assert found.keys() == expected.keys()
    assert len(source) == len(expected)
    for image_id, example in expected.items():
        pair = found[image_id]
        image = example["picture"]["image"] if "picture" in example else example["image"]
        assert digest_bytes(pair.image.read()) == image
        captions = example.get("captions")
        if "label" in example:
            assert pair.captions == (("red rose", "sunflowers")[example["label"]],)
            assert pair.attributes == {"label": ("red_rose", "sunflowers")[example["label"]]}
        else:
            assert list(pair.captions) == (captions["text"] if isinstance(captions, dict) else captions)
        if "score" in example:
            things = {"objects/label": [("cat", "dog")[label] for label in example["objects"]["label"]]}
            plain = {key: example[key] for key in ("flip", "score", "image/id", "image/filename")}
            assert pair.attributes == plain | (things if things["objects/label"] else {})


def test_splits_are_prescribed_unless_there_is_only_one() -> None:
    assert {pair.split for pair in open_source(f"tfds:tiny_captions@{FIXTURE}")} == {"train", "validation"}
    assert {pair.split for pair in open_source(f"tfds:tiny_flowers@{FIXTURE}")} == {None}


def test_names_find_the_newest_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def found(name: str) -> Path:
        return open_source(f"tfds:{name}").directory  # type: ignore[attr-defined]

    monkeypatch.setenv("TFDS_DATA_DIR", str(FIXTURE))
    assert found("tiny_captions") == FIXTURE / VERSION, "1.10.0 is newer than 1.0.0"
    assert found("tiny_captions/2014:1.0.0").name == "1.0.0"
    assert found("tiny_captions:1.0.0").name == "1.0.0"
    assert found(f"tiny_flowers@{FIXTURE}").name == "3.0.1"
    assert found(str(FIXTURE / VERSION)) == FIXTURE / VERSION
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(FIXTURE / "tiny_flowers", tmp_path / "tensorflow_datasets/tiny_flowers")
    assert found("tiny_flowers").is_relative_to(tmp_path)
    assert found("tiny_flowers@~/tensorflow_datasets").is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("coco_captions", "tfds build coco_captions --data_dir"),
        ("tiny_captions/2017", "tfds build tiny_captions/2017"),
        ("tiny_captions:9.9.9", "tfds build tiny_captions:9.9.9"),
        ("", "tfds:NAME"),
        ("a/b/c", "tfds:NAME"),
        ("../tiny_captions", "tfds:NAME"),
    ],
)
def test_what_is_not_there_is_said_with_the_command_that_makes_it(name: str, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(f"tfds:{name}@{FIXTURE}")
    assert words in str(caught.value)


def test_one_of_several_configs_has_to_be_named(copy: Path, tmp_path: Path) -> None:
    shutil.copytree(copy, tmp_path / "tiny_captions/2017/1.0.0")
    with pytest.raises(SourceError, match="2014, 2017"):
        open_source(f"tfds:tiny_captions@{tmp_path}")
    assert len(open_source(f"tfds:tiny_captions/2017@{tmp_path}")) == 7


def test_the_feature_image_is_taken_and_others_are_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def add_mask(content: dict[str, Any]) -> None:
        features = content["featuresDict"]["features"]
        content["featuresDict"]["features"] = {"a_mask": features["image"], **features}

    edit(copy / FEATURES, add_mask)
    assert len(list(open_source(f"tfds:{copy}"))) == 7
    assert "the image is 'image'; left out a_mask" in capsys.readouterr().err


def test_an_image_that_vanishes_is_an_image_error(copy: Path) -> None:
    pair = next(iter(open_source(f"tfds:{copy}")))
    for path in copy.glob("*.tfrecord*"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ImageError, match="40|bytes"):
        pair.image.read()
    for path in copy.glob("*.tfrecord*"):
        path.unlink()
    with pytest.raises(ImageError, match="No such file"):
        pair.image.read()


def no_image(content: dict[str, Any]) -> None:
    del content["featuresDict"]["features"]["image"]


def deep(content: dict[str, Any]) -> None:
    for _ in range(50):
        content["featuresDict"] = {"features": {"x": {"featuresDict": content["featuresDict"]}}}


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (INFO, lambda c: c.update(fileFormat="array_record"), "array_record"),
        (INFO, lambda c: c.update(splits=[]), "examples"),
        (INFO, lambda c: c.update(splits=7), "examples"),
        (INFO, lambda c: c["splits"][0].update(shardLengths=["2", "x"]), "shardLengths"),
        (INFO, lambda c: c["splits"][0].update(shardLengths=["-2", "5"]), "lengths of shards"),
        (INFO, lambda c: c["splits"][0].update(shardLengths=["2", "4"]), "4 records"),
        (INFO, lambda c: c["splits"][0].update(filepathTemplate="../{SPLIT}"), "names of files"),
        (INFO, lambda c: c["splits"][0].update(name="training"), "tiny_captions-training.tfrecord"),
        (FEATURES, no_image, "an image feature"),
        (FEATURES, deep, "nested features"),
        (FEATURES, lambda c: c.update(featuresDict=[]), "an image feature"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(file: str, change: Any, words: str, copy: Path) -> None:
    edit(copy / file, change)
    with pytest.raises(SourceError, match=words):
        list(open_source(f"tfds:{copy}"))


@pytest.mark.parametrize("content", [b"", b"\0" * 11, b"\xff" * 300, b"\x05" + b"\0" * 11 + b"hello" + b"\0" * 4])
def test_a_foreign_record_file_is_refused(content: bytes, copy: Path) -> None:
    path = copy / "tiny_captions-train.tfrecord-00000-of-00002"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=path.name):
        list(open_source(f"tfds:{copy}"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_bytes_are_read_or_refused_but_never_crash(copy: Path, data: st.DataObject) -> None:
    path = copy / "tiny_captions-train.tfrecord-00001-of-00002"
    content = bytearray((FIXTURE / VERSION / path.name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    refused = ""
    try:
        for pair in open_source(f"tfds:{copy}"):
            json.dumps(dict(pair.attributes), allow_nan=False).encode()
            "".join(pair.captions).encode()
    except SourceError as error:
        refused = str(error)
    assert not refused or path.name in refused
