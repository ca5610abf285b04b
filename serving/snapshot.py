"""A published index: an immutable directory with a manifest, and the file that names the live one; knows no model.

    INDEX/CURRENT                        the name of the live snapshot
    INDEX/snapshots/NAME/manifest.json   what it holds, for which model, and the digest of every other file
    INDEX/snapshots/NAME/catalog.sqlite  ids, captions and attributes by row
    INDEX/snapshots/NAME/columns.arrow   attributes by value, for filters
    INDEX/snapshots/NAME/vectors.npy     embeddings (N, D) float32, memory-mapped by readers
    INDEX/snapshots/NAME/index.faiss     the search index over them

NAME ends in the digest of the manifest, and the manifest holds those of the other files: no byte can change unnoticed.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.durable import changed_files, digest_bytes, directory_digests, publish_directory, write_atomic
from data.errors import FingerprintMismatch, SnapshotError
from serving.attribute_columns import AttributeColumns
from serving.catalog import Catalog
from serving.filters import Filter
from serving.vector_index import VectorIndex

FORMAT_VERSION = 1
COLUMNS = "columns.arrow"
METRIC = "inner_product"
CURRENT, SNAPSHOTS = "CURRENT", "snapshots"
MANIFEST, CATALOG, VECTORS, FAISS = "manifest.json", "catalog.sqlite", "vectors.npy", "index.faiss"

_NAME = re.compile(r"\d{8}T\d{6}Z-([0-9a-f]{16})")


@dataclass(frozen=True)
class Manifest:
    """What a snapshot says about itself. `index` holds the FAISS factory string as `kind`, and how it was verified."""

    image_count: int
    dimension: int
    model_fingerprint: str
    model_name: str
    source: str
    splits: list[str]
    index: Mapping[str, Any]
    create_time: str  # RFC 3339, UTC
    metric: str = METRIC
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Snapshot:
    """An opened snapshot whose every byte was found as it was written."""

    name: str
    path: Path
    manifest: Manifest
    vectors: np.ndarray  # (N, D) float32, rows of unit length
    catalog: Catalog
    index: VectorIndex

    def rows_matching(self, where: Filter) -> np.ndarray:
        """(N,) bool: the rows of the images that `where` matches."""
        return self._columns.rows_matching(where)

    @cached_property
    def _columns(self) -> AttributeColumns:
        """Opened by the first filter: Arrow takes a while to import."""
        return AttributeColumns(self.path / COLUMNS, self.manifest.image_count, self.catalog.rows_with)

    def close(self) -> None:
        """Release the catalog's file; the vectors are unmapped when nobody uses them any more."""
        self.catalog.close()


def publish(index: Path, staged: Path, manifest: Manifest) -> str:
    """Publish the catalog, vectors and FAISS file in `staged` as the live snapshot of `index`; return its name.

    The files are moved. A crash at any moment leaves the former snapshot live and whole. The former one is kept, older
    ones are removed.
    """
    files = directory_digests(staged)
    content = json.dumps({**asdict(manifest), "files": files}, indent=2, sort_keys=True, ensure_ascii=False).encode()
    moment = datetime.fromisoformat(manifest.create_time).astimezone(UTC)
    name = f"{moment:%Y%m%dT%H%M%SZ}-{digest_bytes(content)[:16]}"
    with publish_directory(index / SNAPSHOTS / name) as aside:
        for file in files:
            (staged / file).replace(aside / file)
        write_atomic(aside / MANIFEST, content)
    try:
        former = current_name(index)
    except SnapshotError:
        former = None  # a damaged CURRENT is what this publication repairs
    write_atomic(index / CURRENT, f"{name}\n".encode())
    remove_snapshots(index, keep={name, former})
    return name


def current_name(index: Path) -> str | None:
    """The name of the live snapshot; None when nothing was published."""
    try:
        name = (index / CURRENT).read_text("utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    if not _NAME.fullmatch(name):
        raise SnapshotError(
            f"the name of a snapshot in {index / CURRENT}",
            repr(name[:80]),
            "restore the file, or build the index again",
        )
    return name


def remove_snapshots(index: Path, keep: set[str | None]) -> None:
    """Remove snapshots not kept, and what a killed publication left; readers that hold one are not disturbed."""
    for path in (index / SNAPSHOTS).glob("*"):
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)


def open_snapshot(index: Path, fingerprint: str, bundle: str = "BUNDLE") -> Snapshot:
    """Open the live snapshot of `index` for the model with `fingerprint`, after checking every digest and count.

    `SnapshotError` names the file at fault; `FingerprintMismatch` tells both fingerprints and how to build the index
    again with `bundle`.
    """
    name = current_name(index)
    if name is None:
        raise SnapshotError(
            f"an index directory with a file {CURRENT}",
            f"{index} without it" if index.is_dir() else f"nothing at {index}",
            "build one: python -m serving.build_index --help",
        )
    path = index / SNAPSHOTS / name
    manifest, files = _read_manifest(path)
    if manifest.model_fingerprint != fingerprint:
        raise FingerprintMismatch(
            f"an index of model {fingerprint}",
            f"one of model {manifest.model_fingerprint} ({manifest.model_name}) in {path}",
            f"build it again: {rebuild_command(manifest, index, bundle)}",
        )
    if problems := changed_files(path, files):
        raise _altered(path, "; ".join(problems))
    if missing := {CATALOG, COLUMNS, VECTORS, FAISS} - files.keys():
        raise _altered(path, f"{MANIFEST} without {', '.join(sorted(missing))}")
    return _load(name, path, manifest)


def rebuild_command(manifest: Manifest, index: Path, bundle: str) -> str:
    """The command that makes this index again from the same images."""
    splits = [word for split in manifest.splits for word in ("--split", split)]
    words = ["--bundle", bundle, "--data", manifest.source, *splits, "--out", str(index)]
    return f"python -m serving.build_index {shlex.join(words)}"


def _read_manifest(path: Path) -> tuple[Manifest, dict[str, dict[str, Any]]]:
    try:
        content = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise _altered(path, f"{MANIFEST} cannot be read ({error.strerror})") from None
    if digest_bytes(content)[:16] != _NAME.fullmatch(path.name).group(1):  # type: ignore[union-attr]
        raise _altered(path, f"{MANIFEST} has another content than when it was written")
    fields = json.loads(content)
    if fields.get("format_version") != FORMAT_VERSION:
        raise SnapshotError(
            f"a snapshot of format {FORMAT_VERSION}",
            f"format {fields.get('format_version')} in {path}",
            "build the index again with this version",
        )
    files = fields.pop("files")
    return Manifest(**fields), files


def _load(name: str, path: Path, manifest: Manifest) -> Snapshot:
    from serving.faiss_index import FaissIndex

    vectors = np.load(path / VECTORS, mmap_mode="r", allow_pickle=False)
    shape = (manifest.image_count, manifest.dimension)
    if vectors.shape != shape or vectors.dtype != np.float32:
        raise _altered(path, f"{VECTORS} holds {vectors.dtype} {vectors.shape} instead of float32 {shape}")
    search_index = FaissIndex.load(path / FAISS, vectors, manifest.index["kind"])
    catalog = Catalog(path / CATALOG)
    if len(catalog) != manifest.image_count:
        catalog.close()
        raise _altered(path, f"{CATALOG} holds {len(catalog):,} images instead of {manifest.image_count:,}")
    return Snapshot(name, path, manifest, vectors, catalog, search_index)


def _altered(path: Path, received: str) -> SnapshotError:
    return SnapshotError(f"the snapshot as it was published in {path}", received, "build the index again")
