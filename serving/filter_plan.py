"""Rewrites a filter so that terms about one attribute are looked up together, with the same meaning; knows no index.

Filters that programs write have hundreds of terms, mostly alternatives for one attribute. What remains of those is one
look-up; of the others, as many as there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from serving.filters import And, Compare, Contains, Exists, Filter, Ids, In, Not, Or, Scalar


@dataclass(frozen=True)
class Ranges:
    """The attribute passes every comparison of at least one of `alternatives`."""

    attribute: str
    alternatives: tuple[tuple[Compare, ...], ...]


@dataclass(frozen=True)
class Items:
    """The attribute is a list that holds one of `texts`."""

    attribute: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Every:
    """Every one of `steps`, of which there are several or none."""

    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Some:
    """At least one of `steps`, of which there are several or none."""

    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Without:
    """What `step`, which is no `Without`, does not match."""

    step: Step


Step = Every | Some | Without | Ranges | Items | In | Exists | Ids


def planned(where: Filter) -> Step:
    """The look-ups that `where` stands for."""
    match where:
        case And(terms):
            return _joined(Every, map(planned, terms))
        case Or(terms):
            return _joined(Some, map(planned, terms))
        case Not(term):
            return _opposite(planned(term))
        case Compare(attribute):
            return Ranges(attribute, ((where,),))
        case Contains(attribute, text):
            return Items(attribute, (text,))
    return where


def lookups(step: Step) -> Iterator[Step]:
    """The steps that look something up."""
    match step:
        case Every(steps) | Some(steps):
            for inner in steps:
                yield from lookups(inner)
        case Without(inner):
            yield from lookups(inner)
        case _:
            yield step


def _opposite(step: Step) -> Step:
    return step.step if isinstance(step, Without) else Without(step)


def _joined(kind: type[Every] | type[Some], steps: Iterable[Step]) -> Step:
    """`steps` of which every one, or some, must match: flat, opposites together, and one for each attribute."""
    flat = [inner for step in steps for inner in (step.steps if isinstance(step, kind) else (step,))]
    opposites = [step.step for step in flat if isinstance(step, Without)]
    left: list[Step] = [step for step in flat if not isinstance(step, Without)]
    if opposites:  # De Morgan
        left.append(_opposite(_joined(Some if kind is Every else Every, opposites)))
    groups: dict[object, list[Step]] = {}
    for number, step in enumerate(left):
        groups.setdefault(_joins_with(kind, step) or number, []).append(step)
    joined = [group[0] if len(group) == 1 else _together(kind, group) for group in groups.values()]
    return joined[0] if len(joined) == 1 else kind(tuple(joined))


def _joins_with(kind: type[Every] | type[Some], step: Step) -> tuple[type, str] | None:
    """What steps that become one with `step` have in common."""
    match step:
        case Ids():
            return Ids, ""
        case Ranges(attribute, ((Compare(_, "="),),)) if kind is Some:
            return In, attribute
        case Ranges(attribute, alternatives) if kind is Some or len(alternatives) == 1:
            return Ranges, attribute
        case In(attribute) | Items(attribute) if kind is Some:
            return type(step), attribute
    return None


def _together(kind: type[Every] | type[Some], group: list[Step]) -> Step:
    """One step for several that join."""
    sets: list[frozenset[str]] = []
    values: list[Scalar] = []
    texts: list[str] = []
    alternatives: list[tuple[Compare, ...]] = []
    for step in group:
        match step:
            case Ids(image_ids):
                sets.append(image_ids)
            case In(_, several):
                values += several
            case Ranges(_, ((Compare(_, "=", value),),)) if kind is Some:
                values.append(value)
            case Ranges(_, several_ranges):
                alternatives += several_ranges
            case Items(_, several_texts):
                texts += several_texts
    if sets:
        return Ids(frozenset.intersection(*sets) if kind is Every else frozenset.union(*sets))
    attribute: str = group[0].attribute  # type: ignore[union-attr]
    if alternatives:
        return Ranges(attribute, (tuple(itertools.chain(*alternatives)),) if kind is Every else tuple(alternatives))
    return In(attribute, tuple(values)) if values else Items(attribute, tuple(texts))
