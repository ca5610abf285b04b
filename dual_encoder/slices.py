"""Retrieval figures of parts of a data set, by an attribute of the image or by caption length; knows no model.

A slice's queries are ranked against the full gallery, so that slices of any size can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.errors import SourceError
from data.pairs import ImageTextPair
from data.text import clean_caption
from dual_encoder.metrics import RankedQueries

SMALLEST = 20  # fewer queries than this say too little for a row of their own
OTHER = "(other)"  # values with fewer queries, together
NONE = "(none)"  # images without the attribute
_THIRDS = {"short": 0, "medium": 1, "long": 2}


def slice_figures(
    ranked: dict[str, RankedQueries],
    pairs: Sequence[ImageTextPair],
    captions: Sequence[str],
    attributes: Sequence[str] = (),
) -> dict[str, Any]:
    """Figures by caption length and by each of `attributes`: `{slice: {direction: {value: figures}}}`.

    `ranked` is of `pairs` and their `captions` (rank_both_directions). An image whose attribute is a list counts for
    each of its members. "by_caption_length" also states its thirds in words.
    """
    lengths = np.array([len(clean_caption(caption).split()) for caption in captions])
    short, medium = (int(bound) for bound in np.quantile(lengths, [1 / 3, 2 / 3], method="inverted_cdf"))
    owners = ranked["text_to_image"].images
    mean_length = np.bincount(owners, weights=lengths, minlength=len(pairs)) / np.bincount(
        owners, minlength=len(pairs)
    ).clip(1)

    def third(length: float) -> list[str]:
        return ["short" if length <= short else "medium" if length <= medium else "long"]

    by_attribute = {}
    for name in attributes:
        values = attribute_values(pairs, name)
        by_attribute[name] = {
            direction: _by_value(queries, [values[row] for row in queries.images.tolist()])
            for direction, queries in ranked.items()
        }
    to_text = ranked["image_to_text"]
    return {
        "by_caption_length": {
            "thirds": _thirds(short, medium),
            "text_to_image": _by_value(ranked["text_to_image"], [third(length) for length in lengths.tolist()]),
            "image_to_text": _by_value(to_text, [third(mean_length[row]) for row in to_text.images.tolist()]),
        },
        "by_attribute": by_attribute,
    }


def attribute_values(pairs: Sequence[ImageTextPair], name: str) -> list[list[str]]:
    """The values of one attribute, for each image a list; `SourceError` when no image has it."""
    if not any(name in pair.attributes for pair in pairs):
        known = sorted({key for pair in pairs for key in pair.attributes})
        raise SourceError(
            "an attribute that the images have" + (f": {', '.join(known)}" if known else ""),
            f"{name!r}, which none of them has" if known else f"{name!r}; the images have no attributes",
            "name another one with --slice, or leave it out",
        )
    return [_values(pair.attributes.get(name)) for pair in pairs]


def _values(value: object) -> list[str]:
    if value is None or value == []:
        return [NONE]
    members = value if isinstance(value, list) else [value]
    return sorted({str(member).lower() if isinstance(member, bool) else str(member) for member in members})


def _thirds(short: int, medium: int) -> str:
    parts = [f"short: up to {short}"]
    if medium > short:
        parts.append(f"medium: {short + 1} to {medium}" if medium > short + 1 else f"medium: {medium}")
    return ", ".join([*parts, f"long: from {medium + 1}"]) + " words (an image's captions: their mean)"


def _by_value(queries: RankedQueries, values: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Figures of the queries of each value, those with most queries first, the small ones together at the end."""
    positions: dict[str, list[int]] = {}
    for position, own in enumerate(values):
        for value in own:
            positions.setdefault(value, []).append(position)
    large = {value: found for value, found in positions.items() if len(found) >= SMALLEST and value != OTHER}
    small = sorted({position for value, found in positions.items() if value not in large for position in found})
    ordered = dict(sorted(large.items(), key=lambda item: (_THIRDS.get(item[0], 3), -len(item[1]), item[0])))
    if small:
        ordered[OTHER] = small
    return {value: queries.of(np.array(found)).summary() for value, found in ordered.items()}
