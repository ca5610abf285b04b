"""Publishes a staged snapshot: verified before it is live, live in one step, and the former one kept for a rollback;
knows no model."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from data.array_files import load_array
from data.durable import digest_bytes, directory_digests, naming_file, publish_directory, write_atomic
from data.errors import SnapshotError
from serving.attribute_columns import write_columns
from serving.builder_lock import only_builder
from serving.carry_over import Embed, entry_of
from serving.catalog import Catalog
from serving.change_log import ChangeLog
from serving.exact_index import ROUNDING
from serving.index_bundle import remove_bundles
from serving.index_recall import INDEX_RECALL_FLOOR, SAMPLE, Tuning, build_verified
from serving.snapshot import (
    COLUMNS,
    CURRENT,
    FAISS,
    MANIFEST,
    QUERIES,
    SNAPSHOTS,
    Manifest,
    Snapshot,
    current_name,
    open_snapshot,
    read_manifest,
    snapshot_names,
)
from serving.staged_snapshot import CATALOG, VECTORS
from serving.unused_images import remove_unused_images

WORK = "work"

_SEE = "see python -m serving.manage snapshots, and name one: python -m serving.manage rollback INDEX NAME"

_log = logging.getLogger(__name__)


@contextmanager
def staging(index: Path) -> Iterator[Path]:
    """An empty directory for what is to be published in `index`, removed at the end."""
    staged = index / WORK / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def index_staged(
    staged: Path, queries: np.ndarray, dimension: int, tuning: Tuning | None = None, threads: int = 0
) -> dict[str, Any]:
    """Write the columns of the staged attributes, and the search index, measured on `queries` (Q, W), if there are any.

    Returns the index's certificate as JSON; see `index_recall.build_verified`.
    """
    vectors = load_array(staged / VECTORS, mapped=True)
    with naming_file(staged / QUERIES), (staged / QUERIES).open("wb") as file:
        np.save(file, queries.astype(np.float16), allow_pickle=False)
    with closing(Catalog(staged / CATALOG)) as catalog:
        write_columns(staged / COLUMNS, (entry.attributes for entry in catalog))
    if not len(vectors):
        return {"kind": "none"}
    queries = queries.astype(np.float16).astype(np.float32)
    return build_verified(vectors, queries, staged / FAISS, tuning=tuning, embedding_dim=dimension, threads=threads)


def publish(index: Path, staged: Path, manifest: Manifest, embed: Embed | None = None) -> str:
    """Publish the files in `staged` as the live snapshot of `index`; return its name.

    The files are moved. The new snapshot is read back and verified before it is live; a crash at any moment, or a
    failed verification, leaves the former one live and whole. The former one is kept; older ones are removed as soon as
    nobody reads them, and with them the uploaded images that nothing names any more. One process at a time may publish:
    hold the index's lock. When the model is another one, `embed` gives its vectors to changes that were acknowledged
    meanwhile.
    """
    name = _write_snapshot(index, staged, manifest)
    try:
        verify_snapshot(index, name)
    except BaseException:
        shutil.rmtree(index / SNAPSHOTS / name, ignore_errors=True)
        raise
    former: str | None = None
    with suppress(SnapshotError):  # a damaged CURRENT is what this publication repairs
        former = current_name(index)
    _make_live(index, name, manifest, embed)
    remove_snapshots(index, keep={name, former})
    remove_bundles(index)
    remove_unused_images(index)
    return name


def _write_snapshot(index: Path, staged: Path, manifest: Manifest) -> str:
    files = directory_digests(staged)
    content = json.dumps({**asdict(manifest), "files": files}, indent=2, sort_keys=True, ensure_ascii=False).encode()
    moment = datetime.fromisoformat(manifest.create_time).astimezone(UTC)
    name = f"{moment:%Y%m%dT%H%M%SZ}-{digest_bytes(content)[:16]}"
    with publish_directory(index / SNAPSHOTS / name) as aside:
        for file in files:
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            (staged / file).replace(aside / file)
        write_atomic(aside / MANIFEST, content)
    return name


def verify_snapshot(index: Path, name: str) -> None:
    """Open a snapshot as a server would, every digest checked, and search for a sample of its own vectors.

    `SnapshotError` when a file is not as it was written, or when images do not find themselves.
    """
    with closing(open_snapshot(index, name=name)) as snapshot:
        found = found_themselves(snapshot)
        if found < INDEX_RECALL_FLOOR:
            raise SnapshotError(
                "an index in which images find themselves",
                f"{found:.0%} of a sample that do in {snapshot.path}",
                "check the machine's memory and disk, then run again",
            )


def found_themselves(snapshot: Snapshot) -> float:
    """Share of a sample of the images that come first, or equal to the first, when their own vector is searched."""
    if snapshot.index is None:
        return 1.0
    rows = np.unique(np.linspace(0, len(snapshot.vectors) - 1, SAMPLE).astype(int))
    vectors = np.asarray(snapshot.vectors[rows], np.float32)
    vectors[:, snapshot.manifest.dimension :] = 0  # images ask for one another without offsets
    scores, _ = snapshot.index.search(vectors, 1)
    return float((scores[:, 0] >= np.einsum("bd,bd->b", vectors, vectors) - ROUNDING).mean())


def roll_back(index: Path, name: str | None = None, embed_by: Callable[[str], Embed] | None = None) -> str:
    """Make the snapshot called `name` live again, by default the newest good one older than the live one.

    Returns its name. It is verified first. The state is then that snapshot and every change after it: nothing that was
    acknowledged is lost. No snapshot is removed, so that a further call goes further back. `embed_by(fingerprint)` is
    needed only when changes after it have no vector of that model. `SnapshotError` when there is no such snapshot, or
    none that is good; the live one then stays.
    """
    with only_builder(index, "rollback"):
        if name is not None and name not in snapshot_names(index):
            raise SnapshotError("the name of a snapshot", f"{name!r}", _SEE)
        name, manifest = _first_good(index, earlier_names(index) if name is None else [name])
        _make_live(index, name, manifest, None if embed_by is None else embed_by(manifest.model_fingerprint))
    return name


def earlier_names(index: Path) -> list[str]:
    """The snapshots older than the live one: first that which it took the place of, then newest first.

    `SnapshotError` when there is none.
    """
    live = current_name(index)
    found = {name: _create_time(index, name) for name in snapshot_names(index)}
    if live is None:
        raise SnapshotError("an index with a live snapshot", f"none in {index}", _SEE)
    former = None
    with suppress(SnapshotError):  # a damaged one is what people go back from
        former = read_manifest(index / SNAPSHOTS / live)[0].former
    moment = found.pop(live, None) or _create_time(index, live)
    older = [name for name, made in found.items() if made <= moment]
    if not older:
        newer = ", ".join(sorted(found, key=lambda name: found[name])) or "no other"
        raise SnapshotError(f"a snapshot older than the live one, {live}", f"none in {index}; newer: {newer}", _SEE)
    return sorted(older, key=lambda name: (name == former, found[name]), reverse=True)


def _create_time(index: Path, name: str) -> datetime:
    """When a snapshot was made, to the second where only its name can be read."""
    try:
        return datetime.fromisoformat(read_manifest(index / SNAPSHOTS / name)[0].create_time)
    except SnapshotError:
        return datetime.strptime(name.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC, microsecond=999_999)


def _first_good(index: Path, names: Sequence[str]) -> tuple[str, Manifest]:
    """The first snapshot that is found whole; what is wrong with the first of all when none is."""
    refusal: SnapshotError | None = None
    for name in names:
        try:
            verify_snapshot(index, name)
            return name, read_manifest(index / SNAPSHOTS / name)[0]
        except SnapshotError as error:
            _log.warning("passed over: %s", error)
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _make_live(index: Path, name: str, manifest: Manifest, embed: Embed | None) -> None:
    """Let CURRENT name `name`.

    Every change after the snapshot gets a vector of its model first; while CURRENT changes no writer appends, so that
    one who has not noticed yet cannot add a vector of the former model above it (`EmbeddedStore` looks in between).
    """
    content = f"{name}\n".encode()
    with closing(ChangeLog.open(index, writable=True, appending=False)) as log:
        model, done = log.model_number(manifest.model_fingerprint), manifest.sequence
        while True:
            done = _translate(log, done, model, embed)
            with log.locked() as last:
                if last <= done:
                    write_atomic(index / CURRENT, content)
                    break


def _translate(log: ChangeLog, done: int, model: int, embed: Embed | None) -> int:
    """Give changes after number `done` a vector of `model` if they have none; return the number of the last."""
    foreign = []
    for change in log.after_for(done, model, or_as_it_is=True):
        done = change.sequence
        if change.vector is not None and change.model != model:
            foreign.append(change)
    if foreign and embed is None:
        raise SnapshotError(
            "changes with vectors of the snapshot's model",
            f"{len(foreign):,} with another's",
            "build the index again with that model's bundle",
        )
    if foreign and embed:
        vectors = embed([entry_of(change) for change in foreign])
        as_bytes = [None if vector is None else vector.astype(np.float16).tobytes() for vector in vectors]
        log.translate([c._replace(vector=v, model=model) for c, v in zip(foreign, as_bytes, strict=True)])
    return done


def remove_snapshots(index: Path, keep: set[str | None]) -> None:
    """Remove snapshots not kept that nobody reads, and what a killed publication left."""
    for path in (index / SNAPSHOTS).glob("*"):
        if path.name not in keep:
            _remove_unread(path)


def _remove_unread(path: Path) -> None:
    try:
        descriptor = os.open(path / MANIFEST, os.O_RDONLY)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)  # unfinished: no reader can have opened it
        return
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # First the manifest: what is left of a removal that was cut short is nobody's snapshot.
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)
