"""Stages what stands in an index already for the snapshot that follows: all of it, or what was changed online; knows no
model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data.errors import SnapshotError
from serving.catalog import ONLINE, CatalogEntry, attributes_of_json, captions_of_json
from serving.change_log import ChangeLog
from serving.log_file import LOG, damaged
from serving.logged_change import LoggedChange
from serving.snapshot import SNAPSHOTS, Snapshot, current_name, open_snapshot, read_manifest, snapshot_names
from serving.staged_snapshot import StagedSnapshot
from serving.vector_store import BATCH_VERSION

_AT_ONCE = 1_000

# Vectors by another model for entries, None for one that has to be left out; see `reembedding.Reembedding`.
Embed = Callable[[Sequence[CatalogEntry]], list[np.ndarray | None]]


def open_log(index: Path) -> ChangeLog:
    """The log of `index` to read, made when there is none yet."""
    if not (index / LOG).exists():
        ChangeLog.create(index, last=max([BATCH_VERSION, *_sequences(index)]))
    return ChangeLog.open(index, writable=False)


def newest_readable(index: Path, log: ChangeLog) -> Snapshot | None:
    """The live snapshot, or the newest other one that is whole and whose following changes the log holds.

    None when there is none and the log holds every change there ever was; `SnapshotError` when changes would be lost.
    """
    refusal: SnapshotError | None = None
    for name in _live_first(index):
        try:
            snapshot = open_snapshot(index, name=name)
        except SnapshotError as error:
            refusal = refusal or error
            continue
        if snapshot.manifest.sequence >= log.pruned:
            return snapshot
        snapshot.close()
    if log.pruned > BATCH_VERSION:
        raise refusal or damaged(log.path, f"changes from {log.pruned + 1:,} on, and no snapshot that holds the others")
    return None


def stage(
    staged: StagedSnapshot,
    snapshot: Snapshot | None,
    log: ChangeLog,
    fingerprint: str,
    *,
    only_online: bool = False,
    embed: Embed | None = None,
) -> int:
    """Stage the images of `snapshot` and of the changes after it; return the number of the last change.

    `only_online` leaves out what batch jobs brought, for another batch job to bring it. Vectors of the model with
    `fingerprint` are taken as they are; `embed` makes them for images that have another model's.
    """
    sequence, model = BATCH_VERSION, log.model_number(fingerprint)
    if snapshot is not None:
        sequence = snapshot.manifest.sequence
        same_model = snapshot.manifest.model_fingerprint == fingerprint
        for image_id, version in snapshot.catalog.deletions():
            staged.delete(image_id, version)
        entries = (e for e in snapshot.catalog if not only_online or e.origin == ONLINE)
        for chunk in _chunks(entries):
            vectors = snapshot.vectors[[entry.row for entry in chunk]]
            _add(staged, chunk, vectors, None if same_model else embed)
    for changes in _chunks(log.after_for(sequence, model, or_as_it_is=True)):
        for (upserts, own), group in itertools.groupby(changes, key=lambda c: (c.vector is not None, c.model == model)):
            if upserts:
                _add_changes(staged, list(group), None if own else embed)
            else:
                for change in group:
                    staged.delete(change.image_id, change.sequence)
        sequence = changes[-1].sequence
    return sequence


def entry_of(change: LoggedChange) -> CatalogEntry:
    """The catalog entry of an upsert."""
    captions, attributes = captions_of_json(change.captions), attributes_of_json(change.attributes)
    version = change.sequence
    return CatalogEntry(change.image_id, change.digest, change.location, captions, attributes, version, origin=ONLINE)


def _add_changes(staged: StagedSnapshot, changes: list[LoggedChange], embed: Embed | None) -> None:
    vectors = np.frombuffer(b"".join(change.vector for change in changes if change.vector is not None), np.float16)
    _add(staged, list(map(entry_of, changes)), vectors.reshape(len(changes), -1), embed)


def _add(staged: StagedSnapshot, entries: list[CatalogEntry], vectors: np.ndarray, embed: Embed | None) -> None:
    """Stage entries with their vectors, or with those that `embed` makes; those without one are left out."""
    if embed is None:
        staged.add(entries)
        staged.add_vectors(vectors)
        return
    made = [(entry, vector) for entry, vector in zip(entries, embed(entries), strict=True) if vector is not None]
    for entry in entries:
        staged.forget(entry.image_id)  # also where it is left out, an earlier state of it must not stay
    staged.add(entry for entry, _ in made)
    if made:
        staged.add_vectors(np.stack([vector for _, vector in made]))


def _live_first(index: Path) -> list[str]:
    try:
        live = current_name(index)
    except SnapshotError:
        live = None  # damaged; the snapshots may be whole
    names = snapshot_names(index)[::-1]
    return sorted(names, key=lambda name: name != live)


def _sequences(index: Path) -> Iterator[int]:
    """The sequence numbers that snapshots name."""
    for name in snapshot_names(index):
        try:
            yield read_manifest(index / SNAPSHOTS / name)[0].sequence
        except SnapshotError:
            continue


def _chunks(items: Iterable) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, _AT_ONCE)):
        yield chunk
