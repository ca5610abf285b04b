"""The engine finds what each sort of query asks for, and refuses what breaks a limit, naming the field."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest
from fakes import ColourRuntime, ListSource, picture

from data.errors import QueryError
from serving.catalog import ImageNotFound
from serving.embedded_store import EmbeddedStore
from serving.exact_index import ExactIndex
from serving.index_job import build_index
from serving.search_engine import ImageIdQuery, ImageQuery, ImageRefused, SearchEngine, TextQuery, VectorQuery
from serving.snapshot import open_snapshot

RUNTIME = ColourRuntime()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    out = tmp_path_factory.mktemp("engine")
    build_index(RUNTIME, ListSource(), out)
    return out


@asynccontextmanager
async def opened(index):
    engine = SearchEngine(RUNTIME, EmbeddedStore.open(index, RUNTIME.fingerprint))
    try:
        yield engine
    finally:
        engine.close()


def search(index, *arguments, **options):
    async def main():
        async with opened(index) as engine:
            return (await engine.search(*arguments, **options)).hits

    return asyncio.run(main())


@pytest.mark.parametrize("colour", ["red", "blue", "purple"])
def test_words_find_pictures(index, colour):
    hits = search(index, TextQuery(f"a {colour} one, please"), k=5)
    assert [hit.attributes["colour"] for hit in hits] == [colour] * 5
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert hits[0].captions[0] == f"a {colour} picture"


def test_an_image_finds_its_like(index):
    hits = search(index, ImageQuery(picture("green", seed=1234, format="JPEG")), k=5)
    assert {hit.attributes["colour"] for hit in hits} == {"green"}


def test_an_indexed_image_comes_first_among_its_hits(index):
    hits = search(index, ImageIdQuery("blue-0010"), k=40)
    scores = {hit.image_id: hit.score for hit in hits}
    assert scores["blue-0010"] == pytest.approx(1.0, abs=1e-3)  # stored vectors are float16
    assert scores["blue-0010"] == pytest.approx(hits[0].score, abs=1e-3)
    assert hits[-1].score < 0.9


def test_a_vector_of_any_length_equals_the_text_it_came_from(index):
    vector = RUNTIME.embed_texts(["a yellow one"])[0].astype(float)
    for scale in (1.0, 1e-30, 1e30):
        hits = search(index, VectorQuery((vector * scale).tolist()), k=10)
        for hit, expected in zip(hits, search(index, TextQuery("a yellow one"), k=10), strict=True):
            assert hit.image_id == expected.image_id
            assert hit.score == pytest.approx(expected.score, abs=1e-6)


def test_hits_equal_the_exact_reference(index):
    snapshot = open_snapshot(index, RUNTIME.fingerprint)
    scores, rows = ExactIndex(snapshot.vectors).search(RUNTIME.embed_texts(["red and white"]), 40)
    hits = search(index, TextQuery("red and white"), k=40)
    assert [hit.image_id for hit in hits] == [entry.image_id for entry in snapshot.catalog.by_rows(rows[0])]
    np.testing.assert_array_equal([hit.score for hit in hits], scores[0])
    snapshot.close()


def test_more_than_there_is_gives_all(index):
    assert len(search(index, TextQuery("red"), k=1_000)) == 40


def test_min_score_leaves_out_the_rest(index):
    hits = search(index, TextQuery("red"), k=40)
    middle = hits[3].score
    assert search(index, TextQuery("red"), k=40, min_score=middle) == [hit for hit in hits if hit.score >= middle]
    assert search(index, TextQuery("red"), k=40, min_score=1.5) == []


@pytest.mark.parametrize(
    ("filter_text", "matching"),
    [
        ('colour = "blue"', lambda hit: hit.attributes["colour"] == "blue"),
        ("number >= 7 AND even = true", lambda hit: hit.attributes["number"] in range(8, 40, 2)),
        (
            'tags:"green" OR number IN (3, 5.0)',
            lambda hit: "green-" in hit.image_id or hit.attributes["number"] in (3, 5),
        ),
        ('taken < timestamp("2024-01-03T00:00:00Z")', lambda hit: hit.attributes["number"] < 2),
        ('id IN ("red-0000", "blue-0002", "nobody")', lambda hit: hit.image_id in ("red-0000", "blue-0002")),
        ("NOT share:*", lambda hit: False),
        (" ", lambda hit: True),
    ],
)
def test_a_filter_leaves_the_best_of_what_matches(index, filter_text, matching):
    every = search(index, TextQuery("green and red"), k=40)
    expected = [(hit.image_id, hit.score) for hit in every if matching(hit)]
    for k in (3, 40):
        hits = search(index, TextQuery("green and red"), k=k, filter_text=filter_text)
        assert [(hit.image_id, hit.score) for hit in hits] == expected[:k]


@pytest.mark.parametrize(
    ("query", "options", "field"),
    [
        (TextQuery(""), {}, "text"),
        (TextQuery(" \t\n\x00 "), {}, "text"),
        (TextQuery("red " * 2_501), {}, "text"),
        (TextQuery("red"), {"k": 0}, "k"),
        (TextQuery("red"), {"k": -1}, "k"),
        (TextQuery("red"), {"k": 1_001}, "k"),
        (TextQuery("red"), {"min_score": float("nan")}, "min_score"),
        (TextQuery("red"), {"min_score": float("inf")}, "min_score"),
        (TextQuery("red"), {"filter_text": "number >"}, "filter"),
        (ImageIdQuery(""), {}, "image_id"),
        (ImageIdQuery("x" * 1_025), {}, "image_id"),
        (VectorQuery([]), {}, "vector"),
        (VectorQuery([1.0] * 7), {}, "vector"),
        (VectorQuery([0.0] * 8), {}, "vector"),
        (VectorQuery([1.0] * 7 + [float("nan")]), {}, "vector"),
        (VectorQuery([1.0] * 7 + [float("-inf")]), {}, "vector"),
    ],
)
def test_what_breaks_a_limit_is_refused_by_its_field(index, query, options, field):
    with pytest.raises(QueryError) as refusal:
        search(index, query, **options)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "not_an_image"), (b"text", "not_an_image"), (picture("red")[:120], "damaged")]
)
def test_an_image_that_does_not_decode_is_refused_with_the_reason(index, data, reason):
    with pytest.raises(ImageRefused) as refusal:
        search(index, ImageQuery(data))
    assert (refusal.value.field, refusal.value.reason) == ("image", reason)


def test_an_unknown_image_is_not_found(index):
    with pytest.raises(ImageNotFound, match="nobody"):
        search(index, ImageIdQuery("nobody"))


@pytest.mark.parametrize("query", [TextQuery("red"), ImageQuery(picture("red")), ImageIdQuery("red-0000")])
def test_a_deadline_that_has_passed_stops_the_work(index, query):
    before = RUNTIME.embedded

    async def main():
        async with opened(index) as engine:
            await engine.search(query, deadline=asyncio.get_running_loop().time() - 1)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert RUNTIME.embedded == before


def test_embeddings_are_the_runtimes(index):
    async def main():
        async with opened(index) as engine:
            texts = [f"red {number}" for number in range(70)]
            np.testing.assert_array_equal(await engine.embed_texts(texts), RUNTIME.embed_texts(texts))
            images = [picture("blue", seed) for seed in range(20)]
            np.testing.assert_allclose(await engine.embed_images(images), RUNTIME.embed_images(images), atol=1e-6)

    asyncio.run(main())


def test_embedding_names_the_first_bad_input(index):
    async def main(method, argument):
        async with opened(index) as engine:
            await getattr(engine, method)(argument)

    for method, argument, field in [
        ("embed_texts", [], "texts"),
        ("embed_texts", ["red"] * 257, "texts"),
        ("embed_texts", ["red", "", " "], "texts[1]"),
        ("embed_images", [], "images"),
        ("embed_images", [picture("red")] * 65, "images"),
        ("embed_images", [picture("red"), b"x", b""], "images[1]"),
    ]:
        with pytest.raises(QueryError) as refusal:
            asyncio.run(main(method, argument))
        assert refusal.value.field == field


def test_many_searches_at_once_get_their_own_answers(index):
    async def main():
        async with opened(index) as engine:
            colours = ["red", "green", "blue", "yellow"] * 25
            results = await asyncio.gather(*(engine.search(TextQuery(colour), k=3) for colour in colours))
            assert [answer.hits[0].attributes["colour"] for answer in results] == colours

    asyncio.run(main())
