"""A published index: an immutable directory with a manifest, and the file that names the live one; knows no model.

    INDEX/CURRENT                        the name of the live snapshot
    INDEX/snapshots/NAME/manifest.json   what it holds, for which model, and the digest of every other file
    INDEX/snapshots/NAME/catalog.sqlite  ids, captions and attributes by row, rows in the order of the ids
    INDEX/snapshots/NAME/columns.arrow   attributes by value, for filters
    INDEX/snapshots/NAME/vectors.npy     embeddings (N, D) float16, memory-mapped by readers; (N, D + 1) with offsets
    INDEX/snapshots/NAME/queries.npy     embeddings (Q, D) float16 of texts, by which the index and its successors are
                                         measured; Q may be 0
    INDEX/snapshots/NAME/index.faiss     the search index over the vectors; absent when there are none

NAME ends in the digest of the manifest, and the manifest holds those of the other files: no byte can change unnoticed.
Who reads a snapshot holds a shared lock on its manifest, so that nobody removes it meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.array_files import load_array
from data.durable import changed_files, digest_bytes
from data.errors import FingerprintMismatch, SnapshotError
from serving.attribute_columns import AttributeColumns
from serving.catalog import Catalog
from serving.filters import Filter
from serving.staged_snapshot import CATALOG, VECTORS
from serving.vector_index import VectorIndex
from serving.vector_rows import map_vectors
from serving.vector_store import AttributeSummary

FORMAT_VERSION = 2
COLUMNS = "columns.arrow"
IMPORTED = "vectors:"  # begins the source of an index whose vectors were computed elsewhere
METRIC = "inner_product"
CURRENT, SNAPSHOTS = "CURRENT", "snapshots"
MANIFEST, QUERIES, FAISS = "manifest.json", "queries.npy", "index.faiss"

_NAME = re.compile(r"\d{8}T\d{6}Z-([0-9a-f]{16})")


@dataclass(frozen=True)
class Manifest:
    """What a snapshot says about itself. `index` holds the FAISS factory string as `kind`, and how it was verified.

    `sequence` is that of the last change in it; the state of the index is the snapshot and the changes after.
    """

    image_count: int
    dimension: int
    model_fingerprint: str
    model_name: str
    source: str
    splits: list[str]
    index: Mapping[str, Any]
    create_time: str  # RFC 3339, UTC
    sequence: int
    former: str | None = None  # the snapshot that was live before
    directory: str = ""  # where relative paths in `source` begin
    corrected: bool = False  # whether each vector is followed by minus the image's offset (`dual_encoder.hubness`)
    metric: str = METRIC
    format_version: int = FORMAT_VERSION

    @property
    def width(self) -> int:
        """How many numbers are kept of an image: its embedding, and its offset if it has one."""
        return self.dimension + self.corrected


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An opened snapshot whose every byte was found as it was written."""

    name: str
    path: Path
    manifest: Manifest
    vectors: np.ndarray  # (N, W) float16: an embedding of unit length, and minus its offset if it has one
    queries: np.ndarray  # (Q, W) float16
    catalog: Catalog
    index: VectorIndex | None  # None when there are no vectors
    _held: contextlib.ExitStack = field(repr=False)

    def rows_matching(self, where: Filter) -> np.ndarray:
        """(N,) bool: the rows of the images that `where` matches."""
        return self._columns.rows_matching(where)

    @cached_property
    def attributes(self) -> list[AttributeSummary]:
        """What the images have, in the order of the attributes' names."""
        return self._columns.summaries()

    @cached_property
    def _columns(self) -> AttributeColumns:
        """Opened by the first filter: Arrow takes a while to import."""
        return AttributeColumns(self.path / COLUMNS, self.manifest.image_count, self.catalog.rows_with)

    def close(self) -> None:
        """Release the files; the vectors are unmapped when nobody uses them any more."""
        self.catalog.close()
        self._held.close()


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


def snapshot_names(index: Path) -> list[str]:
    """The names of the snapshots in `index`, oldest first."""
    return sorted(path.name for path in (index / SNAPSHOTS).glob("*") if _NAME.fullmatch(path.name))


def open_snapshot(
    index: Path, fingerprint: str | None = None, bundle: str = "BUNDLE", name: str | None = None
) -> Snapshot:
    """Open the live snapshot of `index`, or the one called `name`, after checking every digest and count.

    `SnapshotError` names the file at fault. With a `fingerprint` the snapshot must be that model's;
    `FingerprintMismatch` tells both fingerprints and how to build the index again with `bundle`.
    """
    with contextlib.ExitStack() as held:
        path = _hold(index, name, held)
        manifest, files = read_manifest(path)
        if fingerprint is not None and manifest.model_fingerprint != fingerprint:
            raise FingerprintMismatch(
                f"an index of model {fingerprint}",
                f"one of model {manifest.model_fingerprint} ({manifest.model_name}) in {path}",
                f"build it again: {rebuild_command(manifest, index, bundle)}",
            )
        if problems := changed_files(path, files):
            raise _altered(path, "; ".join(problems))
        wanted = {CATALOG, COLUMNS, VECTORS, QUERIES} | ({FAISS} if manifest.image_count else set())
        if missing := wanted - files.keys():
            raise _altered(path, f"{MANIFEST} without {', '.join(sorted(missing))}")
        return _load(path, manifest, held.pop_all())


def _hold(index: Path, name: str | None, held: contextlib.ExitStack) -> Path:
    """Lock a snapshot, by default the live one, against its removal."""
    while True:
        chosen = name or current_name(index)
        if chosen is None:
            raise SnapshotError(
                f"an index directory with a file {CURRENT}",
                f"{index} without it" if index.is_dir() else f"nothing at {index}",
                "build one: python -m serving.build_index --help",
            )
        path = index / SNAPSHOTS / chosen
        try:
            descriptor = os.open(path / MANIFEST, os.O_RDONLY)
        except OSError as error:
            if not name and current_name(index) != chosen:
                continue  # a newer one was published meanwhile, and this one removed
            raise _altered(path, f"{MANIFEST} cannot be read ({error.strerror})") from None
        held.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink:
            return path
        if name:
            raise _altered(path, "a snapshot that is being removed")


def rebuild_command(manifest: Manifest, index: Path, bundle: str) -> str:
    """The command that makes this index again from the same images."""
    return _rebuild_command(manifest.source, manifest.splits, index, bundle)


def _rebuild_command(source: str, splits: list[str], index: Path, bundle: str) -> str:
    if source.startswith(IMPORTED):
        words = ["--bundle", bundle, "--out", str(index)]
        return f"python -m serving.import_vectors {shlex.join(words)}, with such vectors by this model"
    chosen = [word for split in splits for word in ("--split", split)]
    words = ["--bundle", bundle, "--data", source, *chosen, "--out", str(index)]
    return f"python -m serving.build_index {shlex.join(words)}"


def read_manifest(path: Path) -> tuple[Manifest, dict[str, dict[str, Any]]]:
    """What the snapshot at `path` says of itself, and the digests of its files, once its own digest was found right."""
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
            f"build the index again with this version: {_command_of(fields, path.parent.parent)}",
        )
    files = fields.pop("files")
    return Manifest(**fields), files


def _command_of(fields: dict[str, Any], index: Path) -> str:
    """The command that makes an index of another format again, as far as its manifest tells."""
    source, splits = fields.get("source"), fields.get("splits", [])
    return _rebuild_command(str(source or "SOURCE"), splits if isinstance(splits, list) else [], index, "BUNDLE")


def _load(path: Path, manifest: Manifest, held: contextlib.ExitStack) -> Snapshot:
    from serving.index_recall import load_certified

    with contextlib.ExitStack() as opened:
        opened.push(held)
        vectors = map_vectors(path / VECTORS)
        shape = (manifest.image_count, manifest.width)
        if vectors.shape != shape or vectors.dtype != np.float16:
            raise _altered(path, f"{VECTORS} holds {vectors.dtype} {vectors.shape} instead of float16 {shape}")
        queries = load_array(path / QUERIES)
        search_index = load_certified(path / FAISS, vectors, manifest.index) if len(vectors) else None
        catalog = Catalog(path / CATALOG)
        opened.callback(catalog.close)
        if len(catalog) != manifest.image_count:
            raise _altered(path, f"{CATALOG} holds {len(catalog):,} images instead of {manifest.image_count:,}")
        opened.pop_all()
    return Snapshot(path.name, path, manifest, vectors, queries, catalog, search_index, held)


def _altered(path: Path, received: str) -> SnapshotError:
    return SnapshotError(
        f"the snapshot as it was published in {path}",
        received,
        "go back to another one (python -m serving.manage rollback), restore a backup, or build the index again",
    )
