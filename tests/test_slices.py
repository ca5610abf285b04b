"""Slices show where a model is good and where not: the right queries in each, none lost, against the full gallery."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import SourceError
from data.pairs import AttributeValue, ImageBytes, ImageTextPair
from dual_encoder.metrics import RankedQueries
from dual_encoder.slices import NONE, OTHER, SMALLEST, attribute_values, slice_figures

DIRECTIONS = ("text_to_image", "image_to_text")
THIRDS = {"short": 30, "medium": 30, "long": 30}


def pair(number: int, attributes: dict[str, AttributeValue], captions: tuple[str, ...] = ("a word",)) -> ImageTextPair:
    return ImageTextPair(f"image-{number}", ImageBytes(lambda: b""), captions, attributes=attributes)


def ranked(pairs: list[ImageTextPair], ranks: list[int] | None = None) -> tuple[dict[str, RankedQueries], list[str]]:
    """Ranks of the captions, each image's own that of its first caption, and the captions."""
    owners = np.array([row for row, item in enumerate(pairs) for _ in item.captions])
    of_caption = np.array(ranks or [1 + row % 50 for row in range(len(owners))])
    _, first = np.unique(owners, return_index=True)
    queries = {
        "text_to_image": RankedQueries(of_caption, owners, len(pairs)),
        "image_to_text": RankedQueries(of_caption[first], np.arange(len(pairs)), len(owners)),
    }
    return queries, [caption for item in pairs for caption in item.captions]


def slices(pairs: list[ImageTextPair], *names: str, ranks: list[int] | None = None) -> dict:
    queries, captions = ranked(pairs, ranks)
    return slice_figures(queries, pairs, captions, names)


def test_each_value_has_the_figures_of_its_own_queries_against_the_full_gallery() -> None:
    pairs = [pair(n, {"kind": "photo" if n % 2 else "drawing"}) for n in range(60)]
    ranks = [1 if n % 2 else 30 for n in range(60)]  # photos are found, drawings are not
    found = slices(pairs, "kind", ranks=ranks)["by_attribute"]["kind"]
    for direction in DIRECTIONS:
        assert set(found[direction]) == {"photo", "drawing"}
        assert found[direction]["photo"]["recall@1"] == 1
        assert found[direction]["photo"]["confidence_95"]["recall@1"] == [1, 1]
        assert found[direction]["drawing"]["recall@10"] == 0
        assert found[direction]["drawing"]["median_rank"] == 30
        assert [figures["queries"] for figures in found[direction].values()] == [30, 30]
        assert [figures["gallery"] for figures in found[direction].values()] == [60, 60]


def test_values_with_few_queries_are_one_row_and_the_bound_is_per_direction() -> None:
    kinds = ["many"] * SMALLEST + ["few"] * (SMALLEST - 1) + ["one"]
    pairs = [pair(n, {"kind": kind}, ("a", "b") if kind == "few" else ("a",)) for n, kind in enumerate(kinds)]
    found = slices(pairs, "kind")["by_attribute"]["kind"]
    assert {value: row["queries"] for value, row in found["text_to_image"].items()} == {"few": 38, "many": 20, OTHER: 1}
    assert {value: row["queries"] for value, row in found["image_to_text"].items()} == {"many": 20, OTHER: 20}
    assert list(found["text_to_image"]) == ["few", "many", OTHER], "most queries first, the rest last"


def test_images_without_the_attribute_and_with_several_values_are_counted_where_they_belong() -> None:
    pairs = [pair(n, {"tags": ["cat", "indoors"], "ok": True, "page": 7}) for n in range(20)]
    pairs += [pair(n, {"tags": ["cat"], "ok": False, "page": 7.5}) for n in range(20)]
    pairs += [pair(n, {"tags": []} if n % 2 else {}) for n in range(20)]
    found = slices(pairs, "tags", "ok", "page")["by_attribute"]
    counts = {name: {value: row["queries"] for value, row in by["text_to_image"].items()} for name, by in found.items()}
    assert counts == {
        "tags": {"cat": 40, "indoors": 20, NONE: 20},
        "ok": {"false": 20, "true": 20, NONE: 20},
        "page": {"7": 20, "7.5": 20, NONE: 20},
    }


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 3)), min_size=1, max_size=90), st.integers(0, 99))
def test_no_query_is_lost_or_counted_twice(images: list[tuple[str, int]], seed: int) -> None:
    words = np.random.default_rng(seed).integers(1, 9, (len(images), 3))
    pairs = [
        pair(n, {"kind": kind}, tuple("word " * words[n, c] + str(c) for c in range(captions)))
        for n, (kind, captions) in enumerate(images)
    ]
    found = slices(pairs, "kind")
    queries, _ = ranked(pairs)
    for slicing in (found["by_caption_length"], found["by_attribute"]["kind"]):
        for direction in DIRECTIONS:
            rows = slicing[direction].values()
            everything = queries[direction].summary()
            assert sum(row["queries"] for row in rows) == everything["queries"]
            hits = sum(row["recall@5"] * row["queries"] for row in rows)
            assert hits == pytest.approx(everything["recall@5"] * everything["queries"])
            assert all(row["queries"] >= SMALLEST for value, row in slicing[direction].items() if value != OTHER)


def test_caption_lengths_are_split_in_thirds_that_are_stated() -> None:
    pairs = [pair(n, {}, ("word " * (1 + n),)) for n in range(90)]
    found = slices(pairs)["by_caption_length"]
    assert found["thirds"].startswith("short: up to 30, medium: 31 to 60, long: from 61 words")
    for direction in DIRECTIONS:
        assert {value: row["queries"] for value, row in found[direction].items()} == THIRDS
        assert list(found[direction]) == ["short", "medium", "long"]


def test_an_image_is_as_long_as_its_captions_on_average() -> None:
    pairs = [pair(n, {}, ("one", "one two three four five")) for n in range(30)]  # mean 3
    pairs += [pair(n, {}, ("one two three",)) for n in range(30)]
    found = slices(pairs)["by_caption_length"]
    assert {value: row["queries"] for value, row in found["text_to_image"].items()} == THIRDS
    assert {value: row["queries"] for value, row in found["image_to_text"].items()} == {"medium": 60}


def test_captions_of_one_length_are_all_short() -> None:
    found = slices([pair(n, {}) for n in range(30)])["by_caption_length"]
    assert found["thirds"].startswith("short: up to 2, long: from 3 words")
    assert {value: row["queries"] for value, row in found["text_to_image"].items()} == {"short": 30}


def test_an_attribute_that_no_image_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(SourceError, match="book, kind; received 'knid'"):
        attribute_values([pair(0, {"kind": "photo"}), pair(1, {"book": "physics"})], "knid")
    with pytest.raises(SourceError, match="the images have no attributes"):
        attribute_values([pair(0, {})], "kind")
