"""What a figure stands for: the captions that were answered best and worst, with pictures, and how scores are spread;
knows embeddings, no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import ImageError
from data.pairs import ImageTextPair
from data.thumbnails import thumbnail
from dual_encoder.embedded_pairs import EmbeddedPairs
from dual_encoder.metrics import TIE, RankedQueries

_BLOCK_SCORES = 4_000_000  # scores computed at a time, 16 MB


@dataclass(frozen=True)
class Picture:
    """An image as a report shows it: id, one caption, score for the query, and a WebP thumbnail where it decodes."""

    image_id: str
    caption: str
    score: float
    right: bool
    thumbnail: bytes | None


@dataclass(frozen=True)
class Example:
    """A caption as a query: the image it belongs to, the rank of that image, and the images that came first."""

    query: str
    rank: int
    right: Picture
    returned: list[Picture]


@dataclass(frozen=True)
class Similarities:
    """Counts (B,) of the cosine similarities of captions with their own image, and with every other; edges (B + 1,)."""

    edges: np.ndarray
    matching: np.ndarray
    other: np.ndarray


def similarities(embedded: EmbeddedPairs, bins: int = 100) -> Similarities:
    """Count every caption–image pair; scores that are no numbers are left out."""
    edges = np.linspace(-1, 1, bins + 1)
    matching, every = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    for captions, scores in _score_blocks(embedded):
        own = scores[np.arange(len(captions)), embedded.caption_image[captions]]
        for counts, values in ((matching, own), (every, scores)):
            # A number of bins is far faster than a list of edges.
            counts += np.histogram(np.clip(values[np.isfinite(values)], -1, 1), bins, (-1, 1))[0]
    return Similarities(edges, matching, every - matching)


def best_hits(embedded: EmbeddedPairs, queries: RankedQueries, count: int = 8) -> list[Example]:
    """Captions whose image came first, those with the widest lead over every other image first; an image at most once.

    `queries` are those of text→image.
    """
    lead = _leads(embedded)
    hits = np.flatnonzero(queries.ranks == 1)
    return _examples(embedded, queries, hits[np.argsort(-lead[hits], kind="stable")], count)


def worst_misses(embedded: EmbeddedPairs, queries: RankedQueries, count: int = 12) -> list[Example]:
    """Captions whose image came last, by rank; an image at most once."""
    misses = np.flatnonzero(queries.ranks > 1)
    return _examples(embedded, queries, misses[np.argsort(-queries.ranks[misses], kind="stable")], count)


def _score_blocks(embedded: EmbeddedPairs) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of some captions (B,), and their scores with every image (B, N)."""
    step = max(1, _BLOCK_SCORES // len(embedded.images))
    for start in range(0, len(embedded.captions), step):
        block = embedded.captions[start : start + step]
        yield np.arange(start, start + len(block)), block @ embedded.images.T


def _leads(embedded: EmbeddedPairs) -> np.ndarray:
    """By how much each caption's own image scores above the best other one, (C,)."""
    leads = np.empty(len(embedded.captions))
    for captions, scores in _score_blocks(embedded):
        place = np.arange(len(captions)), embedded.caption_image[captions]
        own = scores[place]
        scores[place] = -np.inf
        leads[captions] = own - scores.max(axis=1)
    return leads


def _examples(
    embedded: EmbeddedPairs, queries: RankedQueries, captions: np.ndarray, count: int, returned: int = 5
) -> list[Example]:
    examples: list[Example] = []
    shown: set[int] = set()
    for caption in captions.tolist():
        row = int(embedded.caption_image[caption])
        if len(examples) == count:
            break
        if row in shown:
            continue
        shown.add(row)
        scores = embedded.images @ embedded.captions[caption]
        # As in ranking, a tie counts against the model and what is no number comes last.
        order = np.where(np.isfinite(scores), scores, -np.inf).astype(np.float64)
        order[row] -= TIE
        first = np.lexsort((np.arange(len(order)) == row, -order))[:returned]
        pictures = [_picture(embedded.pairs, int(i), float(scores[i]), right=bool(i == row)) for i in first]
        right = _picture(embedded.pairs, row, float(scores[row]), right=True)
        examples.append(Example(embedded.table.captions[caption], int(queries.ranks[caption]), right, pictures))
    return examples


def _picture(pairs: Sequence[ImageTextPair], row: int, score: float, right: bool) -> Picture:
    pair = pairs[row]
    try:
        small = thumbnail(pair.image.read())
    except ImageError:
        small = None  # gone since it was embedded
    return Picture(pair.image_id, pair.captions[0] if pair.captions else "", score, right, small)
