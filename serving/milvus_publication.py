"""Publishes an index in Milvus: a new collection with what a job brought and what was changed online, to which the
alias goes over; knows no search.

No change that was acknowledged before the alias moves is undone by it. A writer writes to the live collection, notes a
deletion first where publications look for them, and acknowledges when it finds no flip announced. A publication copies
what was changed online, announces the flip, copies what was changed since, moves the alias, and withdraws the
announcement. So what was acknowledged before the announcement is copied; and a writer that meets one waits for its
end, and writes again to the collection that is live then. Milvus has no lock: the announcement is a lease. Who
announced has `LEASE_SECONDS` to move the alias, or withdraws; who waits takes an announcement for a dead one's after
three times that.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import SnapshotError
from serving.carry_over import Embed
from serving.catalog import ONLINE, CatalogEntry
from serving.milvus_collection import (
    BATCH,
    STORED,
    delete_rows,
    deletions_of,
    drop_publications,
    forget,
    in_order,
    json_of,
    live_collection,
    new_collection,
    note,
    noted,
    row_of,
    rows_with,
    stored_of,
)
from serving.milvus_connection import MilvusAddress, connect, refusals
from serving.milvus_filter import FIELD
from serving.vector_store import BATCH_VERSION, StoreUnreachable, Upsert

if TYPE_CHECKING:
    from pymilvus import MilvusClient

LEASE_SECONDS = 20.0
_PASSES, _FEW = 5, 1_000  # copies before the flip is announced, until so few rows were left to copy
_SKEW = 600 * 1_000_000  # microseconds by which the clocks of writers may differ from this one's
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class OnlineChanges:
    """How a publication takes over what was changed online.

    `embed` gives vectors of the new model to images that have another model's. With `replaced_before`, what the job
    brought takes the place of what was changed online before that moment, as far as it has the image.
    """

    embed: Embed | None = None
    replaced_before: datetime | None = None

    @property
    def replaced_until(self) -> int:
        """The last version that is replaced: versions are microseconds since 1970."""
        return 0 if self.replaced_before is None else int(self.replaced_before.timestamp() * 1_000_000)


@dataclass(frozen=True)
class Publication:
    """The live collection, and how many images it holds."""

    collection: str
    image_count: int


def publish(
    address: str, images: Iterable[Upsert], described: dict[str, Any], online: OnlineChanges | None = None
) -> Publication:
    """Fill a new collection, and let the alias name it; the former collection is kept for a way back, older ones go.

    `described` holds the model's `model_fingerprint` and `model_name`, the `dimension`, whether images are `corrected`
    by their offsets, and the `source`. The address's `kind` is Milvus's index type: FLAT compares with every vector,
    HNSW, IVF_FLAT and AUTOINDEX do not. What was changed or deleted online stands above `images`.
    """
    where = MilvusAddress.parse(address)
    with refusals(where.uri):
        client = connect(where.uri)
        try:
            former = live_collection(client, where.name)
            told = {**described, "kind": where.kind, "create_time": datetime.now(UTC).isoformat()}
            collection = new_collection(client, where.name, told)
            _fill(client, collection, (row_of(image, BATCH_VERSION, described["corrected"]) for image in images))
            if former is None:
                client.create_alias(collection, where.name)
            else:
                copying = _Copying(client, where.name, former, collection, told, online or OnlineChanges())
                _go_over(client, where.name, collection, copying)
            drop_publications(client, where.name, keep={collection, former})
            return Publication(collection, _count(client, collection))
        finally:
            client.close()


class FlipWatch:
    """Looks for announcements of flips of the alias `name`; one that outlived its lease is looked at once."""

    def __init__(self, client: MilvusClient, name: str) -> None:
        self._client, self._name = client, name
        self._dead: Any = None

    def wait(self) -> None:
        """Return when no flip is announced."""
        seen, since = None, 0.0
        while (told := noted(self._client, self._name)) is not None and told != self._dead:
            if told != seen:
                seen, since = told, time.monotonic()
            elif time.monotonic() - since > 3 * LEASE_SECONDS:
                self._dead = told
            time.sleep(_LOOK_SECONDS)


def _fill(client: MilvusClient, collection: str, rows: Iterator[dict[str, Any]]) -> None:
    while some := list(itertools.islice(rows, BATCH)):
        client.insert(collection, some)
    client.flush(collection)
    client.load_collection(collection)


def _go_over(client: MilvusClient, name: str, collection: str, copying: _Copying) -> None:
    """Copy what was changed online and move the alias; see the module."""
    copied = 0
    for number in range(_PASSES):
        began = _now()
        if copying.copy(copied) <= _FEW and number:
            break
        copied = began - _SKEW
    for _ in range(_PASSES):
        deadline = time.monotonic() + LEASE_SECONDS
        note(client, name, {"flip": uuid.uuid4().hex})
        try:
            copying.copy(copied)
            if (live := live_collection(client, name)) != copying.former:
                raise SnapshotError(f"{copying.former} still live", f"{live} of another build", "build again")
            if time.monotonic() < deadline:
                client.alter_alias(collection, name, timeout=LEASE_SECONDS)
                copying.forget_replaced()
                return
        finally:
            forget(client, name)
    raise StoreUnreachable(
        f"that changes which come meanwhile are copied within {LEASE_SECONDS:.0f} s",
        "more than that",
        "pause who makes them",
    )


class _Copying:
    """Copies what was changed online from one collection to the next."""

    def __init__(
        self, client: MilvusClient, name: str, former: str, collection: str, told: dict[str, Any], online: OnlineChanges
    ) -> None:
        self.former = former
        self._client, self._name, self._collection, self._online = client, name, collection, online
        self._same_model = (noted(client, former) or told)["model_fingerprint"] == told["model_fingerprint"]

    def copy(self, after: int) -> int:
        """Copy changes above version `after` that are not copied yet; return how many there were.

        First upserts, then deletions: where an image has both, the newer one is left.
        """
        count = 0
        for rows in self._pages(self.former, [*STORED, "vector"], f"version > {max(after, BATCH_VERSION)}"):
            held = self._versions(rows)
            wanted = [
                row for row in rows if held.get(row["image_id"]) != row["version"] and not self._replaced(row, held)
            ]
            count += len(wanted)
            if wanted and (copies := self._copies(wanted)):
                self._client.upsert(self._collection, copies)
        for rows in self._pages(deletions_of(self._name), ["image_id", "version"], f"version > {after}"):
            held = self._versions(rows)
            gone = [
                row["image_id"]
                for row in rows
                if held.get(row["image_id"], row["version"]) < row["version"] and not self._replaced(row, held)
            ]
            count += len(gone)
            if gone:
                delete_rows(self._client, self._collection, gone)
        return count

    def forget_replaced(self) -> None:
        """Forget deletions of images that the job brought back."""
        until = self._online.replaced_until
        for rows in (
            self._pages(deletions_of(self._name), ["image_id", "version"], f"version <= {until}") if until else ()
        ):
            held = self._versions(rows)
            if back := [row["image_id"] for row in rows if self._replaced(row, held)]:
                delete_rows(self._client, deletions_of(self._name), back)

    def _replaced(self, row: dict[str, Any], held: dict[str, int]) -> bool:
        """Whether what the job brought stands above this change."""
        return row["version"] <= self._online.replaced_until and held.get(row["image_id"]) == BATCH_VERSION

    def _versions(self, rows: list[dict[str, Any]]) -> dict[str, int]:
        """The versions of these images in the new collection."""
        ids = [row["image_id"] for row in rows]
        found = rows_with(self._client, self._collection, ids, ["image_id", "version"])
        return {row["image_id"]: row["version"] for row in found}

    def _copies(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows as they are written, with vectors of the new model; those given up are left out."""
        copies = [{**row, "captions": json_of(row["captions"]), FIELD: json_of(row[FIELD])} for row in rows]
        if self._same_model:
            return copies
        if self._online.embed is None:
            raise SnapshotError(
                "images changed online with vectors of the new model", f"{len(rows):,} with another's",
                "build the index with that model's bundle",
            )  # fmt: skip
        vectors = self._online.embed([_entry(row) for row in rows])
        return [
            {**copy, "vector": vector.astype(np.float16).astype(np.float32).tolist()}
            for copy, vector in zip(copies, vectors, strict=True)
            if vector is not None
        ]

    def _pages(self, collection: str, fields: list[str], where: str) -> Iterator[list[dict[str, Any]]]:
        after = ""
        while rows := in_order(self._client, collection, fields, after=after, where=where):
            yield rows
            after = rows[-1]["image_id"]


def _entry(row: dict[str, Any]) -> CatalogEntry:
    known = stored_of(row)
    return CatalogEntry(
        known.image_id, known.digest, known.location, known.captions, known.attributes, known.version, origin=ONLINE
    )


def _count(client: MilvusClient, collection: str) -> int:
    return int(client.query(collection, filter="", output_fields=["count(*)"])[0]["count(*)"])


def _now() -> int:
    """Microseconds since 1970, as versions are."""
    return time.time_ns() // 1_000
