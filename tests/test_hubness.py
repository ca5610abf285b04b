"""Images that stand near every query are taken down by their offset, only where that helps, and the same everywhere."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest
from chain import Chain
from fakes import ColourRuntime, ListSource
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BundleError, SourceError
from dual_encoder import correct_hubness
from dual_encoder.bundle import QUERY_BANK, open_bundle, with_correction
from dual_encoder.embedded_pairs import EmbeddedPairs
from dual_encoder.evaluate import evaluate, pairs_of_split
from dual_encoder.hubness import HubnessCorrection, as_served, asked, choose_correction, sample_bank
from dual_encoder.metrics import ranks, unit
from dual_encoder.runtime import Runtime
from dual_encoder.training_data import CaptionTable
from serving.embedded_store import EmbeddedStore
from serving.index_job import build_index
from serving.queries import ImageIdQuery, SearchOptions, TextQuery
from serving.search_engine import SearchEngine
from serving.vector_index import SearchHit


def random_unit(rows: int, dimension: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((rows, dimension))).astype(np.float32)


def offsets_by_definition(correction: HubnessCorrection, images: np.ndarray) -> list[float]:
    """One image and one text at a time, in float64."""
    found = []
    for image in images.astype(np.float64):
        similarities = sorted((float(image @ text) for text in correction.bank.astype(np.float64)), reverse=True)
        nearest = similarities[: correction.neighbours]
        found.append(correction.weight * sum(nearest) / len(nearest))
    return found


@given(
    seed=st.integers(0, 2**32 - 1),
    neighbours=st.integers(1, 40),
    weight=st.floats(0.01, 1.0),
    images=st.integers(0, 9),
)
def test_offsets_are_those_of_the_definition(seed: int, neighbours: int, weight: float, images: int) -> None:
    correction = HubnessCorrection(random_unit(30, 8, seed).astype(np.float16), weight, neighbours)
    vectors = random_unit(images, 8, seed + 1)
    np.testing.assert_allclose(correction.offsets(vectors), offsets_by_definition(correction, vectors), atol=1e-6)


def test_one_more_component_is_the_offset() -> None:
    correction = HubnessCorrection(random_unit(60, 16, 0).astype(np.float16), 0.5)
    images, texts = random_unit(20, 16, 1), random_unit(10, 16, 2)
    searched, queries = as_served(correction, images, texts)
    assert searched.shape == (20, 17)
    assert queries.shape == (10, 17)
    np.testing.assert_allclose(queries @ searched.T, texts @ images.T - correction.offsets(images), atol=1e-6)
    plain = as_served(None, images, texts)
    assert plain[0] is images
    assert plain[1] is texts


def hub_world(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bank, images and their texts, where every text leans towards a few images that are nobody's."""
    common = random_unit(1, 32, seed)
    images = random_unit(200, 32, seed + 1)
    texts = unit(images + 0.8 * random_unit(200, 32, seed + 2) + common).astype(np.float32)
    images[:20] = unit(common + 0.3 * images[:20])
    bank = unit(random_unit(500, 32, seed + 3) + 0.8 * random_unit(500, 32, seed + 4) + common)
    return bank, images, texts


def test_hubs_are_taken_down_and_the_ranks_of_others_improve() -> None:
    bank, images, texts = hub_world()
    rows = np.arange(20, 200)
    correction = choose_correction(bank, images, texts[rows], rows)
    assert correction is not None
    searched, queries = as_served(correction, images, texts[rows])
    before, after = (
        ranks(question, gallery, [[row] for row in rows])
        for question, gallery in ((texts[rows], images), (queries, searched))
    )
    assert np.log(after).mean() < np.log(before).mean() - 0.1
    hubs = correction.offsets(images)[:20].mean()
    assert hubs > correction.offsets(images)[20:].mean() + 0.1


def test_without_hubs_there_is_no_correction() -> None:
    images = random_unit(200, 64, 0)
    texts = unit(images + 0.9 * random_unit(200, 64, 1)).astype(np.float32)
    assert choose_correction(random_unit(500, 64, 2), images, texts, np.arange(200)) is None


def test_a_bank_holds_each_text_once_and_the_same_ones_each_time() -> None:
    texts = [f"text {number % 5000}" for number in range(20_000)]
    bank = sample_bank(texts, seed=1)
    assert len(bank) == len(set(bank)) == 4_096
    assert bank == sample_bank(list(reversed(texts)), seed=1)
    assert bank != sample_bank(texts, seed=2)
    assert sample_bank(["b", "a", "b"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("bank", "weight", "neighbours"),
    [
        (np.ones((3, 4), np.float32), 0.5, 50),
        (np.ones((0, 4), np.float16), 0.5, 50),
        (np.ones(4, np.float16), 0.5, 50),
        (np.ones((3, 4), np.float16), 0.0, 50),
        (np.ones((3, 4), np.float16), float("nan"), 50),
        (np.ones((3, 4), np.float16), 0.5, 0),
    ],
)
def test_a_correction_that_makes_no_sense_is_refused(bank: np.ndarray, weight: float, neighbours: int) -> None:
    with pytest.raises(BundleError):
        HubnessCorrection(bank, weight, neighbours)


@pytest.fixture
def bundle(chain: Chain, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chain.bundle, tmp_path / "model"))


def test_a_bundle_brings_its_correction_along_and_is_another_model_with_it(bundle: Path) -> None:
    before = with_correction(open_bundle(bundle), None, None)
    correction = HubnessCorrection(random_unit(60, before.embedding_dim, 0).astype(np.float16), 0.5, 7)
    with_correction(before, correction, None)
    after = open_bundle(bundle)
    assert after.fingerprint != before.fingerprint
    assert after.calibration is None
    assert after.hubness == correction
    assert after.hubness is not None
    np.testing.assert_array_equal(after.hubness.bank, correction.bank)
    with_correction(after, None, before.calibration)
    assert open_bundle(bundle).hubness is None
    assert open_bundle(bundle).fingerprint == before.fingerprint
    assert not (bundle / QUERY_BANK).exists()


def test_evaluation_ranks_as_a_search_does(bundle: Path, chain: Chain) -> None:
    from data.sources import open_source

    dimension = open_bundle(bundle).embedding_dim
    correction = HubnessCorrection(random_unit(60, dimension, 0).astype(np.float16), 1.0, 3)
    with_correction(open_bundle(bundle), correction, None)
    runtime = Runtime.load(bundle)
    pairs = pairs_of_split(open_source(f"prepared:{chain.data}"), "test")
    table = CaptionTable.of(pairs)
    images = runtime.embed_images([pair.image.read() for pair in pairs])
    scores = runtime.embed_texts(table.captions) @ images.T - correction.offsets(images)
    own = scores[np.arange(len(scores)), table.image_row]
    expected = np.mean((scores >= own[:, np.newaxis] - 1e-6).sum(axis=1) <= 10)
    assert evaluate(runtime, pairs)["text_to_image"]["recall@10"] == pytest.approx(expected)


def test_a_search_by_text_takes_offsets_off_and_one_by_image_does_not(tmp_path: Path) -> None:
    runtime = ColourRuntime()
    bank = np.eye(runtime.embedding_dim, dtype=np.float16)
    runtime.hubness = HubnessCorrection(bank, 1.0, 1)  # type: ignore[assignment]
    build_index(runtime, ListSource(), tmp_path / "index")  # type: ignore[arg-type]
    engine = SearchEngine(runtime, EmbeddedStore.open(tmp_path / "index", runtime.fingerprint))  # type: ignore[arg-type]
    pairs = {pair.image_id: pair for pair in ListSource()}

    async def ask() -> tuple[list[SearchHit], list[SearchHit]]:
        by_text = await engine.search(TextQuery("red"), SearchOptions(k=5))
        by_image = await engine.search(ImageIdQuery(by_text.hits[0].image_id), SearchOptions(k=5))
        return by_text.hits, by_image.hits

    by_text, by_image = asyncio.run(ask())
    engine.close()
    query = runtime.embed_texts(["red"])[0]
    for hit in by_text:
        vector = runtime.embed_images([pairs[hit.image_id].image.read()])
        assert hit.score == pytest.approx(float(vector[0] @ query - runtime.hubness.offsets(vector)[0]), abs=2e-3)  # type: ignore[attr-defined]
    assert by_image[0].score == pytest.approx(1.0, abs=2e-3)


def test_served_pairs_hold_what_is_compared() -> None:
    correction = HubnessCorrection(random_unit(60, 8, 0).astype(np.float16), 0.5)
    pairs = EmbeddedPairs([], CaptionTable.of([]), random_unit(4, 8, 1), random_unit(5, 8, 2), [])
    served = pairs.served(correction)
    np.testing.assert_array_equal(served.captions, asked(pairs.captions))
    np.testing.assert_array_equal(served.images, correction.searched(pairs.images))


def test_the_bank_can_be_queries_that_people_asked(
    bundle: Path, chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked_file = tmp_path / "asked.txt"
    asked_file.write_text("\n".join(f"a drawing of thing number {number}" for number in range(60)), "utf-8")
    command = ["--bundle", str(bundle), "--data", f"prepared:{chain.data}", "--queries", str(asked_file)]
    assert correct_hubness.main(command) == 0
    said = " ".join(capsys.readouterr().err.split())
    correction = open_bundle(bundle).hubness
    assert (f"weight {correction.weight:g}, 60 queries" if correction else "no correction") in said


@pytest.mark.parametrize("content", [b"one query\n\n", b"\xff\xfe broken"])
def test_a_bank_that_is_too_small_or_no_text_is_refused_and_changes_nothing(
    content: bytes, bundle: Path, chain: Chain, tmp_path: Path
) -> None:
    file = tmp_path / "asked.txt"
    file.write_bytes(content)
    before = (bundle / "bundle.json").read_bytes()
    with pytest.raises(SourceError):
        correct_hubness.main(["--bundle", str(bundle), "--data", f"prepared:{chain.data}", "--queries", str(file)])
    assert (bundle / "bundle.json").read_bytes() == before
