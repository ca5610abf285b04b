"""Classes are told by their names alone: the arithmetic by hand, real drawings by the real command, clear refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fakes import ColourRuntime
from PIL import Image

from data.errors import SourceError
from data.sources.openmoji import OpenMoji
from dual_encoder import zero_shot
from dual_encoder.prompts import class_vectors, filled, name_of_folder
from dual_encoder.zero_shot_classifier import ClassLabel, Verdicts, accuracy, by_class, classify, difference

HOSTILE = "<script>clocks<_script>"
DRAWINGS = {  # code points of emoji of things that a photograph's classifier knows
    "fruit": ("1F34E", "1F34F", "1F350", "1F34B", "1F34C", "1F353", "1F34A"),
    "cars_and_buses": ("1F697", "1F695", "1F68C", "1F69A", "1F699"),
    HOSTILE: ("1F550", "23F0", "1F55B"),
}
NAMES = {"fruit": ["fruit", "lemon"], "cars_and_buses": "minivan", HOSTILE: "analog clock"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawings for each class, and one file that is no image."""
    directory = tmp_path_factory.mktemp("classes")
    wanted = {f"emoji/{code}": folder for folder, codes in DRAWINGS.items() for code in codes}
    for pair in OpenMoji():
        if folder := wanted.get(pair.image_id):
            (directory / folder).mkdir(exist_ok=True)
            (directory / folder / f"{pair.image_id[6:]}.png").write_bytes(pair.image.read())
    (directory / "fruit" / "broken.png").write_bytes(b"no image")
    return directory


def names_file(directory: Path, content: object) -> Path:
    path = directory / "names.json"
    path.write_text(json.dumps(content), "utf-8")
    return path


def test_drawings_are_told_by_the_names_of_their_classes(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = names_file(tmp_path, NAMES)
    arguments = ["--bundle", "default", "--data", f"folder:{folders}", "--against", "default", "--names", str(names)]
    out, page = tmp_path / "figures.json", tmp_path / "page.html"
    assert zero_shot.main([*arguments, "--json", str(out), "--report", str(page)]) == 0
    report = json.loads(out.read_text())
    assert report["images"] == 15
    assert report["rejected_images"] == ["fruit/broken.png"]
    assert report["accuracy"]["top_1"]["value"] > 2 * report["chance"]["top_1"]
    assert report["accuracy"]["top_5"]["value"] == 1
    assert [row["class"] for row in report["classes"]] == sorted(row["class"] for row in report["classes"])
    assert report["against"]["difference"]["top_1"]["difference"] == 0
    assert "1 images could not be decoded" in capsys.readouterr().err
    html = page.read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;clocks") >= 3


def test_colours_are_told_by_any_attribute_and_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    for name, rgb in (("red", (220, 30, 30)), ("green", (30, 180, 40)), ("", (0, 0, 0))):
        Image.new("RGB", (32, 32), rgb).save(tmp_path / f"{name or 'none'}.png")
        lines.append({"image": f"{name or 'none'}.png", "captions": ["a wall"], "attributes": {"paint": name}})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    monkeypatch.setattr("dual_encoder.runtime.Runtime.load", lambda bundle: ColourRuntime())
    arguments = ["--bundle", "colours", "--data", f"jsonl:{tmp_path}", "--label", "paint"]
    out = tmp_path / "figures.json"
    assert zero_shot.main([*arguments, "--template", "{name} paint", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert (report["images"], report["accuracy"]["top_1"]["value"]) == (2, 1)
    assert report["templates"] == ["{name} paint"]


class Words:
    """A text tower of four words."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[float(word in text) for word in ("cat", "dog", "cow", "photo")] for text in texts])


LABELS = [ClassLabel("a", ("cat",)), ClassLabel("b", ("dog", "cow")), ClassLabel("c", ("cow",))]


def test_a_class_is_the_mean_of_its_names_in_all_templates() -> None:
    texts = [filled(["{name}", "photo of {name}"], label.names) for label in LABELS]
    assert texts[1] == ["dog", "photo of dog", "cow", "photo of cow"]
    half = np.sqrt(0.5)
    expected = np.array([[1 + half, 0, 0, half], [0, 1 + half, 1 + half, 2 * half], [0, 0, 1 + half, half]])
    np.testing.assert_allclose(
        class_vectors(Words().embed_texts, texts), expected / np.linalg.norm(expected, axis=1, keepdims=True)
    )


def test_the_nearest_class_is_said_and_a_tie_counts_against_the_model() -> None:
    images = np.eye(4)[[0, 1, 2, 2, 3]]  # the last is as far from every class
    verdicts = classify(Words(), images, np.array([0, 1, 1, 2, 0]), LABELS, ["{name}"])  # type: ignore[arg-type]
    np.testing.assert_array_equal(verdicts.rank, [1, 1, 2, 1, 3])
    np.testing.assert_array_equal(verdicts.taken_for[:4], [0, 1, 2, 2])
    assert verdicts.taken_for[4] != 0
    np.testing.assert_array_equal(verdicts.confusion(3)[:, :2].sum(axis=0), [1, 2])


def test_an_embedding_that_is_no_number_is_never_right() -> None:
    verdicts = classify(Words(), np.full((1, 4), np.nan), np.array([1]), LABELS, ["{name}"])  # type: ignore[arg-type]
    assert verdicts.rank[0] == 3


def test_figures_of_all_and_of_each_class() -> None:
    verdicts = Verdicts(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 0]), np.array([1, 1, 2, 6]))
    figures = accuracy(verdicts)
    assert figures["top_1"]["value"] == 0.5
    assert figures["top_5"]["value"] == 0.75
    assert figures["top_1_class_mean"] == pytest.approx((2 / 3 + 0) / 2)
    low, high = figures["top_1"]["confidence_95"]
    assert 0 <= low < 0.5 < high <= 1
    first, second, third = by_class(verdicts, LABELS)
    assert first["precision"] == pytest.approx(2 / 3)
    assert (first["most_often_taken_for"], second["most_often_taken_for"]) == ("b", "a")
    assert (third["images"], third["top_1"], third["precision"]) == (0, None, None)


def test_a_better_model_is_told_from_luck() -> None:
    true = np.arange(100) % 3
    good = Verdicts(true, true, np.ones(100, int))
    poor = Verdicts(true, np.roll(true, 1), np.where(np.arange(100) < 60, 2, 1))
    found = difference(good, poor)["top_1"]
    assert found["difference"] == pytest.approx(0.6)
    assert found["confidence_95"][0] > 0.4
    assert found["p_value"] < 0.01
    assert difference(good, good)["top_1"]["p_value"] == 1


def test_folders_become_words() -> None:
    assert name_of_folder("birds/Snowy_owl-2/") == "Snowy owl 2"
    assert name_of_folder("signs/buttons", whole=True) == "signs buttons"


def test_classes_that_end_in_the_same_word_are_told_by_their_path(tmp_path: Path) -> None:
    for folder in ("signs/buttons", "computer/buttons", "food"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / folder / "x.png")
    pairs = zero_shot.labelled(zero_shot.open_source(f"folder:{tmp_path}"), "folder")
    labels = zero_shot.class_labels(pairs, "folder", {})
    assert [label.names for label in labels] == [("computer buttons",), ("food",), ("signs buttons",)]
    with pytest.raises(SourceError, match="another name for each class"):
        zero_shot.class_labels(pairs, "folder", {"food": ("signs buttons",)})


def test_one_class_is_refused_with_the_attributes_there_are(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "only" / "x.png")
    with pytest.raises(SourceError, match="attributes: folder"):
        zero_shot.main(["--bundle", "default", "--data", f"folder:{tmp_path}"])


@pytest.mark.parametrize("content", [{"a": []}, {"a": [1]}, ["a"], {"a": ""}])
def test_malformed_names_are_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(SourceError, match="n02084071"):
        zero_shot.read_names(names_file(tmp_path, content))


def test_a_template_without_a_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        zero_shot.main(["--bundle", "default", "--data", "emoji", "--template", "a photo"])
    assert "templates with {name}" in capsys.readouterr().err
