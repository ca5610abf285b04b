"""What the command line of the client prints: tables for people, JSON for programs; asks nobody."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from data import console
from data.attributes import attributes_to_json
from serving.client_values import Image, Operation, SearchResults


def print_results(pages: list[SearchResults], query: str, machine: bool) -> None:
    """The hits of all pages as a table, or as JSON for a `machine`."""
    hits, first = [hit for page in pages for hit in page], pages[0]
    timings = None if first.timings is None else asdict(first.timings)
    if machine:
        answer: dict[str, Any] = {
            "hits": [{name: value for name, value in as_json(hit).items() if value is not None} for hit in hits],
            "model_revision": first.model_revision,
            "index_revision": first.index_revision,
        }
        if first.match_probability is not None:
            answer["match_probability"] = first.match_probability
        if timings is not None:
            answer["timings"] = timings
        print(json.dumps(answer, indent=2))
        return
    rows = [(f"{hit.score:.3f}", printable(hit.image_id), printable("; ".join(hit.captions))) for hit in hits]
    console.print_table(f"{len(hits)} images for “{printable(query)}”", ("score", "id", "caption"), rows)
    if timings is not None:
        console.say(", ".join(f"{name} {1_000 * seconds:.1f} ms" for name, seconds in timings.items()))


def print_images(title: str, images: Sequence[Image], machine: bool) -> None:
    """What is known about images as a table, or as JSON for a `machine`."""
    if machine:
        print(json.dumps([as_json(image) for image in images], indent=2))
        return
    rows = [
        (
            printable(image.image_id),
            image.version,
            printable("; ".join(image.captions)),
            printable(json.dumps(attributes_to_json(image.attributes), ensure_ascii=False)),
        )
        for image in images
    ]
    console.print_table(title, ("id", "version", "captions", "attributes"), rows)


def operation_json(operation: Operation) -> dict[str, Any]:
    """An operation as `json.dumps` takes it."""
    fields = {name: getattr(operation, name) for name in operation.__dataclass_fields__}
    fields["error"] = None if operation.error is None else str(operation.error)
    return {name: shown_moment(value) if isinstance(value, datetime) else value for name, value in fields.items()}


def as_json(value: Any) -> dict[str, Any]:
    """A hit or an image as `json.dumps` takes it."""
    return {**asdict(value), "attributes": attributes_to_json(value.attributes)}


def shown_moment(moment: datetime, precision: str = "auto") -> str:
    """A time as JSON shows it, or a table with the precision "seconds"."""
    return moment.isoformat(timespec=precision)


def printable(text: str, limit: int = 120) -> str:
    """One short line; what a data set contains must not steer the terminal."""
    text = "".join(character if character.isprintable() else " " for character in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"
