"""Which images a search may return, by their ids and attributes: the terms of a filter, and what they mean.

`matches` is the meaning; every faster evaluation is tested against it. Knows no index and no syntax.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from data.pairs import AttributeValue

Scalar = str | int | float | bool | datetime


@dataclass(frozen=True)
class And:
    """Every one of `terms`; with none it matches every image."""

    terms: tuple[Filter, ...]


@dataclass(frozen=True)
class Or:
    """At least one of `terms`; with none it matches no image."""

    terms: tuple[Filter, ...]


@dataclass(frozen=True)
class Not:
    """What `term` does not match: images without the attribute too."""

    term: Filter


@dataclass(frozen=True)
class Compare:
    """The attribute has a value of the same kind (numbers are one kind) and it stands in this relation to `value`."""

    attribute: str
    relation: Literal["=", "<", "<=", ">", ">="]
    value: Scalar

    def __post_init__(self) -> None:
        _check(self.value)


@dataclass(frozen=True)
class In:
    """The attribute equals one of `values`."""

    attribute: str
    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        for value in self.values:
            _check(value)


@dataclass(frozen=True)
class Contains:
    """The attribute is a list of texts and `text` is one of them."""

    attribute: str
    text: str


@dataclass(frozen=True)
class Exists:
    """The image has the attribute, whatever its value."""

    attribute: str


@dataclass(frozen=True)
class Ids:
    """The image is one of these."""

    image_ids: frozenset[str]


Filter = And | Or | Not | Compare | In | Contains | Exists | Ids


def matches(where: Filter, image_id: str, attributes: Mapping[str, AttributeValue]) -> bool:
    """Whether an image with these attributes passes `where`."""
    match where:
        case And(terms):
            return all(matches(term, image_id, attributes) for term in terms)
        case Or(terms):
            return any(matches(term, image_id, attributes) for term in terms)
        case Not(term):
            return not matches(term, image_id, attributes)
        case Ids(image_ids):
            return image_id in image_ids
    if where.attribute not in attributes:
        return False
    held = attributes[where.attribute]
    match where:
        case Exists():
            return True
        case Contains(_, text):
            return isinstance(held, list | tuple) and text in held
        case In(_, values):
            return any(_compare(held, "=", value) for value in values)
        case Compare(_, relation, value):
            return _compare(held, relation, value)


def _check(value: Scalar) -> None:
    """`ValueError` for what stands in no relation to anything: NaN, and times that name no moment."""
    if (isinstance(value, float) and math.isnan(value)) or (isinstance(value, datetime) and value.utcoffset() is None):
        raise ValueError(f"expected a number or a time with its offset from UTC; received {value!r}")


def _compare(held: AttributeValue, relation: str, value: Scalar) -> bool:
    if isinstance(held, list | tuple) or _kind(held) is not _kind(value):
        return False
    match relation:
        case "=":
            return held == value
        case "<":
            return held < value  # type: ignore[operator]
        case "<=":
            return held <= value  # type: ignore[operator]
        case ">":
            return held > value  # type: ignore[operator]
        case _:
            return held >= value  # type: ignore[operator]


def _kind(value: Scalar) -> type:
    """Numbers compare with one another; a truth value is not a number."""
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)
