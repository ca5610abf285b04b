"""A `VectorStore` in Milvus, for more images than one machine holds.

A published index is a collection, and the name that people use is an alias, which moves to the next collection in one
step (`milvus_publication`). What Milvus does not offer, this does not pretend: a view moves with the collection; a
batch of changes is several calls, of which a crash may leave the first; changes that ask for a version, or bring an
idempotency key, are refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from data.durable import digest_bytes
from data.errors import FingerprintMismatch, QueryError, SnapshotError
from serving.change_request import encode_changes
from serving.milvus_collection import BATCH, delete_rows, deletion_row, deletions_of, live_collection, noted, row_of
from serving.milvus_connection import MilvusAddress, connect, refusals
from serving.milvus_publication import FlipWatch
from serving.milvus_view import MilvusView
from serving.vector_store import BATCH_VERSION, Change, Delete, Receipt, StoreReadOnly, StoreSuperseded, Upsert

if TYPE_CHECKING:
    from pymilvus import MilvusClient


class MilvusStore:
    """The index behind an alias; see the module for what a view and a change are here.

    Example: `MilvusStore.open("milvus://localhost:19530?name=photos", fingerprint)`.
    """

    def __init__(self, client: MilvusClient, name: str, described: dict[str, Any], writable: bool = True) -> None:
        self._client, self.name, self._described, self.writable = client, name, described, writable
        self._flips = FlipWatch(client, name)
        self._sequence = BATCH_VERSION
        self._changes = ThreadPoolExecutor(1, thread_name_prefix="milvus changes")  # one at a time, in their order

    @classmethod
    def open(cls, address: str, fingerprint: str, *, writable: bool = True) -> MilvusStore:
        """The index that `address` names. `StoreUnreachable`, `SnapshotError`, `FingerprintMismatch`."""
        where = MilvusAddress.parse(address)
        with refusals(where.uri):
            client = connect(where.uri)
            described = _described(client, where.name)
        if described["model_fingerprint"] != fingerprint:
            raise FingerprintMismatch(
                f"an index of model {fingerprint}",
                f"one of model {described['model_fingerprint']} ({described['model_name']})",
                "build it again with this model",
            )
        return cls(client, where.name, described, writable)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model whose vectors it holds."""
        return self._described["model_fingerprint"]

    @property
    def dimension(self) -> int:
        """D."""
        return self._described["dimension"]

    @property
    def corrected(self) -> bool:
        """Whether images have offsets."""
        return self._described["corrected"]

    def apply(self, changes: Sequence[Change], key: str = "") -> Receipt:
        """See `VectorStore.apply`, and the module for what is different."""
        return self.submit(changes, key).result()

    def submit(self, changes: Sequence[Change], key: str = "") -> Future[Receipt]:
        """See `VectorStore.submit`."""
        if not self.writable:
            raise StoreReadOnly("a store that was opened to write", "one to read", "open it with writable=True")
        return self._changes.submit(self._apply, changes, key)

    @property
    def at_hand(self) -> bool:
        """See `VectorStore.at_hand`."""
        return False

    @property
    def known_revision(self) -> None:
        """See `VectorStore.known_revision`; the collection would have to be asked."""
        return None

    def keep_image(self, data: bytes) -> str:
        """The SHA-256 of an image: there is no place for the image itself."""
        return digest_bytes(data)

    def _apply(self, changes: Sequence[Change], key: str) -> Receipt:
        encode_changes(changes, key, self.dimension, self.corrected)  # refuses what no store takes
        if key or any(change.if_version is not None for change in changes):
            raise QueryError(
                "key" if key else "if_version", "none, in Milvus", "one", "leave it out, or use an embedded index"
            )
        if not changes:
            return Receipt(self._sequence, ())
        first = self._next(len(changes))
        versions = tuple(range(first, first + len(changes)))
        last = {change.image_id: (change, version) for change, version in zip(changes, versions, strict=True)}
        with refusals(self.name):
            while not self._write(list(last.values())):
                pass  # it went to a collection that is not the live one any more
        return Receipt(versions[-1], versions)

    def _write(self, changes: Sequence[tuple[Change, int]]) -> bool:
        """Write to the collection that is live now; whether it still was when a publication could not miss it."""
        self._follow()
        collection = self._described["collection"]
        rows = [row_of(change, version, self.corrected) for change, version in changes if isinstance(change, Upsert)]
        gone = [deletion_row(change.image_id, version) for change, version in changes if isinstance(change, Delete)]
        for start in range(0, len(rows), BATCH):
            self._client.upsert(collection, rows[start : start + BATCH])
        for start in range(0, len(gone), BATCH):
            some = gone[start : start + BATCH]
            self._client.upsert(deletions_of(self.name), some)  # first: a publication brings back what is not in it
            delete_rows(self._client, collection, [row["image_id"] for row in some])
        self._flips.wait()
        return live_collection(self._client, self.name) == collection

    def _follow(self) -> None:
        """Go over to the live collection; `StoreSuperseded` when it is another model's."""
        if live_collection(self._client, self.name) == self._described["collection"]:
            return
        described = _described(self._client, self.name)
        if described["model_fingerprint"] != self.fingerprint:
            raise StoreSuperseded(
                f"an index of model {self.fingerprint}",
                f"{described['collection']} of {described['model_fingerprint']}",
                "open the index again",
            )
        self._described = described

    @contextmanager
    def view(self) -> Iterator[MilvusView]:
        """The collection as it is when it is asked."""
        yield MilvusView(self._client, self.name, self._described, self._sequence)

    def close(self) -> None:
        """Close the connection when the changes that wait are made."""
        self._changes.shutdown()
        self._client.close()

    def _next(self, count: int) -> int:
        """The first of `count` numbers that no change had, in this process or another: microseconds since 1970."""
        first = max(self._sequence + 1, time.time_ns() // 1_000)
        self._sequence = first + count - 1
        return first


def _described(client: MilvusClient, name: str) -> dict[str, Any]:
    """What is known of the live collection; `SnapshotError` when there is none."""
    collection = live_collection(client, name)
    told = collection and noted(client, collection)
    if not told:
        raise SnapshotError(f"an index {name} in Milvus", "none", "build it: python -m serving.build_index --store")
    return {**told, "collection": collection}
