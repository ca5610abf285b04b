"""What a collection of Milvus answers; knows no change and no publication."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import QueryError
from dual_encoder.hubness import asked
from serving.catalog import ImageNotFound
from serving.exact_index import check_queries
from serving.filters import Filter
from serving.milvus_collection import STORED, in_order, rows_with, stored_of
from serving.milvus_connection import refusals
from serving.milvus_filter import expression
from serving.vector_store import AttributeSummary, Found, StoreDescription, StoredImage

if TYPE_CHECKING:
    from pymilvus import MilvusClient

MAX_HITS = 16_384  # Milvus's own limit of a search
SPARE = 32  # hits beyond k that are scored exactly, so that float32 rounding decides no rank


class MilvusView:
    """A collection, which others may change meanwhile."""

    def __init__(self, client: MilvusClient, name: str, described: dict[str, Any], sequence: int) -> None:
        self._client, self._name, self._described = client, name, described
        self.snapshot: str = described["collection"]
        self.revision = f"{self.snapshot}-{sequence}"

    def __len__(self) -> int:
        with refusals(self._name):
            return int(self._client.query(self._name, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def describe(self) -> StoreDescription:
        """See `StoreView.describe`."""
        told = self._described
        return StoreDescription(
            snapshot=self.snapshot,
            image_count=len(self),
            dimension=told["dimension"],
            kind=f"Milvus {told['kind']}",
            model_name=told["model_name"],
            model_fingerprint=told["model_fingerprint"],
            source=told["source"],
            create_time=datetime.fromisoformat(told["create_time"]),
        )

    def attributes(self) -> Sequence[AttributeSummary]:
        """None: Milvus keeps no account of them."""
        return ()

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
        """See `StoreView.search`; what Milvus proposes is scored again here, on float16 as everywhere."""
        queries = check_queries(queries, self._described["dimension"], k)
        if self._described["corrected"]:
            queries = asked(queries, by_text)
        if exact and self._described["kind"] != "FLAT":
            raise QueryError("exact", "an index of kind FLAT", self._described["kind"], "search without exact")
        with refusals(self._name):
            proposed = self._client.search(
                self._name,
                data=queries.tolist(),
                limit=min(k + SPARE, MAX_HITS),
                filter="" if where is None else expression(where),
                output_fields=["image_id", "vector"],
                search_params={"metric_type": "IP"},
            )
        return [_scored(query, hits, k) for query, hits in zip(queries, proposed, strict=True)]

    def get(self, image_ids: Sequence[str]) -> list[StoredImage | None]:
        """See `StoreView.get`."""
        rows = {row["image_id"]: stored_of(row) for row in self._rows(image_ids, STORED)}
        return [rows.get(image_id) for image_id in image_ids]

    def vectors(self, image_ids: Sequence[str]) -> np.ndarray:
        """See `StoreView.vectors`."""
        rows = {row["image_id"]: row["vector"] for row in self._rows(image_ids, ["image_id", "vector"])}
        for image_id in image_ids:
            if image_id not in rows:
                raise ImageNotFound(image_id)
        dimension = self._described["dimension"]
        kept = [rows[image_id][:dimension] for image_id in image_ids]
        return np.array(kept, np.float32).reshape(len(image_ids), dimension)

    def page(self, after: str, limit: int, where: Filter | None = None) -> list[StoredImage]:
        """See `StoreView.page`."""
        with refusals(self._name):
            found = in_order(
                self._client,
                self._name,
                STORED,
                after=after,
                limit=limit,
                where="" if where is None else expression(where),
            )
        return list(map(stored_of, found))

    def _rows(self, image_ids: Sequence[str], fields: list[str]) -> list[Any]:
        with refusals(self._name):
            return rows_with(self._client, self._name, image_ids, fields)


def _scored(query: np.ndarray, hits: Any, k: int) -> list[Found]:
    """The best k by exact score, summed in float64; equal scores in the order of their ids."""
    found = []
    for hit in hits:
        vector = np.asarray(hit["entity"]["vector"], np.float64)
        found.append(Found(hit["entity"]["image_id"], float(np.float32(vector @ query.astype(np.float64)))))
    return sorted(found, key=lambda hit: (-hit.score, hit.image_id))[:k]
