"""A state of the embedded store that does not move: a snapshot, and the changes up to one sequence number; knows no log
and no lock."""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dual_encoder.hubness import asked
from serving.catalog import ImageNotFound, attributes_of_json, captions_of_json
from serving.exact_index import ROUNDING, ExactIndex, best_of, check_queries
from serving.filters import Filter
from serving.row_subset import RowSubset
from serving.vector_store import AttributeSummary, Found, StoreDescription, StoredImage

if TYPE_CHECKING:
    from serving.delta import Delta


class EmbeddedView:
    """See `vector_store.StoreView`; made by `EmbeddedStore.view`."""

    def __init__(self, delta: Delta) -> None:
        self._delta, self._base = delta, delta.snapshot
        self.sequence = delta.sequence
        self._live = delta.live
        self._vectors = delta.vectors[: delta.count]  # (S, W) float32, S slots; see `Manifest.width`
        self._ended = delta.ended[: delta.count]
        self._base_alive = delta.base_alive

    @property
    def snapshot(self) -> str:
        """The name of the snapshot under it."""
        return self._base.name

    @property
    def revision(self) -> str:
        """The snapshot and the number of the last change above it."""
        return f"{self._base.name}-{self.sequence}"

    @property
    def changes(self) -> int:
        """How many changes stand above the snapshot."""
        return self.sequence - self._base.manifest.sequence

    def __len__(self) -> int:
        return self._live

    def describe(self) -> StoreDescription:
        """See `StoreView.describe`."""
        manifest = self._base.manifest
        return StoreDescription(
            self.snapshot,
            len(self),
            manifest.dimension,
            manifest.index["kind"],
            manifest.model_name,
            manifest.model_fingerprint,
            manifest.source,
            datetime.fromisoformat(manifest.create_time),
            manifest.index,
            self.changes,
        )

    def attributes(self) -> Sequence[AttributeSummary]:
        """See `StoreView.attributes`; changes above the snapshot are not counted."""
        return self._base.attributes

    def search(
        self,
        queries: np.ndarray,
        k: int,
        where: Filter | None = None,
        *,
        exact: bool = False,
        by_text: float = 0.0,
        oversampling: float = 1.0,
    ) -> list[list[Found]]:
        """See `StoreView.search`."""
        queries = check_queries(queries, self._base.manifest.dimension, k)
        if self._base.manifest.corrected:
            queries = asked(queries, by_text)
        base = self._search_base(queries, k, where, exact, oversampling)
        above = self._search_slots(queries, k, where)
        return [
            sorted((*low, *high), key=lambda found: (-found.score, found.image_id))[:k]
            for low, high in zip(base, above, strict=True)
        ]

    def get(self, image_ids: Sequence[str]) -> list[StoredImage | None]:
        """See `StoreView.get`."""
        slots = {image_id: self._delta.slot(image_id, self.sequence) for image_id in image_ids}
        entries = self._base.catalog.by_ids([image_id for image_id, slot in slots.items() if slot is None])
        found: dict[str, StoredImage] = {image_id: entry.stored() for image_id, entry in entries.items()}
        found.update(
            {image_id: self._image(slot) for image_id, slot in slots.items() if slot is not None and slot >= 0}
        )
        return [found.get(image_id) for image_id in image_ids]

    def vectors(self, image_ids: Sequence[str]) -> np.ndarray:
        """See `StoreView.vectors`."""
        result = np.empty((len(image_ids), self._base.manifest.dimension), np.float32)
        rows = self._base.catalog.rows_of(list(image_ids))
        for position, image_id in enumerate(image_ids):
            slot = self._delta.slot(image_id, self.sequence)
            if slot is None and image_id in rows:
                result[position] = self._base.vectors[rows[image_id][0], : result.shape[1]]
            elif slot is not None and slot >= 0:
                result[position] = self._vectors[slot, : result.shape[1]]
            else:
                raise ImageNotFound(image_id)
        return result

    def page(self, after: str, limit: int, where: Filter | None = None) -> list[StoredImage]:
        """See `StoreView.page`."""
        base, above = self._base_after(after, limit), self._slots_after(after)
        if where is not None:
            base = self._base_matching(after, limit, where)
            above = self._slots_after(after, self._delta.slots_matching(where, len(self._vectors)))
        return list(itertools.islice(heapq.merge(base, above, key=lambda image: image.image_id), limit))

    def _base_after(self, after: str, limit: int) -> Iterator[StoredImage]:
        """The snapshot's images that are current, in the order of their ids; read in pieces."""
        while entries := self._base.catalog.after(after, max(limit, 100)):
            after = entries[-1].image_id
            yield from (e.stored() for e in entries if self._base_alive is None or self._base_alive[e.row])

    def _base_matching(self, after: str, limit: int, where: Filter) -> Iterator[StoredImage]:
        """At most `limit` of those that `where` matches: rows stand in the order of their ids, so none else is read."""
        following = self._base.catalog.after(after, 1)
        if not following:
            return
        first = following[0].row
        mask = self._base.rows_matching(where)[first:]
        if self._base_alive is not None:
            mask &= self._base_alive[first:]
        rows = first + np.flatnonzero(mask)[:limit]
        yield from (entry.stored() for entry in self._base.catalog.by_rows(rows.tolist()))

    def _slots_after(self, after: str, matching: np.ndarray | None = None) -> Iterator[StoredImage]:
        """The current images above the snapshot that are `matching`, (S,) bool, in the order of their ids."""
        ids, slots = self._slot_order
        for slot in slots[bisect.bisect_right(ids, after) :]:
            if matching is None or matching[slot]:
                yield self._image(slot)

    def _search_base(
        self, queries: np.ndarray, k: int, where: Filter | None, exact: bool, oversampling: float
    ) -> list[list[Found]]:
        index = self._base.index
        if index is None:
            return [[] for _ in queries]
        if exact:
            index = ExactIndex(self._base.vectors)
        scores, rows = index.search(queries, k, self._allowed(where), oversampling)
        ids = iter(self._base.catalog.ids(rows.ravel().tolist()))
        return [[Found(next(ids), score) for score in row_scores] for row_scores in scores.tolist()]

    def _allowed(self, where: Filter | None) -> RowSubset | None:
        """The rows of the snapshot that a search may find."""
        if where is None:
            return self._alive_rows
        mask = self._base.rows_matching(where)
        return RowSubset.from_mask(mask if self._base_alive is None else mask & self._base_alive)

    @cached_property
    def _alive_rows(self) -> RowSubset | None:
        return None if self._base_alive is None else RowSubset.from_mask(self._base_alive)

    def _search_slots(self, queries: np.ndarray, k: int, where: Filter | None) -> list[list[Found]]:
        """Compare with every slot that is current, and that `where` matches."""
        slots = self._alive_slots
        if where is not None:
            slots = slots[self._delta.slots_matching(where, len(self._vectors))[slots]]
        k = min(k, len(slots))
        if not k:
            return [[] for _ in queries]
        similarity = queries @ self._vectors.T  # (Q, D) * (S, D) -> (Q, S)
        answers = []
        for query, row in zip(queries, similarity, strict=True):
            chosen = row[slots]
            bound = np.partition(chosen, -k)[-k] - ROUNDING * np.abs(chosen).max()
            near = slots[chosen >= bound]
            scores, order = best_of(self._vectors, query[np.newaxis], [near], len(near))
            ids = [self._delta.changes[slot].image_id for slot in order[0].tolist()]
            answers.append([Found(*found) for found in zip(ids, scores[0].tolist(), strict=True)])
        return answers

    def _image(self, slot: int) -> StoredImage:
        change = self._delta.changes[slot]
        captions, attributes = captions_of_json(change.captions), attributes_of_json(change.attributes)
        return StoredImage(change.image_id, change.digest, change.location, captions, attributes, change.sequence)

    @cached_property
    def _alive_slots(self) -> np.ndarray:
        """Slots that are current at this view's sequence number; one that ended later ended after it."""
        return np.flatnonzero(self._ended > self.sequence)

    @cached_property
    def _slot_order(self) -> tuple[list[str], list[int]]:
        """The current slots in the order of their ids: ids, and slots."""
        order = sorted((self._delta.changes[slot].image_id, slot) for slot in self._alive_slots.tolist())
        return [image_id for image_id, _ in order], [slot for _, slot in order]
