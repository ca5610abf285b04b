"""Evaluation measures what a bundle finds: the figures of an independent count, in a stable JSON shape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fakes import ColourRuntime, colour_pair, picture
from shapes import FROZEN, write_shapes

from data.errors import BundleError, SourceError
from data.images import load_pixels
from data.pairs import ImageBytes, ImageTextPair
from dual_encoder.bundle import fingerprint_of
from dual_encoder.embedded_pairs import embed_pairs
from dual_encoder.evaluate import compare_with, evaluate, main, pairs_of_split, print_report, rank_pairs
from dual_encoder.train import train

FIGURES = {
    "recall@1",
    "recall@5",
    "recall@10",
    "hits@100",
    "mean_reciprocal_rank",
    "median_rank",
    "queries",
    "gallery",
    "confidence_95",
}


def recall_by_hand(runtime: ColourRuntime, pairs: list[ImageTextPair], k: int) -> tuple[float, float]:
    """Text → image and image → text, one query at a time, in float64 and plain loops."""
    images = [runtime.embed_pixels(load_pixels(p.image.read(), runtime.preprocessing)[None])[0] for p in pairs]
    captions = [(runtime.embed_texts([text])[0], row) for row, p in enumerate(pairs) for text in p.captions]
    tie = 1e-6
    found = [
        sum(
            float(image @ vector) >= float(images[row] @ vector) - tie
            for other, image in enumerate(images)
            if other != row
        )
        < k
        for vector, row in captions
    ]
    back = []
    for row, image in enumerate(images):
        best = max(float(image @ vector) for vector, owner in captions if owner == row)
        back.append(sum(float(image @ vector) >= best - tie for vector, owner in captions if owner != row) < k)
    return sum(found) / len(found), sum(back) / len(back)


def test_figures_are_those_of_a_count_by_hand() -> None:
    runtime, pairs = ColourRuntime(), [colour_pair(number) for number in range(40)]
    report = evaluate(runtime, pairs)  # type: ignore[arg-type]
    for k in (1, 5, 10):
        expected = recall_by_hand(ColourRuntime(), pairs, k)
        found = tuple(report[direction][f"recall@{k}"] for direction in ("text_to_image", "image_to_text"))
        assert found == pytest.approx(expected)
    assert 0 < report["text_to_image"]["recall@10"] < 1, "a task neither trivial nor hopeless"
    assert report["bundle"] == {"name": "colours", "fingerprint": "c0104a"}


def test_images_that_do_not_decode_are_named_and_shift_nothing() -> None:
    good = [colour_pair(number) for number in range(40)]
    bad = [ImageTextPair(f"bad-{n}", ImageBytes(lambda: b"none"), ("a red picture",)) for n in range(3)]
    mixed = [bad[0], *good[:35], bad[1], *good[35:], bad[2]]  # over a boundary of batches
    report = evaluate(ColourRuntime(), mixed)  # type: ignore[arg-type]
    assert report["rejected_images"] == ["bad-0", "bad-1", "bad-2"]
    expected = evaluate(ColourRuntime(), good)  # type: ignore[arg-type]
    assert report["text_to_image"] == expected["text_to_image"]
    assert report["image_to_text"] == expected["image_to_text"]


def test_nothing_but_bad_images_is_refused() -> None:
    bad = [ImageTextPair("bad", ImageBytes(lambda: b"none"), ("a red picture",))]
    with pytest.raises(SourceError, match="images that decode; received 1 that do not"):
        evaluate(ColourRuntime(), bad)  # type: ignore[arg-type]


def test_the_report_is_printed_with_intervals_and_chance(capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(ColourRuntime(), [colour_pair(number) for number in range(40)])  # type: ignore[arg-type]
    print_report(report | {"rejected_images": ["x"]})
    captured = capsys.readouterr()
    line = next(line for line in captured.out.splitlines() if "text → image" in line and "recall@10" in line)
    low, high = report["text_to_image"]["confidence_95"]["recall@10"]
    assert f"{100 * report['text_to_image']['recall@10']:.1f}" in line
    assert f"{100 * low:.1f} to {100 * high:.1f}" in line
    assert "25.0" in line  # ten of forty images
    assert "1 images could not be decoded" in captured.err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("evaluate")
    data = write_shapes(directory / "shapes")
    return train(FROZEN.with_settings(epochs=1), data, directory / "model").path, data


@pytest.mark.parametrize(("split", "images"), [("test", 12), ("validation", 12), ("all", 84)])
def test_the_command_writes_the_figures_of_a_split(
    model: tuple[Path, str], tmp_path: Path, split: str, images: int
) -> None:
    bundle, data = model
    out = tmp_path / "figures" / "metrics.json"
    assert main(["--bundle", str(bundle), "--data", data, "--split", split, "--json", str(out)]) == 0
    report = json.loads(out.read_text("utf-8"))
    assert set(report) == {"text_to_image", "image_to_text", "bundle", "rejected_images", "data", "split", "slices"}
    for direction in ("text_to_image", "image_to_text"):
        assert set(report[direction]) == FIGURES
        assert (
            0 <= report[direction]["recall@1"] <= report[direction]["recall@5"] <= report[direction]["recall@10"] <= 1
        )
        assert set(report[direction]["confidence_95"]) == FIGURES - {
            "median_rank",
            "queries",
            "gallery",
            "confidence_95",
        }
    assert report["text_to_image"]["gallery"] == report["image_to_text"]["queries"] == images
    assert report["text_to_image"]["queries"] == report["image_to_text"]["gallery"] == 2 * images
    assert (report["split"], report["data"]) == (split, data)


def test_probabilities_are_fitted_on_validation_travel_in_the_bundle_and_are_measured_on_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_shapes(tmp_path / "shapes", splits=["train", "train", *3 * ["validation"], *3 * ["test"]])
    recipe, out = FROZEN.with_settings(epochs=30), tmp_path / "metrics.json"
    bundle = train(recipe, data, tmp_path / "model")
    assert bundle.calibration is not None
    assert (bundle.calibration.queries, bundle.calibration.largest) == (72, 36)
    assert fingerprint_of({**bundle.manifest, "calibration": None}) == bundle.fingerprint
    assert main(["--bundle", str(bundle.path), "--data", data, "--json", str(out)]) == 0
    found = json.loads(out.read_text("utf-8"))["calibration"]
    assert found["fitted"] == bundle.manifest["calibration"]
    assert (found["queries"], found["gallery"]) == (72, 36)
    printed = capsys.readouterr().out
    assert f"{found['unanswerable']['by_probability']['auroc']:.3f}" in printed
    assert f"{100 * found['first_hit']['expected_calibration_error']:.1f}" in printed


def test_the_test_split_is_the_default(model: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", str(model[0]), "--data", model[1]]) == 0
    assert "split test" in capsys.readouterr().out


def test_an_empty_split_a_bare_source_and_a_missing_bundle_are_refused(model: tuple[Path, str], tmp_path: Path) -> None:
    bundle, _ = model
    only_train = write_shapes(tmp_path / "train", splits=["train"])
    with pytest.raises(SourceError, match="captioned images in the test split; received no image"):
        main(["--bundle", str(bundle), "--data", only_train])
    bare = write_shapes(tmp_path / "bare", captions=["  "])
    with pytest.raises(SourceError, match="none with a caption"):
        main(["--bundle", str(bundle), "--data", bare])
    with pytest.raises(BundleError, match="nothing at"):
        main(["--bundle", str(tmp_path / "none"), "--data", only_train])


def test_images_without_a_caption_are_left_out_of_a_split() -> None:
    pairs = [colour_pair(1), ImageTextPair("bare", ImageBytes(lambda: b""), (" ",), split="train")]
    assert [pair.image_id for pair in pairs_of_split(pairs, "train")] == [pairs[0].image_id]


def test_equal_embeddings_score_the_worst_rank() -> None:
    class Constant(ColourRuntime):
        def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
            return np.full((len(pixels), 8), 8**-0.5, np.float32)

    report = evaluate(Constant(), [colour_pair(number) for number in range(20)])  # type: ignore[arg-type]
    assert report["text_to_image"]["recall@10"] == 0
    assert report["text_to_image"]["median_rank"] == 20


def test_the_command_gives_figures_by_attribute_and_by_caption_length(
    tmp_path: Path, model: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_shapes(tmp_path / "drawn", attributes={"kind": "drawing"})
    out = tmp_path / "metrics.json"
    assert (
        main(["--bundle", str(model[0]), "--data", data, "--split", "all", "--slice", "kind", "--json", str(out)]) == 0
    )
    report = json.loads(out.read_text("utf-8"))
    for direction in ("text_to_image", "image_to_text"):
        drawings = report["slices"]["by_attribute"]["kind"][direction]["drawing"]
        assert drawings == report[direction], "the only value is everything"
        lengths = report["slices"]["by_caption_length"][direction]
        assert sum(row["queries"] for row in lengths.values()) == report[direction]["queries"]
    printed = capsys.readouterr().out
    assert "By kind, full gallery" in printed
    assert "By caption length, full gallery; short: up to 3" in printed


def test_an_unknown_attribute_is_refused_before_any_image_is_embedded(model: tuple[Path, str]) -> None:
    with pytest.raises(SourceError, match="no attributes"):
        main(["--bundle", str(model[0]), "--data", model[1], "--slice", "kind"])


def test_a_bundle_against_itself_differs_by_exactly_nothing(
    model: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = str(model[0]), tmp_path / "metrics.json"
    assert main(["--bundle", bundle, "--data", model[1], "--against", bundle, "--json", str(out)]) == 0
    report = json.loads(out.read_text("utf-8"))
    against = report["against"]
    assert against["bundle"] == report["bundle"]
    for direction in ("text_to_image", "image_to_text"):
        for name, figures in against[direction].items():
            assert figures["bundle"] == figures["against"] == report[direction][name]
            assert (figures["difference"], figures["confidence_95"], figures["p_value"]) == (0, [0, 0], 1)
    assert "the same pairs" in capsys.readouterr().out


def test_a_bundle_that_sees_colours_beats_a_blind_one_beyond_doubt() -> None:
    class Blind(ColourRuntime):
        def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
            return np.random.default_rng(0).normal(size=(len(pixels), 8)).astype(np.float32)

    pairs = [colour_pair(number) for number in range(80)]
    embedded = embed_pairs(ColourRuntime(), pairs)  # type: ignore[arg-type]
    ranked = rank_pairs(embedded)
    found = compare_with(Blind(name="blind"), embedded, ranked)  # type: ignore[arg-type]
    assert found["bundle"]["name"] == "blind"
    assert found["text_to_image"]["mean_reciprocal_rank"]["confidence_95"][0] > 0
    back = compare_with(ColourRuntime(), embed_pairs(Blind(), pairs), rank_pairs(embed_pairs(Blind(), pairs)))  # type: ignore[arg-type]
    assert back["text_to_image"]["mean_reciprocal_rank"]["confidence_95"][1] < 0


def test_an_image_that_only_one_bundle_could_read_is_refused() -> None:
    def once() -> bytes:
        reads.append(1)
        return picture("red") if len(reads) == 1 else b"gone"

    reads: list[int] = []
    pairs = [*(colour_pair(number) for number in range(8)), ImageTextPair("fleeting", ImageBytes(once), ("red",))]
    embedded = embed_pairs(ColourRuntime(), pairs)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="1 that changed meanwhile, such as fleeting"):
        compare_with(ColourRuntime(), embedded, rank_pairs(embedded))  # type: ignore[arg-type]


def test_another_bundle_that_is_missing_is_refused(model: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing at"):
        main(["--bundle", str(model[0]), "--data", model[1], "--against", str(tmp_path / "none")])


def test_the_command_writes_a_page_with_the_curves_of_the_training(model: tuple[Path, str], tmp_path: Path) -> None:
    bundle, data = model
    out = tmp_path / "pages" / "evaluation.html"
    assert main(["--bundle", str(bundle), "--data", data, "--split", "all", "--report", str(out)]) == 0
    text = out.read_text("utf-8")
    assert "<h2>Recall at every depth</h2>" in text
    assert "<h2>Training</h2>" in text
    assert text.count("<img ") > 20
    assert json.loads((bundle / "bundle.json").read_text("utf-8"))["fingerprint"] in text


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_a_directory_in_place_of_a_file_is_refused_before_the_work(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["--bundle", "nowhere", "--data", "nowhere", option, str(tmp_path)])
    assert refused.value.code == 2
    assert f"received the directory {tmp_path}" in capsys.readouterr().err
