"""A `VectorStore` in Milvus, for more images than one machine holds.

A published index is a collection, and the name that people use is an alias, which moves to the next collection in one
step. What Milvus does not offer, this does not pretend: a view moves with the collection; a batch of changes is two
calls, of which a crash may leave the first; changes that ask for a version, or bring an idempotency key, are refused.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from data.durable import digest_bytes
from data.errors import FingerprintMismatch, QueryError, SnapshotError, UserError
from dual_encoder.hubness import asked
from serving.catalog import ImageNotFound
from serving.change_request import encode_changes
from serving.exact_index import check_queries
from serving.filters import Filter
from serving.milvus_filter import FIELD, decode_attributes, encode_attributes, expression
from serving.vector_store import (
    BATCH_VERSION,
    AttributeSummary,
    Change,
    Delete,
    Found,
    Receipt,
    StoreDescription,
    StoredImage,
    StoreReadOnly,
    StoreUnreachable,
    Upsert,
)

if TYPE_CHECKING:
    from pymilvus import MilvusClient

MAX_HITS = 16_384  # Milvus's own limit of a search
BATCH = 1_000  # rows in a call: below its limit of 64 MB with 2,048 dimensions
KINDS = ("FLAT", "HNSW", "IVF_FLAT", "AUTOINDEX")
SPARE = 32  # hits beyond k that are scored exactly, so that float32 rounding decides no rank
ABOUT = "image_search_indexes"  # a collection with what is known of the others: Milvus Lite keeps no description
_STORED = ["image_id", "digest", "location", "captions", FIELD, "version"]
_MAX_BYTES = 65_535  # of a text field


@dataclass(frozen=True)
class MilvusAddress:
    """Where Milvus is and what the index is called there.

    `milvus://HOST:PORT?name=photos` is a server; `milvus:///path/to/file.db?name=photos` is Milvus Lite, in a file.
    `&kind=HNSW` says how a collection that is published there is searched; see `publish`.
    """

    uri: str
    name: str = "images"
    kind: str = "FLAT"

    @classmethod
    def parse(cls, text: str) -> MilvusAddress:
        """`UserError` for what is no such address."""
        parts = urlsplit(text)
        options = parse_qs(parts.query)
        name, kind = options.pop("name", ["images"])[0], options.pop("kind", [KINDS[0]])[0]
        if (
            parts.scheme != "milvus"
            or not (parts.netloc or parts.path)
            or options
            or not re.fullmatch(r"\w{1,200}", name)
            or kind not in KINDS
        ):
            raise UserError(
                "milvus://HOST:PORT?name=NAME or milvus:///PATH.db?name=NAME, NAME of letters, digits and _, perhaps "
                f"with &kind= {', '.join(KINDS)}",
                repr(text),
                "correct --store",
            )
        return cls(f"http://{parts.netloc}" if parts.netloc else parts.path, name, kind)


class MilvusStore:
    """The index behind an alias; see the module for what a view and a change are here.

    Example: `MilvusStore.open("milvus://localhost:19530?name=photos", fingerprint)`.
    """

    def __init__(self, client: MilvusClient, name: str, described: dict[str, Any], writable: bool = True) -> None:
        self._client, self.name, self._described, self.writable = client, name, described, writable
        self._sequence = BATCH_VERSION
        self._changes = ThreadPoolExecutor(1, thread_name_prefix="milvus changes")  # one at a time, in their order

    @classmethod
    def open(cls, address: str, fingerprint: str, *, writable: bool = True) -> MilvusStore:
        """The index that `address` names. `StoreUnreachable`, `SnapshotError`, `FingerprintMismatch`."""
        where = MilvusAddress.parse(address)
        with _refusals(where.uri):
            client = _connect(where.uri)
            collection = _collection_of(client, where.name)
            if collection is None:
                raise SnapshotError(
                    f"an index {where.name} in Milvus at {where.uri}",
                    "none",
                    "build it: python -m serving.build_index --store",
                )
            described = client.get(ABOUT, ids=[collection])[0]["told"]
        if described["model_fingerprint"] != fingerprint:
            raise FingerprintMismatch(
                f"an index of model {fingerprint}",
                f"one of model {described['model_fingerprint']} ({described['model_name']})",
                "build it again with this model",
            )
        return cls(client, where.name, {**described, "collection": collection}, writable)

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
        rows = [
            _row(change, version, self.corrected) for change, version in last.values() if isinstance(change, Upsert)
        ]
        gone = [change.image_id for change, _ in last.values() if isinstance(change, Delete)]
        with _refusals(self.name):
            for start in range(0, len(rows), BATCH):
                self._client.upsert(self.name, rows[start : start + BATCH])
            if gone:
                self._client.delete(self.name, ids=gone)
        return Receipt(versions[-1], versions)

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


class MilvusView:
    """A collection, which others may change meanwhile."""

    def __init__(self, client: MilvusClient, name: str, described: dict[str, Any], sequence: int) -> None:
        self._client, self._name, self._described = client, name, described
        self.snapshot: str = described["collection"]
        self.revision = f"{self.snapshot}-{sequence}"

    def __len__(self) -> int:
        with _refusals(self._name):
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
        with _refusals(self._name):
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
        rows = {row["image_id"]: _stored(row) for row in self._rows(image_ids, _STORED)}
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
        wanted = f"image_id > {json.dumps(after, ensure_ascii=False)}"
        if where is not None:
            wanted += f" and {expression(where)}"
        # A server answers in the order of ids, Milvus Lite in any: so as many ids as it gives, and then the first.
        with _refusals(self._name):
            found = self._client.query(self._name, filter=wanted, output_fields=["image_id"], limit=MAX_HITS)
        first = sorted(row["image_id"] for row in found)[:limit]
        return [image for image in self.get(first) if image is not None]

    def _rows(self, image_ids: Sequence[str], fields: list[str]) -> list[Any]:
        if not image_ids:
            return []
        with _refusals(self._name):
            return list(self._client.get(self._name, ids=list(image_ids), output_fields=fields))


def check_reachable(address: str) -> None:
    """`StoreUnreachable` or `UserError` when nothing could be published at `address`."""
    where = MilvusAddress.parse(address)
    with _refusals(where.uri):
        _connect(where.uri).close()


def publish(address: str, images: Iterable[Upsert], described: dict[str, Any]) -> str:
    """Fill a new collection, and let the alias name it; the former collection is kept for a way back, older ones go.

    `described` holds the model's `model_fingerprint` and `model_name`, the `dimension`, whether images are `corrected`
    by their offsets, and the `source`. The address's `kind` is Milvus's index type: FLAT compares with every vector,
    HNSW, IVF_FLAT and AUTOINDEX do not. Returns the collection.
    """
    where = MilvusAddress.parse(address)
    with _refusals(where.uri):
        client = _connect(where.uri)
        try:
            former = _collection_of(client, where.name)
            collection = f"{where.name}_{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
            told = {**described, "kind": where.kind, "create_time": datetime.now(UTC).isoformat()}
            _create(client, collection, told)
            rows: list[dict[str, Any]] = []
            for image in images:
                rows.append(_row(image, BATCH_VERSION, described["corrected"]))
                if len(rows) == BATCH:
                    client.insert(collection, rows)
                    rows = []
            if rows:
                client.insert(collection, rows)
            client.flush(collection)
            client.load_collection(collection)
            (client.create_alias if former is None else client.alter_alias)(collection, where.name)
            for name in client.list_collections():
                if re.fullmatch(rf"{where.name}_\d{{8}}T\d{{12}}", name) and name not in (collection, former):
                    client.drop_collection(name)
                    client.delete(ABOUT, ids=[name])
        finally:
            client.close()
    return collection


def _create(client: MilvusClient, collection: str, described: dict[str, Any]) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("image_id", DataType.VARCHAR, max_length=4_096, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=described["dimension"] + described["corrected"])
    schema.add_field("digest", DataType.VARCHAR, max_length=64)
    schema.add_field("location", DataType.VARCHAR, max_length=_MAX_BYTES)
    for name in ("captions", FIELD):
        schema.add_field(name, DataType.JSON)
    schema.add_field("version", DataType.INT64)
    _create_indexed(client, collection, schema, described["kind"])
    if not client.has_collection(ABOUT):
        about = client.create_schema(auto_id=False, enable_dynamic_field=False)
        about.add_field("collection", DataType.VARCHAR, max_length=1_024, is_primary=True)
        about.add_field("told", DataType.JSON)
        about.add_field("vector", DataType.FLOAT_VECTOR, dim=2)  # Milvus wants one
        _create_indexed(client, ABOUT, about, "FLAT")
    client.upsert(ABOUT, [{"collection": collection, "told": described, "vector": [0.0, 1.0]}])


def _create_indexed(client: MilvusClient, collection: str, schema: Any, kind: str) -> None:
    index = client.prepare_index_params()
    index.add_index("vector", index_type=kind, metric_type="IP")
    client.create_collection(collection, schema=schema, index_params=index, consistency_level="Strong")


def _row(image: Upsert, version: int, corrected: bool) -> dict[str, Any]:
    vector = np.append(image.vector, -image.offset) if corrected else np.asarray(image.vector)
    return {
        "image_id": image.image_id,
        "vector": vector.astype(np.float16).astype(np.float32).tolist(),
        "digest": image.digest,
        "location": image.location,
        "captions": list(image.captions),
        FIELD: encode_attributes(image.attributes),
        "version": version,
    }


def _stored(row: Any) -> StoredImage:
    captions, attributes = (json.loads(v) if isinstance(v, str) else v for v in (row["captions"], row[FIELD]))
    return StoredImage(
        row["image_id"], row["digest"], row["location"], tuple(captions), decode_attributes(attributes), row["version"]
    )


def _scored(query: np.ndarray, hits: Any, k: int) -> list[Found]:
    """The best k by exact score, summed in float64; equal scores in the order of their ids."""
    found = []
    for hit in hits:
        vector = np.asarray(hit["entity"]["vector"], np.float64)
        found.append(Found(hit["entity"]["image_id"], float(np.float32(vector @ query.astype(np.float64)))))
    return sorted(found, key=lambda hit: (-hit.score, hit.image_id))[:k]


def _connect(uri: str) -> MilvusClient:
    try:
        from pymilvus import MilvusClient
    except ImportError:
        raise StoreUnreachable("the package pymilvus", "none", "pip install -r requirements-scale.txt") from None
    # It prints a traceback for every refusal; what matters is in ours (`_refusals`).
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    return MilvusClient(uri)


def _collection_of(client: MilvusClient, alias: str) -> str | None:
    from pymilvus import MilvusException

    try:
        return client.describe_alias(alias)["collection_name"]
    except MilvusException:
        return None


@contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Milvus's errors as ours."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("pymilvus", "grpc", "milvus_lite"):
            raise
        raise StoreUnreachable(
            f"an answer of Milvus ({where})", f"{error}"[:300], "check the address and its log"
        ) from None
