"""Writes the images and vectors of an index in formats that other programs read; knows no engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.attributes import attributes_to_json
from data.durable import naming_file, publish_directory, sync_path
from data.errors import UserError
from serving.embedded_store import EmbeddedStore

if TYPE_CHECKING:
    from serving.store_view import EmbeddedView
    from serving.vector_store import StoredImage

VECTORS, IMAGES, PARQUET = "vectors.npy", "images.jsonl", ".parquet"
_AT_ONCE = 1_000


def export(index: Path, out: Path) -> int:
    """Write the live state of `index` to `out` in the order of the ids, and return the number of images.

    A name that ends in .parquet gives one table with the columns image_id, digest, location, captions, attributes
    (JSON), version and vector (float32); another one a directory with vectors.npy, (N, D) float16, and a line of
    images.jsonl for each. `UserError` when `out` exists.
    """
    if out.exists():
        raise UserError("a new place for the export", f"{out}, which exists", "choose another one, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with closing(EmbeddedStore.open(index, writable=False)) as store, store.view() as view:
        (_to_parquet if out.suffix == PARQUET else _to_directory)(view, store.dimension, out)
        return len(view)


def _pages(view: EmbeddedView) -> Iterator[tuple[list[StoredImage], np.ndarray]]:
    after = ""
    while page := view.page(after, _AT_ONCE):
        after = page[-1].image_id
        yield page, view.vectors([image.image_id for image in page])


def _row(image: StoredImage) -> dict[str, object]:
    return {
        "image_id": image.image_id,
        "digest": image.digest,
        "location": image.location,
        "captions": list(image.captions),
        "attributes": attributes_to_json(image.attributes),
        "version": image.version,
    }


def _to_directory(view: EmbeddedView, dimension: int, out: Path) -> None:
    with publish_directory(out) as aside, (aside / VECTORS).open("wb") as vectors, (aside / IMAGES).open("w") as images:
        shape = (len(view), dimension)
        header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(vectors, header)
        for page, rows in _pages(view):
            vectors.write(rows.astype(np.float16).data)
            images.writelines(json.dumps(_row(image), ensure_ascii=False) + "\n" for image in page)


def _to_parquet(view: EmbeddedView, dimension: int, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    schema = pa.schema(
        {
            "image_id": text,
            "digest": text,
            "location": text,
            "captions": pa.list_(text),
            "attributes": text,
            "version": pa.int64(),
            "vector": pa.list_(pa.float32(), dimension),
        }
    )
    part = out.with_name(f".{out.name}.part")
    try:
        with naming_file(out), pq.ParquetWriter(part, schema) as writer:
            for page, rows in _pages(view):
                records = [{**_row(image), "vector": row} for image, row in zip(page, rows, strict=True)]
                for record in records:
                    record["attributes"] = json.dumps(record["attributes"], ensure_ascii=False)
                writer.write_batch(pa.RecordBatch.from_pylist(records, schema))
        sync_path(part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
