"""Examples and similarities of collections too large for one block of scores are those of a plain computation."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import picture

from data.pairs import ImageBytes, ImageTextPair
from dual_encoder.embedded_pairs import EmbeddedPairs
from dual_encoder.metrics import rank_both_directions
from dual_encoder.retrieval_examples import _BLOCK_SCORES, best_hits, similarities, worst_misses
from dual_encoder.training_data import CaptionTable

IMAGES = 2100


@pytest.fixture(scope="module")
def large() -> EmbeddedPairs:
    """Two captions an image, each near its image by chance."""
    generator = np.random.default_rng(0)
    shape = (IMAGES, 12)
    images = generator.normal(size=shape)
    captions = np.repeat(images, 2, axis=0) + generator.normal(size=(2 * IMAGES, 12))
    images, captions = (
        (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32) for vectors in (images, captions)
    )
    drawn = ImageBytes(lambda: picture("red"))
    pairs = [ImageTextPair(str(n), drawn, (f"{n} first", f"{n} second")) for n in range(IMAGES)]
    return EmbeddedPairs(pairs, CaptionTable.of(pairs), images, captions, [])


def test_similarities_over_several_blocks(large: EmbeddedPairs) -> None:
    scores = large.captions @ large.images.T
    assert scores.size > 2 * _BLOCK_SCORES
    own = scores[np.arange(len(scores)), large.caption_image]
    found = similarities(large)
    assert (found.matching.sum(), found.other.sum()) == (len(scores), scores.size - len(scores))
    # A score on an edge may fall on either side of it, as products are rounded differently in blocks.
    every = np.histogram(scores, found.edges)[0]
    assert np.abs(found.matching + found.other - every).max() <= 5
    assert np.abs(found.matching - np.histogram(own, found.edges)[0]).max() <= 1


def test_the_widest_leads_and_the_lowest_ranks_over_several_blocks(large: EmbeddedPairs) -> None:
    scores = (large.captions @ large.images.T).astype(np.float64)
    rows = np.arange(len(scores)), large.caption_image
    own = scores[rows].copy()
    scores[rows] = -np.inf
    lead = own - scores.max(axis=1)
    queries = rank_both_directions(large.images, large.captions, large.caption_image)["text_to_image"]
    best, worst = best_hits(large, queries), worst_misses(large, queries)

    widest: list[int] = []  # the images of the captions with the widest lead
    for caption in np.argsort(-lead).tolist():
        image = int(large.caption_image[caption])
        if image not in widest:
            widest.append(image)
    assert [example.right.image_id for example in best] == [str(image) for image in widest[: len(best)]]
    assert len(best) == 8
    assert worst[0].rank == queries.ranks.max()
    assert all(
        shown.right == (shown.image_id == example.right.image_id) for example in worst for shown in example.returned
    )
