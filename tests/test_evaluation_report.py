"""The page of an evaluation is whole, readable by everybody, and harmless whatever the captions hold."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import ColourRuntime, colour_pair, picture
from PIL import Image

from data.html_page import LONGEST_TEXT
from data.pairs import ImageBytes, ImageTextPair
from data.thumbnails import thumbnail
from dual_encoder.calibration import Calibration
from dual_encoder.embedded_pairs import EmbeddedPairs, embed_pairs
from dual_encoder.evaluate import calibration_figures, compare_with, figures, page, rank_pairs, training_history
from dual_encoder.metrics import TIE
from dual_encoder.retrieval_examples import best_hits, similarities, worst_misses
from dual_encoder.slices import slice_figures

CALIBRATION = Calibration(bias=-3, slope=9, context=2, gallery=0.5, smallest=40, largest=160, queries=300)
HISTORY = [{"loss": 2.0, "validation_loss": 2.5, "validation_recall": 0.1}, {"loss": 1.0, "validation_recall": 0.2}]
VOID = {"meta", "img", "br"}
# SVG elements are closed in the page as in XML.
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "\u202eevil\u202c \u2067right to left \u05e9\u05dc\u05d5\u05dd",
    "</bdi></h3></main><style>*{display:none}</style>",
    "nul \x00 &amp; <!-- -->",
]


class Page(HTMLParser):
    """What a browser would make of a page: its elements, text, headings; every element must be closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # element, text
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(data for element, data in self.texts if element != "style")


def evaluated(pairs: list[ImageTextPair], **more: Any) -> tuple[str, dict[str, Any], EmbeddedPairs]:
    """The page of the colour model on `pairs`, its figures, and the embeddings behind them."""
    runtime = ColourRuntime()
    embedded = embed_pairs(runtime, pairs)  # type: ignore[arg-type]
    ranked = rank_pairs(embedded)
    report = figures(runtime, embedded, ranked) | {"data": "colours", "split": "test"} | more  # type: ignore[arg-type]
    report["calibration"] = calibration_figures(CALIBRATION, embedded)
    report["slices"] = slice_figures(ranked, embedded.pairs, embedded.table.captions, ["colour"])
    report["against"] = compare_with(ColourRuntime(name="other"), embedded, ranked)  # type: ignore[arg-type]
    return page(report, embedded, ranked, HISTORY), report, embedded


@pytest.fixture(scope="module")
def colours() -> tuple[str, dict[str, Any], EmbeddedPairs]:
    return evaluated([colour_pair(number) for number in range(170)])


def test_the_page_shows_what_was_measured_on_what(colours: tuple[str, dict[str, Any], EmbeddedPairs]) -> None:
    text, report, _ = colours
    shown = Page(text)
    for word in ("colours", "c0104a", "170", "340", "test", "other"):
        assert word in shown.text
    assert re.search(r"\b20\d\d-\d\d-\d\d \d\d:\d\d", shown.text), "the date"
    for direction in ("text_to_image", "image_to_text"):
        low, high = report[direction]["confidence_95"]["recall@10"]
        assert f"{100 * report[direction]['recall@10']:.1f}" in shown.text
        assert f"{100 * low:.1f} to {100 * high:.1f}" in shown.text
    headings = [data for element, data in shown.texts if element == "h2"]
    assert headings == [
        "Figures",
        "Recall at every depth",
        "Similarities",
        "Probabilities",
        "Comparison",
        "Slices",
        "Worst misses",
        "Best hits",
        "Training",
    ]
    assert "colour: " not in shown.text
    assert "yellow" in shown.text
    assert "+0.0" in shown.text, "the comparison with itself"


def test_the_plots_are_of_the_figures(colours: tuple[str, dict[str, Any], EmbeddedPairs]) -> None:
    text, report, _ = colours
    recall, spread, reliability, answers, loss, learned = Page(text).all("svg")
    for direction in ("text_to_image", "image_to_text"):
        assert f"{100 * report[direction]['recall@10']:.1f} % at 10" in str(recall["aria-label"])
    assert "340 matching pairs" in str(spread["aria-label"])
    assert "57,460 not matching pairs" in str(spread["aria-label"])
    error = 100 * report["calibration"]["first_hit"]["expected_calibration_error"]
    assert f"off by {error:.1f} percentage points" in str(reliability["aria-label"])
    apart = report["calibration"]["unanswerable"]["by_probability"]["auroc"]
    assert f"AUROC {apart:.3f}" in str(answers["aria-label"])
    assert f"{apart:.3f}" in Page(text).text
    assert "170 images lies outside of the 40 to 160" in Page(text).text
    assert "2 epochs, from 2 to 1" in str(loss["aria-label"])
    assert "2 epochs, from 10 to 20" in str(learned["aria-label"])
    lines = Page(text).all("polyline")
    assert [len(str(line["points"]).split()) for line in lines[:2]] == [100, 100], "recall@k for k up to 100"


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(
    colours: tuple[str, dict[str, Any], EmbeddedPairs],
) -> None:
    text, _, _ = colours
    shown = Page(text)
    assert {tag for tag, _ in shown.elements} & {"script", "link", "iframe", "object", "a", "base", "form"} == set()
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert {str(image["src"])[:23] for image in shown.all("img")} == {"data:image/webp;base64,"}
    assert not [name for _, attributes in shown.elements for name in attributes if name.startswith("on")]
    policy = next(meta for meta in shown.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none'")


def test_the_page_can_be_used_without_seeing_it_and_in_the_dark(
    colours: tuple[str, dict[str, Any], EmbeddedPairs],
) -> None:
    text, _, _ = colours
    shown = Page(text)
    assert shown.all("html") == [{"lang": "en"}]
    assert len(shown.all("h1")) == len(shown.all("main")) == len(shown.all("title")) - len(shown.all("svg")) == 1
    assert all(image["alt"] for image in shown.all("img"))
    assert len(shown.all("svg")) == 6
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in shown.all("svg"))
    assert len(shown.all("caption")) == len(shown.all("table"))
    assert all(head["scope"] in ("col", "row") for head in shown.all("th"))
    assert "color-scheme: light dark" in text
    levels = [int(tag[1]) for tag, _ in shown.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False)), "no level is skipped"


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast of two colours `#rgb` or `#rrggbb`."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_every_colour_of_text_and_lines_stands_out_in_both_schemes(
    colours: tuple[str, dict[str, Any], EmbeddedPairs],
) -> None:
    told = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\);", colours[0])
    schemes = [{name: both[scheme] for name, *both in told} for scheme in (0, 1)]
    for scheme in schemes:
        for colour in ("ink", "soft", "accent", "bad"):
            for background in ("page", "panel", "raised"):
                assert contrast(scheme[colour], scheme[background]) >= 4.5
        for colour in ("s0", "s1", "s2"):
            assert contrast(scheme[colour], scheme["page"]) >= 3
        assert contrast(scheme["on-accent"], scheme["accent"]) >= 4.5


def hostile_pairs() -> list[ImageTextPair]:
    pairs = [colour_pair(number) for number in range(20 * len(HOSTILE))]
    return [
        dataclasses.replace(
            item,
            image_id=f"{HOSTILE[n % len(HOSTILE)]}{n} \ud800",  # half of a pair
            captions=(f"{HOSTILE[n % len(HOSTILE)]} {n} " + "x" * 2000,),
            attributes={"colour": HOSTILE[n % len(HOSTILE)]},
        )
        for n, item in enumerate(pairs)
    ]


def test_captions_ids_and_names_can_change_nothing_of_the_page() -> None:
    harmless, _, _ = evaluated([colour_pair(number) for number in range(30)])
    text, _, _ = evaluated(hostile_pairs(), data=HOSTILE[1], split="test")
    kinds = {tag for tag, _ in Page(harmless).elements}
    shown = Page(text)  # every element is closed in its turn
    assert {tag for tag, _ in shown.elements} == kinds
    names = {name for _, attributes in Page(harmless).elements for name in attributes}
    assert {name for _, attributes in shown.elements for name in attributes} == names
    assert "<script>alert(1)</script>" in shown.text, "shown as text"
    text.encode("utf-8")
    assert "\x00" not in text
    # A mark that turns the direction of text stays within an isolated element, and out of attributes and the title.
    marks = re.compile("[\u202a-\u202e\u2066-\u2069]")
    assert {element for element, data in shown.texts if marks.search(data)} == {"bdi"}
    assert not [v for _, attributes in shown.elements for v in attributes.values() if v and marks.search(v)]
    assert "x" * (LONGEST_TEXT // 2) in text
    assert "x" * LONGEST_TEXT not in text, "a caption may be of any length, the page not"


def test_misses_and_hits_show_the_caption_its_image_and_the_five_that_came_first() -> None:
    pairs = [dataclasses.replace(pair, captions=pair.captions[:1]) for pair in map(colour_pair, range(40))]
    pairs.append(ImageTextPair("lie", ImageBytes(lambda: picture("red", 1)), ("blue blue blue",)))
    embedded = embed_pairs(ColourRuntime(), pairs)  # type: ignore[arg-type]
    queries = rank_pairs(embedded)["text_to_image"]
    worst, best = worst_misses(embedded, queries), best_hits(embedded, queries)
    assert len(worst) == 12
    assert [example.rank for example in worst] == sorted((example.rank for example in worst), reverse=True)
    lie = worst[0]
    assert (lie.query, lie.right.image_id) == ("blue blue blue", "lie")
    assert all(shown.image_id.startswith("blue") for shown in lie.returned)
    assert best
    for example in [*worst, *best]:
        assert len(example.returned) == 5
        scores = [shown.score for shown in example.returned]
        assert all(after <= before + TIE for before, after in zip(scores, scores[1:], strict=False))
        place = (
            [shown.image_id for shown in example.returned].index(example.right.image_id) + 1 if example.rank <= 5 else 0
        )
        assert place == (example.rank if example.rank <= 5 else 0), "the list agrees with the rank"
        assert [shown.image_id == example.right.image_id for shown in example.returned] == [
            shown.right for shown in example.returned
        ]
    assert all(example.rank == 1 for example in best)
    for examples in (worst, best):
        images = [example.right.image_id for example in examples]
        assert len(set(images)) == len(images), "an image at most once"


def test_the_list_agrees_with_the_rank_where_everything_ties() -> None:
    class Constant(ColourRuntime):
        def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
            return np.full((len(pixels), 8), 8**-0.5, np.float32)

    embedded = embed_pairs(Constant(), [colour_pair(number) for number in range(9)])  # type: ignore[arg-type]
    queries = rank_pairs(embedded)["text_to_image"]
    assert best_hits(embedded, queries) == []
    assert {example.rank for example in worst_misses(embedded, queries)} == {9}
    assert not any(shown.right for example in worst_misses(embedded, queries) for shown in example.returned)


def test_a_single_image_has_a_page_too() -> None:
    text, _, _ = evaluated([colour_pair(0)])
    assert "No caption missed its image." in Page(text).text


def test_similarities_count_every_pair_once_on_the_right_side() -> None:
    embedded = embed_pairs(ColourRuntime(), [colour_pair(number) for number in range(30)])  # type: ignore[arg-type]
    found = similarities(embedded)
    scores = embedded.captions @ embedded.images.T
    own = scores[np.arange(len(scores)), embedded.caption_image]
    assert (found.matching.sum(), found.other.sum()) == (60, 60 * 29)
    assert (found.other >= 0).all()
    assert found.matching.tolist() == np.histogram(own, found.edges)[0].tolist()


def test_a_vector_that_is_no_number_spoils_no_page() -> None:
    class Broken(ColourRuntime):
        def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
            vectors = super().embed_pixels(pixels)
            vectors[3] = np.nan
            return vectors

    runtime = Broken()
    embedded = embed_pairs(runtime, [colour_pair(number) for number in range(30)])  # type: ignore[arg-type]
    ranked = rank_pairs(embedded)
    report = figures(runtime, embedded, ranked) | {"data": "colours", "split": "test"}  # type: ignore[arg-type]
    shown = Page(page(report, embedded, ranked, []))
    assert not [points for line in shown.all("polyline") if "nan" in str(points := line["points"])]
    assert "Training" not in shown.text


def test_thumbnails_are_small_upright_pictures_that_say_what_they_show(
    colours: tuple[str, dict[str, Any], EmbeddedPairs],
) -> None:
    wide = io.BytesIO()
    Image.new("RGB", (900, 300), "red").save(wide, "PNG")
    with Image.open(io.BytesIO(thumbnail(wide.getvalue()))) as small:
        assert (small.size, small.format) == ((112, 37), "WEBP")
    for image in Page(colours[0]).all("img"):
        found = re.fullmatch(r"(\w+)-\d{4}: a \1 picture", str(image["alt"]))
        assert found, image["alt"]
        with Image.open(io.BytesIO(base64.b64decode(str(image["src"]).split(",")[1]))) as small:
            mean = np.asarray(small.convert("RGB")).mean((0, 1))
            drawn = np.asarray(Image.open(io.BytesIO(picture(found[1])))).mean((0, 1))
            assert np.abs(mean - drawn).max() < 25
    assert len(colours[0]) < 2_000_000


def test_an_image_that_is_gone_leaves_its_place_and_its_name() -> None:
    def once() -> bytes:
        reads.append(1)
        return picture("red") if len(reads) == 1 else b"gone"

    reads: list[int] = []
    pairs = [ImageTextPair("fleeting", ImageBytes(once), ("blue",)), colour_pair(2), colour_pair(10)]
    embedded = embed_pairs(ColourRuntime(), pairs)  # type: ignore[arg-type]
    ranked = rank_pairs(embedded)
    report = figures(ColourRuntime(), embedded, ranked) | {"data": "colours", "split": "test"}  # type: ignore[arg-type]
    shown = Page(page(report, embedded, ranked, []))
    missing = [element for element in shown.all("div") if element.get("class") == "missing"]
    assert {element["aria-label"] for element in missing} == {"fleeting: blue"}


def test_curves_of_training_are_those_beside_the_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "model"
    assert training_history(str(bundle)) == []
    run = tmp_path / "model.run"
    run.mkdir()
    (run / "history.json").write_text(json.dumps(HISTORY))
    assert training_history(str(bundle)) == HISTORY
    monkeypatch.chdir(tmp_path)
    run.rename(tmp_path / "default.run")
    assert training_history("default") == [], "nobody trained the built-in model"
    (tmp_path / "default.run").rename(run)
    for wrong in ("[1, 2]", "{", '[{"loss": "much"}]', '[{"loss": null}]', "\xff"):
        (run / "history.json").write_bytes(wrong.encode("latin-1"))
        assert training_history(str(bundle)) == []
        assert "left out of the report" in capsys.readouterr().err
