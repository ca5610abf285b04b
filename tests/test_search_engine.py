"""The engine finds what each sort of query asks for, and refuses what breaks a limit, naming the field."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import sys
import threading
from contextlib import asynccontextmanager, closing
from typing import ClassVar

import numpy as np
import pytest
from fakes import ColourRuntime, picture

from data.errors import QueryError
from data.images import load_pixels
from dual_encoder.calibration import Calibration
from protos.imageretrieval.v1 import query_pb2, search_service_pb2
from serving import searches
from serving.batcher import QueueLimits
from serving.call_guard import CallGuard
from serving.callers import Origin
from serving.catalog import ImageNotFound
from serving.embedded_store import EmbeddedStore
from serving.exact_index import ExactIndex
from serving.grpc_service import SearchService
from serving.held_views import HeldViews
from serving.kept_answers import KeptAnswers
from serving.overload import Overloaded
from serving.page_tokens import PageTokenExpired
from serving.queries import (
    Composition,
    ImageIdQuery,
    ImageQuery,
    ImageRefused,
    SearchOptions,
    TextQuery,
    VectorQuery,
)
from serving.query_encoder import EncodedQuery
from serving.search_engine import SearchEngine
from serving.searches import Search, SearchAnswer, Timings, answers
from serving.snapshot import open_snapshot
from serving.vector_store import Delete

RUNTIME = ColourRuntime()


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
            return (await engine.search(*arguments, SearchOptions(**options))).hits

    return asyncio.run(main())


def test_a_search_has_a_place_where_it_begins_only_if_it_asks_nobody_else(index, monkeypatch):
    async def main():
        async with opened(index) as engine:
            await engine.search(TextQuery("red"))  # how long it takes is not known before
            assert engine.place() is not None
            monkeypatch.setattr(EmbeddedStore, "at_hand", False)
            assert engine.place() is None

    asyncio.run(main())


def test_an_answer_that_took_longer_is_the_same_otherwise():
    answer = SearchAnswer([], "revision", "token", 0.5, Timings(1.0, 2.0, 3.0, 4.0, 5.0))
    answer.rendered["transport"] = b"made once"
    longer = answer.taking(6.0)
    assert longer == dataclasses.replace(answer, timings=dataclasses.replace(answer.timings, total=6.0))
    assert longer.rendered is answer.rendered


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
        (TextQuery(""), {}, "query.text"),
        (TextQuery(" \t\n\x00 "), {}, "query.text"),
        (TextQuery("red " * 2_501), {}, "query.text"),
        (TextQuery("red"), {"k": 0}, "page_size"),
        (TextQuery("red"), {"k": -1}, "page_size"),
        (TextQuery("red"), {"k": 1_001}, "page_size"),
        (TextQuery("red"), {"min_score": float("nan")}, "min_score"),
        (TextQuery("red"), {"min_score": float("inf")}, "min_score"),
        (TextQuery("red"), {"filter_text": "number >"}, "filter"),
        (ImageIdQuery(""), {}, "query.image_id"),
        (ImageIdQuery("x" * 1_025), {}, "query.image_id"),
        (VectorQuery([]), {}, "query.vector"),
        (VectorQuery([1.0] * 7), {}, "query.vector"),
        (VectorQuery([0.0] * 8), {}, "query.vector"),
        (VectorQuery([1.0] * 7 + [float("nan")]), {}, "query.vector"),
        (VectorQuery([1.0] * 7 + [float("-inf")]), {}, "query.vector"),
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
    assert (refusal.value.field, refusal.value.reason) == ("query.image", reason)


def test_images_that_wait_are_bounded_by_their_bytes(index, monkeypatch):
    image = picture("red")
    monkeypatch.setattr("serving.query_encoder.MAX_IMAGE_BYTES", 3 * len(image))

    async def main():
        async with opened(index) as engine:
            release = asyncio.Event()

            async def decode(data):
                await release.wait()
                return load_pixels(data, RUNTIME.preprocessing)

            engine.encoder._decode = decode
            waiting = [asyncio.create_task(engine.embed_images([image])) for _ in range(3)]
            await asyncio.sleep(0)
            for call in (engine.search(ImageQuery(image)), engine.embed_images([image])):
                with pytest.raises(Overloaded, match="of images"):
                    await call
            assert (await engine.search(TextQuery("red"))).hits
            release.set()
            await asyncio.gather(*waiting)
            assert (await engine.embed_images([image] * 4)).shape == (4, 8)  # alone it may be larger

    asyncio.run(main())


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
            three = SearchOptions(k=3)
            results = await asyncio.gather(*(engine.search(TextQuery(colour), three) for colour in colours))
            assert [answer.hits[0].attributes["colour"] for answer in results] == colours

    asyncio.run(main())


def test_searches_that_are_answered_together_are_answered_as_alone(index, monkeypatch):
    def outcome(answer):
        return answer if isinstance(answer, Exception) else (answer.hits, answer.next_page_token)

    async def main():
        async with opened(index) as engine:
            sizes = []
            together = engine.searches._run
            monkeypatch.setattr(engine.searches, "_run", lambda some: sizes.append(len(some)) or together(some))
            asked = [
                (VectorQuery(RUNTIME.embed_texts([colour])[0]), SearchOptions(**options))
                for colour in ("red", "blue", "green")
                for options in ({"k": 3}, {"k": 5}, {"k": 5, "exact": True}, {"k": 4, "filter_text": 'colour = "red"'})
            ]
            alone = [outcome(await engine.search(*each)) for each in asked]
            results = await asyncio.gather(*(engine.search(*each) for each in asked))
            assert [outcome(answer) for answer in results] == alone
            assert max(sizes) > 1

    asyncio.run(main())


def test_a_search_that_fails_among_others_fails_alone(index):
    class Broken(Search):
        def run(self, view):
            raise ValueError("a defect")

    encoded = EncodedQuery(RUNTIME.embed_texts(["red"])[0], 1.0)
    with closing(EmbeddedStore.open(index, RUNTIME.fingerprint)) as store, closing(HeldViews(store)) as views:
        kinds = (Search, Broken, Search)
        searches = [kind(encoded, SearchOptions(k=3), None, TextQuery("red"), None, 0.0) for kind in kinds]
        first, broken, last = answers(views, searches)
    assert isinstance(broken, ValueError)
    assert first.hits == last.hits
    assert len(first.hits) == 3


def test_a_stream_waits_where_a_call_is_refused(index):
    class Gated(ColourRuntime):
        opened = threading.Event()

        def embed_texts(self, texts, shown=None):
            assert self.opened.wait(20)
            return super().embed_texts(texts)

    async def requests():
        for tag, colour in enumerate(("red", "blue", "green")):
            search = search_service_pb2.SearchRequest(query=query_pb2.Query(text=colour))
            yield search_service_pb2.StreamSearchRequest(tag=tag, request=search)

    async def main():
        guard = CallGuard()
        guard.engine = engine = SearchEngine(Gated(), EmbeddedStore.open(index, RUNTIME.fingerprint))
        try:
            texts = engine.encoder.texts
            texts.limits, texts._item_seconds = QueueLimits(seconds=0.5), 1.0
            with guard.admit("SearchService.StreamSearch", Origin()) as call:
                answered = asyncio.create_task(_all(SearchService(guard).StreamSearch(requests(), call)))
                while texts.waiting < 3:
                    await asyncio.sleep(0)
                with pytest.raises(Overloaded):
                    await engine.search(TextQuery("yellow"))
                Gated.opened.set()
                assert all(answer.result.HasField("response") for answer in await answered)
        finally:
            Gated.opened.set()
            engine.close()

    asyncio.run(asyncio.wait_for(main(), 20))


async def _all(answers):
    return [answer async for answer in answers]


def composed(*parts):
    return Composition(tuple(parts))


def test_a_composition_ranks_by_the_weighted_sum_of_its_parts(index):
    parts = [(TextQuery("red"), 2.0), (ImageIdQuery("blue-0010"), 1.0), (TextQuery("black"), -0.5)]
    with closing(open_snapshot(index, RUNTIME.fingerprint)) as snapshot:
        ids = list(snapshot.catalog.ids(range(40)))
        blue = np.float64(snapshot.vectors[ids.index("blue-0010")])
        red, black = np.float64(RUNTIME.embed_texts(["red", "black"]))
        wanted = 2 * red + blue - 0.5 * black
        expected = np.float64(snapshot.vectors) @ wanted / np.linalg.norm(wanted)
    hits = search(index, composed(*parts), k=40)
    assert [hit.score for hit in hits] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    for hit in hits:
        assert hit.score == pytest.approx(expected[ids.index(hit.image_id)], abs=1e-5)


def test_a_part_below_zero_ranks_its_like_last(index):
    hits = search(index, composed((TextQuery("red and green"), 1.0), (TextQuery("green"), -1.0)), k=40)
    assert {hit.attributes["colour"] for hit in hits[:5]} == {"red"}
    assert {hit.attributes["colour"] for hit in hits[-5:]} == {"green"}


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([], "query.composition.parts"),
        ([(TextQuery("red"), 1.0)] * 17, "query.composition.parts"),
        ([(TextQuery("red"), 1.0), (TextQuery("red"), 0.0)], "query.composition.parts[1].weight"),
        ([(TextQuery("red"), float("nan"))], "query.composition.parts[0].weight"),
        ([(TextQuery("red"), 11.0)], "query.composition.parts[0].weight"),
        ([(TextQuery("red"), 1.0), (TextQuery(" "), 1.0)], "query.composition.parts[1].query.text"),
        ([(TextQuery("red"), 1.0), (VectorQuery([1.0]), 1.0)], "query.composition.parts[1].query.vector"),
        ([(TextQuery("red"), 1.0), (TextQuery("red"), -1.0)], "query.composition"),
    ],
)
def test_a_part_at_fault_is_named(index, parts, field):
    with pytest.raises(QueryError) as refusal:
        search(index, composed(*parts))
    assert refusal.value.field == field


def pages(index, query, size, **options):
    """The pages of a search, each with the engine's whole answer."""

    async def main():
        async with opened(index) as engine:
            answers, token = [], ""
            while token or not answers:
                answers.append(await engine.search(query, SearchOptions(k=size, page_token=token, **options)))
                token = answers[-1].next_page_token
            return answers

    return asyncio.run(main())


@pytest.mark.parametrize("size", [1, 7, 39, 40])
@pytest.mark.parametrize("options", [{}, {"filter_text": "number < 30"}, {"min_score": 0.3}], ids=str)
def test_pages_together_are_the_whole_ranking(index, size, options):
    every = search(index, TextQuery("green and red"), k=1_000, **options)
    answers = pages(index, TextQuery("green and red"), size, **options)
    assert [hit for answer in answers for hit in answer.hits] == every
    assert {answer.index_revision for answer in answers} == {answers[0].index_revision}
    assert all(len(answer.hits) == size for answer in answers[:-1])


def test_a_token_of_another_search_or_of_none_is_refused(index):
    async def main():
        async with opened(index) as engine:
            token = (await engine.search(TextQuery("red"))).next_page_token
            for query, options in [
                (TextQuery("blue"), SearchOptions(page_token=token)),
                (TextQuery("red"), SearchOptions(page_token=token, filter_text="number < 3")),
                (TextQuery("red"), SearchOptions(page_token="bm9uc2Vuc2U=")),
                (TextQuery("red"), SearchOptions(page_token="é")),
            ]:
                with pytest.raises(QueryError) as refusal:
                    await engine.search(query, options)
                assert refusal.value.field == "page_token"
            assert len((await engine.search(TextQuery("red"), SearchOptions(k=5, page_token=token))).hits) == 5

    asyncio.run(main())


def test_pages_go_on_in_the_state_that_they_began_in(index, tmp_path):
    shutil.copytree(index, tmp_path / "index")

    async def main():
        async with opened(tmp_path / "index") as engine:
            every = (await engine.search(TextQuery("red"), SearchOptions(k=40))).hits
            first = await engine.search(TextQuery("red"), SearchOptions(k=20))
            engine.store.apply([Delete(hit.image_id) for hit in every[15:25]])
            rest = await engine.search(TextQuery("red"), SearchOptions(k=20, page_token=first.next_page_token))
            assert first.hits + rest.hits == every
            assert len((await engine.search(TextQuery("red"), SearchOptions(k=40))).hits) == 30
            return first.next_page_token

    token = asyncio.run(main())

    async def later():
        async with opened(tmp_path / "index") as engine:
            with pytest.raises(PageTokenExpired):
                await engine.search(TextQuery("red"), SearchOptions(page_token=token))

    asyncio.run(later())


def test_images_that_look_the_same_as_a_better_hit_are_left_out(index):
    every = search(index, TextQuery("red"), k=40, with_vectors=True)
    kept = []
    for hit in every:
        vector = np.array(hit.vector) / np.linalg.norm(hit.vector)
        if all(vector @ other < 0.9 for _, other in kept):
            kept.append((hit.image_id, vector))
    assert 1 < len(kept) < 40
    for k in (1, 3, 40):
        hits = search(index, TextQuery("red"), k=k, deduplicate_similarity=0.9)
        assert [hit.image_id for hit in hits] == [image_id for image_id, _ in kept][:k]
    answers = pages(index, TextQuery("red"), 3, deduplicate_similarity=0.9)
    assert [hit.image_id for answer in answers for hit in answer.hits] == [image_id for image_id, _ in kept]


def test_vectors_are_given_when_asked_for(index):
    (hit,) = search(index, ImageIdQuery("blue-0010"), k=1, with_vectors=True)
    with closing(open_snapshot(index, RUNTIME.fingerprint)) as snapshot:
        row = list(snapshot.catalog.ids(range(40))).index(hit.image_id)
        np.testing.assert_array_equal(hit.vector, np.float32(snapshot.vectors[row]))
    assert search(index, ImageIdQuery("blue-0010"), k=1)[0].vector is None


def test_a_calibrated_model_says_how_likely_a_hit_is_and_whether_anything_matches(index, monkeypatch):
    calibration = Calibration(0.0, 8.0, 4.0, 0.1, 10, 1_000, 100)
    monkeypatch.setattr(RUNTIME, "calibration", calibration)

    async def main():
        async with opened(index) as engine:
            ten = await engine.search(TextQuery("red"), SearchOptions(k=12))
            expected = calibration.probability(np.array([[hit.score for hit in ten.hits]]), 40)
            assert [hit.probability for hit in ten.hits] == expected[0].tolist()
            assert ten.match_probability == pytest.approx(expected[0, :10].sum())
            two = await engine.search(TextQuery("red"), SearchOptions(k=2))
            assert two.hits == ten.hits[:2]
            assert two.match_probability == ten.match_probability
            for query, options in [
                (ImageIdQuery("red-0000"), SearchOptions()),
                (TextQuery("red"), SearchOptions(filter_text="number < 30")),
                (TextQuery("red"), SearchOptions(page_token=two.next_page_token, k=3)),
            ]:
                answer = await engine.search(query, options)
                assert answer.match_probability is None
                assert {hit.probability for hit in answer.hits} == {None}

    asyncio.run(main())


def test_what_many_ask_at_once_is_embedded_once(index):
    class Counting(ColourRuntime):
        texts: ClassVar[list[str]] = []

        def embed_texts(self, texts, shown=None):
            self.texts.extend(texts)
            return super().embed_texts(texts)

    async def main():
        engine = SearchEngine(Counting(), EmbeddedStore.open(index, RUNTIME.fingerprint, writable=False))
        answers = await asyncio.gather(*(engine.search(TextQuery(["red", "blue"][at % 2])) for at in range(20)))
        assert {answer.hits[0].attributes["colour"] for answer in answers} == {"red", "blue"}
        await engine.search(TextQuery("red"))
        assert sorted(Counting.texts) == ["blue", "red"]
        engine.close()

    asyncio.run(main())


def test_a_text_is_searched_for_where_it_was_embedded_and_once_for_each_who_asks(index, monkeypatch):
    """Who joins another's embedding, and who finds a kept one, has a search of his own."""

    async def main():
        engine = SearchEngine(ColourRuntime(), EmbeddedStore.open(index, RUNTIME.fingerprint, writable=False))
        submit, searched = engine.searches.submit, []

        async def noted(searches, deadline=None, *, bulk=False):
            searched.extend(searches)
            return await submit(searches, deadline, bulk=bulk)

        monkeypatch.setattr(engine.searches, "submit", noted)
        alone = await engine.search(TextQuery("red"), SearchOptions(k=3))
        assert not searched
        several = await asyncio.gather(*(engine.search(TextQuery("blue"), SearchOptions(k=k)) for k in (2, 4, 6)))
        assert [len(answer.hits) for answer in several] == [2, 4, 6]
        assert [search.options.k for search in searched] == [4, 6]
        other = await engine.search(TextQuery("red"), SearchOptions(k=5))
        assert [hit.image_id for hit in other.hits[:3]] == [hit.image_id for hit in alone.hits]
        assert [search.options.k for search in searched] == [4, 6, 5]
        engine.close()

    asyncio.run(main())


def test_a_store_that_fails_takes_no_embeddings_along(index, monkeypatch):
    async def main():
        engine = SearchEngine(ColourRuntime(), EmbeddedStore.open(index, RUNTIME.fingerprint, writable=False))
        with monkeypatch.context() as broken:
            broken.setattr(EmbeddedStore, "view", lambda self: (_ for _ in ()).throw(OSError("a bad disk")))
            found = await asyncio.gather(
                engine.search(TextQuery("red")), engine.embed_texts(["red"]), return_exceptions=True
            )
        assert isinstance(found[0], OSError)
        assert found[1].shape == (1, RUNTIME.embedding_dim)
        assert (await engine.search(TextQuery("red"))).hits
        engine.close()

    asyncio.run(main())


def test_what_goes_wrong_with_one_search_of_a_batch_is_told_to_its_caller_only(index, monkeypatch):
    async def main():
        engine = SearchEngine(ColourRuntime(), EmbeddedStore.open(index, RUNTIME.fingerprint, writable=False))
        run = searches.Search.run

        def faulty(self, view):
            if self.options.k == 4:
                raise ValueError("this one")
            return run(self, view)

        monkeypatch.setattr(searches.Search, "run", faulty)
        found = await asyncio.gather(
            *(engine.search(TextQuery(f"red {k}"), SearchOptions(k=k)) for k in (3, 4, 5)), return_exceptions=True
        )
        assert isinstance(found[1], ValueError)
        assert [len(answer.hits) for answer in (found[0], found[2])] == [3, 5]
        engine.close()

    asyncio.run(main())


def test_what_is_asked_again_is_answered_as_before_until_the_index_changes(index, tmp_path):
    shutil.copytree(index, tmp_path / "index")

    async def main():
        async with opened(tmp_path / "index") as engine:
            first = await engine.search(TextQuery("red"), SearchOptions(k=5))
            again = await engine.search(TextQuery("red"), SearchOptions(k=5))
            assert (engine.kept.hits, engine.kept.misses) == (1, 1)
            assert again.hits == first.hits
            assert again.next_page_token == first.next_page_token
            assert again.timings.search == 0
            for other in (SearchOptions(k=6), SearchOptions(k=5, exact=True), SearchOptions(k=5, with_vectors=True)):
                assert len((await engine.search(TextQuery("red"), other)).hits) == other.k
            assert (await engine.search(TextQuery("red"), SearchOptions(k=5, with_vectors=True))).hits[0].vector
            assert engine.kept.hits == 1
            engine.store.apply([Delete(first.hits[0].image_id)])
            after = await engine.search(TextQuery("red"), SearchOptions(k=5))
            assert [hit.image_id for hit in after.hits[:4]] == [hit.image_id for hit in first.hits[1:]]
            assert engine.kept.hits == 1

    asyncio.run(main())


def test_another_process_s_changes_end_what_is_kept(index, tmp_path):
    shutil.copytree(index, tmp_path / "index")

    async def main():
        reader = SearchEngine(RUNTIME, EmbeddedStore.open(tmp_path / "index", RUNTIME.fingerprint, writable=False))
        with closing(EmbeddedStore.open(tmp_path / "index", RUNTIME.fingerprint)) as writer:
            first = await reader.search(TextQuery("red"))
            await reader.search(TextQuery("red"))
            assert reader.kept.hits == 1
            writer.apply([Delete(first.hits[0].image_id)])
            after = await reader.search(TextQuery("red"))
        assert first.hits[0].image_id not in [hit.image_id for hit in after.hits]
        reader.close()

    asyncio.run(main())


def test_the_next_page_of_a_kept_answer_is_there_however_old_the_answer(index):
    async def main():
        async with opened(index) as engine:
            await engine.search(TextQuery("red"), SearchOptions(k=5))
            engine._views.close()  # as when nobody asked for the next page in time
            again = await engine.search(TextQuery("red"), SearchOptions(k=5))
            assert engine.kept.hits == 1
            following = await engine.search(TextQuery("red"), SearchOptions(k=5, page_token=again.next_page_token))
            assert [hit.rank for hit in following.hits] == [6, 7, 8, 9, 10]

    asyncio.run(main())


def test_as_many_answers_are_kept_as_there_is_room_for():
    kept = KeptAnswers(2)
    for text in ("a", "b", "a", "c"):
        if kept.get(TextQuery(text), SearchOptions(), lambda: "r") is None:
            kept.keep(TextQuery(text), SearchOptions(), SearchAnswer([], "r", "", None, None))
    assert [kept.get(TextQuery(text), SearchOptions(), lambda: "r") is not None for text in "abc"] == [
        True,
        False,
        True,
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
def test_inference_gives_way_to_what_is_short(index):
    priorities = []

    class Looking(ColourRuntime):
        def embed_texts(self, texts, shown=None):
            priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return super().embed_texts(texts)

    async def main():
        with closing(SearchEngine(Looking(), EmbeddedStore.open(index, RUNTIME.fingerprint, writable=False))) as engine:
            await engine.search(TextQuery("red"))
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < priorities[0]

    asyncio.run(main())
