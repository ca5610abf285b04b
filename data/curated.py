"""A source seen through the doctor's lists: with groups of its own finding, without images that are of no use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from data.pairs import ImageTextPair, PairSource
from data.quarantine import Quarantine


class Curated:
    """Pairs of `source` that `quarantine` admits; an image that `groups` names has that group instead of its own."""

    def __init__(
        self, source: PairSource, groups: Mapping[str, str] | None = None, quarantine: Quarantine | None = None
    ) -> None:
        self.source, self.groups, self.quarantine = source, groups or {}, quarantine
        self._length: int | None = None

    @property
    def name(self) -> str:
        """The name of the source."""
        return self.source.name

    def __len__(self) -> int:
        """How many images are left."""
        if self._length is None:
            self._length = len(self.source) if self.quarantine is None else sum(1 for _ in self)
        return self._length

    def __iter__(self) -> Iterator[ImageTextPair]:
        """The pairs, in the order of the source."""
        for pair in self.source:
            if self.quarantine is None or self.quarantine.admits(pair):
                group = self.groups.get(pair.image_id)
                yield pair if group is None else replace(pair, group=group)
