"""How an index lies in Milvus: a collection of images for each publication, an alias that names the live one, what was
deleted online, and what is known of the collections; knows no search.

    NAME                    the alias
    NAME_20240517T120000…   a publication, a row for each image; above version 1, those that were changed online
    NAME_deletions          the ids that were deleted online, and at which version
    image_search_indexes    what each publication was told, for Milvus Lite keeps no description; and who flips an alias
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.milvus_filter import FIELD, decode_attributes, encode_attributes
from serving.vector_store import StoredImage, Upsert

if TYPE_CHECKING:
    from pymilvus import MilvusClient

BATCH = 1_000  # rows in a call: below Milvus's limit of 64 MB with 2,048 dimensions
ABOUT = "image_search_indexes"
STORED = ["image_id", "digest", "location", "captions", FIELD, "version"]
_MAX_BYTES = 65_535  # of a text field
_NO_VECTOR = {"vector": [0.0, 1.0]}  # Milvus wants one


def live_collection(client: MilvusClient, name: str) -> str | None:
    """The collection that the alias `name` stands for."""
    from pymilvus import MilvusException

    try:
        return client.describe_alias(name)["collection_name"]
    except MilvusException:
        return None


def new_collection(client: MilvusClient, name: str, told: dict[str, Any]) -> str:
    """Make an empty collection for a publication, and note what is `told` of it; return what it is called."""
    from pymilvus import DataType

    collection = f"{name}_{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    _add_id(schema)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=told["dimension"] + told["corrected"])
    schema.add_field("digest", DataType.VARCHAR, max_length=64)
    schema.add_field("location", DataType.VARCHAR, max_length=_MAX_BYTES)
    for field in ("captions", FIELD):
        schema.add_field(field, DataType.JSON)
    schema.add_field("version", DataType.INT64)
    _create(client, collection, schema, told["kind"])
    if not client.has_collection(ABOUT):
        about = client.create_schema(auto_id=False, enable_dynamic_field=False)
        about.add_field("collection", DataType.VARCHAR, max_length=1_024, is_primary=True)
        about.add_field("told", DataType.JSON)
        about.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
        _create(client, ABOUT, about, "FLAT")
    if not client.has_collection(deletions_of(name)):
        deletions = client.create_schema(auto_id=False, enable_dynamic_field=False)
        _add_id(deletions)
        deletions.add_field("version", DataType.INT64)
        deletions.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
        _create(client, deletions_of(name), deletions, "FLAT")
    note(client, collection, told)
    return collection


def deletions_of(name: str) -> str:
    """The collection of what was deleted online from the index `name`."""
    return f"{name}_deletions"


def drop_publications(client: MilvusClient, name: str, keep: set[str | None]) -> None:
    """Remove the collections of the index `name` that are not kept."""
    for collection in client.list_collections():
        if re.fullmatch(rf"{name}_\d{{8}}T\d{{12}}", collection) and collection not in keep:
            client.drop_collection(collection)
            forget(client, collection)


def note(client: MilvusClient, key: str, told: dict[str, Any]) -> None:
    """Keep what is `told` of a collection, or of an alias."""
    client.upsert(ABOUT, [{"collection": key, "told": told, **_NO_VECTOR}])


def noted(client: MilvusClient, key: str) -> dict[str, Any] | None:
    """What `note` was told."""
    found = client.get(ABOUT, ids=[key])
    return json_of(found[0]["told"]) if found else None


def forget(client: MilvusClient, key: str) -> None:
    """The opposite of `note`."""
    client.delete(ABOUT, ids=[key])


def in_order(
    client: MilvusClient,
    collection: str,
    fields: Sequence[str],
    *,
    after: str = "",
    limit: int = BATCH,
    where: str = "",
) -> list[dict[str, Any]]:
    """At most `limit` rows in the order of their ids, from the first id greater than `after`."""
    wanted = f"image_id > {json.dumps(after, ensure_ascii=False)}" + (f" and ({where})" if where else "")
    # Milvus Lite keeps this order only for iterators; that of pymilvus cannot go past an id with quotes in it.
    return client.query(collection, filter=wanted, output_fields=list(fields), limit=limit, iterator="True")


def rows_with(client: MilvusClient, collection: str, ids: Sequence[str], fields: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of these ids that are there, in any order."""
    return client.query(collection, filter=_one_of(ids), output_fields=list(fields)) if ids else []


def delete_rows(client: MilvusClient, collection: str, ids: Sequence[str]) -> None:
    """Remove the rows of these ids, if they are there."""
    client.delete(collection, filter=_one_of(ids))


def _one_of(ids: Sequence[str]) -> str:
    """What pymilvus makes of ids is wrong for those with quotes or backslashes."""
    return f"image_id in {json.dumps(list(ids), ensure_ascii=False)}"


def row_of(image: Upsert, version: int, corrected: bool) -> dict[str, Any]:
    """An image as a row of a collection."""
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


def stored_of(row: Any) -> StoredImage:
    """What is known about the image of a row."""
    captions, attributes = json_of(row["captions"]), decode_attributes(json_of(row[FIELD]))
    return StoredImage(row["image_id"], row["digest"], row["location"], tuple(captions), attributes, row["version"])


def deletion_row(image_id: str, version: int) -> dict[str, Any]:
    """A row of `deletions_of`."""
    return {"image_id": image_id, "version": version, **_NO_VECTOR}


def json_of(value: Any) -> Any:
    """The content of a JSON field, which comes as text or as what the text says."""
    return json.loads(value) if isinstance(value, str) else value


def _add_id(schema: Any) -> None:
    from pymilvus import DataType

    schema.add_field("image_id", DataType.VARCHAR, max_length=4_096, is_primary=True)


def _create(client: MilvusClient, collection: str, schema: Any, kind: str) -> None:
    index = client.prepare_index_params()
    index.add_index("vector", index_type=kind, metric_type="IP")
    client.create_collection(collection, schema=schema, consistency_level="Strong")
    # With the index at once it would sleep for half a second before it asks whether that of no rows is finished.
    client.create_index(collection, index, sync=False)
    client.load_collection(collection)
