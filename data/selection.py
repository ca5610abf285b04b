"""The part of a source whose images have given attributes; knows no file format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data.errors import SourceError
from data.pairs import ImageTextPair, PairSource


class Selection:
    """Pairs of `source` whose attribute has one of the values, for every `ATTRIBUTE=VALUE,VALUE` of `conditions`.

    Values are compared as text, in lower case; an attribute that holds a list matches by any item.
    """

    def __init__(self, source: PairSource, conditions: Sequence[str]) -> None:
        self.source = source
        self.conditions = conditions
        self._wanted = {}
        for condition in conditions:
            attribute, equals, values = condition.partition("=")
            wanted = {value.strip().lower() for value in values.split(",") if value.strip()}
            if not equals or not attribute or not wanted:
                raise SourceError("ATTRIBUTE=VALUE or ATTRIBUTE=VALUE,VALUE", repr(condition), "correct the condition")
            self._wanted[attribute] = wanted
        self._length = sum(1 for _ in self)
        if not self._length:
            raise SourceError(f"images with {', '.join(conditions)}", f"none in {source.name}", "check the values")

    @property
    def name(self) -> str:
        """The source's name and the conditions."""
        return f"{self.source.name} with {' and '.join(self.conditions)}"

    def __len__(self) -> int:
        """How many images are selected."""
        return self._length

    def __iter__(self) -> Iterator[ImageTextPair]:
        """The selected pairs, in the order of the source."""
        return (pair for pair in self.source if self._selects(pair))

    def _selects(self, pair: ImageTextPair) -> bool:
        return all(
            not wanted.isdisjoint(_texts(pair.attributes.get(attribute))) for attribute, wanted in self._wanted.items()
        )


def _texts(value: object) -> set[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return {str(each).lower() for each in values}
