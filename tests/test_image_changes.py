"""Changes by image or by vector: limits, what is kept, repeated requests, and what a failing disk does to them."""

from __future__ import annotations

import asyncio
import errno
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from fakes import COLOURS, ColourRuntime, ListSource, picture

from data.errors import QueryError
from dual_encoder.hubness import HubnessCorrection
from serving.catalog import ImageNotFound
from serving.embedded_store import EmbeddedStore
from serving.image_changes import ImageUpsert, ReadOnly, StoreFailed
from serving.index_job import build_index
from serving.queries import ImageRefused, SearchOptions, TextQuery
from serving.search_engine import SearchEngine
from serving.uploaded_images import image_path
from serving.vector_store import BATCH_VERSION, KeyReused, VersionConflict


class UnsteadyRuntime(ColourRuntime):
    """Embeds an image a little differently each time, as a model does beside other images in a batch."""

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        made = super().embed_pixels(pixels) + 0.003 * np.float32(self.embedded)
        return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("changes")
    build_index(ColourRuntime(), ListSource(), out)
    return out


@pytest.fixture
def index(built, tmp_path):
    return Path(shutil.copytree(built, tmp_path / "index"))


@pytest.fixture
def engine(index):
    with closing(opened(index)) as engine:
        yield engine


def opened(index, runtime=None, writable=True):
    runtime = runtime or ColourRuntime()
    return SearchEngine(runtime, EmbeddedStore.open(index, runtime.fingerprint, writable=writable))


def run(coroutine):
    return asyncio.run(coroutine)


def test_an_uploaded_image_is_found_at_once_with_all_that_came_with_it(engine, index):
    async def change():
        version = await engine.changes.upsert(
            ImageUpsert("new", picture("red", seed=9), ("a new one",), {"colour": "red", "year": 2024})
        )
        answer = await engine.search(TextQuery("red"), SearchOptions(k=1, filter_text="year = 2024"))
        return version, answer.hits[0], await engine.images.get("new", with_vector=True)

    version, hit, (known, revision) = run(change())
    assert (version, hit.image_id, hit.captions) == (BATCH_VERSION + 1, "new", ("a new one",))
    assert hit.attributes == known.image.attributes == {"colour": "red", "year": 2024}
    assert known.image.version == version
    assert image_path(index, known.image.digest).read_bytes() == picture("red", seed=9)
    expected = engine.runtime.embed_images([picture("red", seed=9)])[0].astype(np.float16)
    np.testing.assert_array_equal(known.vector, expected)
    assert revision.endswith(f"-{version}")


def test_a_vector_of_any_length_is_kept_at_unit_length(engine):
    async def change():
        await engine.changes.upsert(ImageUpsert("v", np.eye(len(COLOURS))[0] * 7))
        return await engine.images.get("v", with_vector=True)

    known, _ = run(change())
    np.testing.assert_array_equal(known.vector, np.eye(len(COLOURS))[0])
    assert known.image.digest == ""


def test_a_repeated_request_is_answered_as_before_though_its_embedding_differs(index):
    async def change(engine):
        request = ImageUpsert("new", picture("red", seed=9), request_id="r1")
        return [await engine.changes.upsert(request), await engine.changes.upsert(request)]

    with closing(opened(index, UnsteadyRuntime())) as engine:
        first = run(change(engine))
    with closing(opened(index, UnsteadyRuntime())) as engine:  # after a restart too
        again = run(change(engine))
        with pytest.raises(KeyReused):
            run(engine.changes.upsert(ImageUpsert("new", picture("blue"), request_id="r1")))
        with pytest.raises(KeyReused):
            run(engine.changes.delete(["new"], request_id="r1"))
    assert first + again == [BATCH_VERSION + 1] * 4


def test_conditions_are_checked_and_deletions_are_all_or_none(engine):
    async def change():
        with pytest.raises(VersionConflict):
            await engine.changes.upsert(ImageUpsert("red-0000", picture("red"), if_version=0))
        version = await engine.changes.upsert(ImageUpsert("red-0000", picture("red"), if_version=BATCH_VERSION))
        with pytest.raises(QueryError, match="1 to 1,000"):
            await engine.changes.delete([])
        with pytest.raises(QueryError, match="an id of 1 to"):
            await engine.changes.delete(["red-0000", ""])
        found, _ = await engine.images.batch_get(["red-0000", "nobody"])
        assert [known and known.image.version for known in found] == [version, None]
        versions = await engine.changes.delete(["red-0000", "nobody"])
        assert versions == (version + 1, version + 2)
        with pytest.raises(ImageNotFound):
            await engine.images.get("red-0000")

    run(change())


@pytest.mark.parametrize(
    ("field", "image"),
    [
        ("image_id", ImageUpsert("", b"")),
        ("image_id", ImageUpsert("x" * 1_025, b"")),
        ("captions", ImageUpsert("x", b"", ["a"] * 101)),
        ("captions[1]", ImageUpsert("x", b"", ["a", "b" * 10_001])),
        ("attributes", ImageUpsert("x", b"", ["é" * 9_000] * 4)),
        ("attributes", ImageUpsert("x", b"", [], {str(n): n for n in range(101)})),
        ("attributes", ImageUpsert("x", b"", [], {"": 1})),
        ("attributes", ImageUpsert("x", b"", [], {"a": float("nan")})),
        ("if_version", ImageUpsert("x", b"", if_version=-1)),
        ("request_id", ImageUpsert("x", b"", request_id="k" * 257)),
        ("data", ImageUpsert("x", b"no image")),
        ("vector", ImageUpsert("x", np.ones(3))),
        ("vector", ImageUpsert("x", np.zeros(len(COLOURS)))),
        ("vector", ImageUpsert("x", np.full(len(COLOURS), np.nan))),
    ],
)
def test_what_breaks_a_limit_is_refused_by_its_field_and_leaves_nothing(engine, index, field, image):
    with pytest.raises(QueryError) as refusal:
        run(engine.changes.upsert(image))
    assert refusal.value.field == field
    assert isinstance(refusal.value, ImageRefused) == (field == "data")
    with engine.store.view() as view:
        assert view.changes == 0
    assert not list(index.glob("images/*/*"))


def test_a_store_that_was_opened_to_read_takes_no_change(index):
    with closing(opened(index, writable=False)) as engine:
        with pytest.raises(ReadOnly):
            run(engine.changes.upsert(ImageUpsert("x", picture("red"))))
        with pytest.raises(ReadOnly):
            run(engine.changes.delete(["x"]))


def test_a_disk_without_room_refuses_the_change_and_says_so(engine, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patched:
        patched.setattr("serving.uploaded_images.write_atomic", fail)
        with pytest.raises(StoreFailed) as refusal:
            run(engine.changes.upsert(ImageUpsert("x", picture("red"))))
        assert refusal.value.full
    with monkeypatch.context() as patched:
        patched.setattr("serving.change_log.ChangeLog.append", fail)
        with pytest.raises(StoreFailed):
            run(engine.changes.delete(["red-0000"]))
    assert run(engine.changes.upsert(ImageUpsert("x", picture("red")))) == BATCH_VERSION + 1


def test_a_caller_who_gives_up_harms_nobody(engine):
    async def change():
        tasks = [
            asyncio.create_task(engine.changes.upsert(ImageUpsert(f"n{number}", picture("red", seed=number))))
            for number in range(40)
        ]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, int) for result in done[1::2])
        found, _ = await engine.images.batch_get([f"n{number}" for number in range(1, 40, 2)])
        assert all(found)

    run(change())


def test_images_of_a_corrected_model_get_their_offsets(tmp_path):
    runtime = ColourRuntime()
    bank = runtime.embed_texts(list(COLOURS)).astype(np.float16)
    runtime.hubness = HubnessCorrection(bank, weight=0.5, neighbours=2)
    build_index(runtime, ListSource(), tmp_path)

    async def search(engine):
        return (await engine.search(TextQuery("a red one"), SearchOptions(k=40))).hits

    with closing(opened(tmp_path, runtime)) as engine:
        before = run(search(engine))
    with closing(opened(tmp_path, runtime)) as engine:

        async def change():
            await engine.changes.upsert(ImageUpsert("again", picture("red", seed=0)))  # as red-0000
            return await search(engine)

        scores = {hit.image_id: hit.score for hit in run(change())}
    assert scores["again"] == scores["red-0000"] == {hit.image_id: hit.score for hit in before}["red-0000"]


def test_lists_go_on_where_they_were_whatever_changes(engine):
    async def pages():
        seen, token = [], ""
        while True:
            images, token, _ = await engine.images.page(7, token, "number >= 10")
            seen.append([known.image.image_id for known in images])
            if not token:
                return seen
            await engine.changes.delete([seen[-1][0]])
            await engine.changes.upsert(ImageUpsert("aaa", picture("red"), attributes={"number": 99}))

    seen = run(pages())
    expected = sorted(pair.image_id for pair in ListSource().pairs if pair.attributes["number"] >= 10)
    assert [image_id for page in seen for image_id in page] == expected
    assert [len(page) for page in seen] == [7, 7, 7, 7, 2]


@pytest.mark.parametrize("token", ["x", "e30=", "WzEsMiwzXQ==", "W10=", "é", "a" * 20_000, "WzEsIngiLCAiXHVkODAwIl0="])
def test_a_token_that_is_none_is_refused(engine, token):
    with pytest.raises(QueryError, match="a page token"):
        run(engine.images.page(page_token=token))


def test_a_token_of_another_list_is_refused(engine):
    async def pages():
        _, token, _ = await engine.images.page(2)
        with pytest.raises(QueryError, match="the same request"):
            await engine.images.page(2, token, 'colour = "red"')
        answer = await engine.search(TextQuery("red"), SearchOptions(k=2))
        with pytest.raises(QueryError, match="a page token"):
            await engine.images.page(2, answer.next_page_token)
        with pytest.raises(QueryError, match="a page token"):
            await engine.search(TextQuery("red"), SearchOptions(k=2, page_token=token))

    run(pages())
