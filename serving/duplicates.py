"""Lists the images of an index that are there twice: the same bytes, or the same picture in others; knows no model.

Nearest neighbours by embedding propose; small copies of the pictures decide, where the files are at hand
(docs/adr/0021-embeddings-propose-small-copies-decide.md). Memory does not grow with the index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from data import console
from data.durable import naming_file, sync_path
from data.errors import ImageError
from data.image_likeness import SIDE, alike_in_part, look_of, mirror
from data.images import decode
from data.loading import map_ordered
from serving.image_files import find_image
from serving.snapshot import Snapshot, open_snapshot
from serving.source_entries import DistinctIds

DUPLICATES = "duplicates.json"

NEIGHBOURS = 10  # of an image that are looked at, itself among them
LEAST_COSINE = 0.9  # of embeddings, for pictures to be compared
CERTAIN_COSINE = 0.98  # from which an embedding alone is believed, where a picture is not at hand
_AT_ONCE, _PAIRS_AT_ONCE, _COPIES = 64, 64, 4_096


@dataclass(frozen=True)
class NearPair:
    """Two images of one picture. `likeness`, up to 1, is that of their small copies, None where a file is not there."""

    one: str
    other: str
    cosine: float
    likeness: float | None
    mirrored: bool = False


@dataclass
class DuplicateCounts:
    """`copies`: images that have the bytes of another; `groups` of such; pairs of the same picture in other bytes."""

    groups: int = 0
    copies: int = 0
    near: int = 0


def report_duplicates(index: Path) -> DuplicateCounts:
    """Write INDEX/duplicates.json about the live snapshot of `index`.

    It holds `exact`, a digest and the ids of all images with it; `near`, see `NearPair`, where of several copies only
    the first counts; and `counts`. What stands above the snapshot is not looked at.
    """
    counts = DuplicateCounts()
    part = index / f".{DUPLICATES}.part"
    with closing(open_snapshot(index)) as snapshot, naming_file(part), part.open("w", encoding="utf-8") as file:
        copies = np.zeros(len(snapshot.vectors), bool)
        file.write(f'{{"snapshot": {json.dumps(snapshot.name)},\n"exact": [')
        _write_rows(file, _exact(snapshot, copies, counts))
        file.write('],\n"near": [')
        _write_rows(file, map(asdict, _near(index, snapshot, copies, counts)))
        file.write(f'],\n"counts": {json.dumps(asdict(counts))}}}\n')
    sync_path(part)
    part.replace(index / DUPLICATES)
    return counts


def _write_rows(file: IO[str], rows: Iterable[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        file.write((",\n" if number else "\n") + json.dumps(row, ensure_ascii=False))


def _exact(snapshot: Snapshot, copies: np.ndarray, counts: DuplicateCounts) -> Iterator[dict[str, Any]]:
    """Digests with the ids of all images that have them; `copies` (N,) marks all but the first of each."""
    for digest, images in snapshot.catalog.repeated_digests():
        copies[[row for row, _ in images[1:]]] = True
        counts.groups += 1
        counts.copies += len(images) - 1
        yield {"digest": digest, "image_ids": [image_id for _, image_id in images]}


def _near(index: Path, snapshot: Snapshot, copies: np.ndarray, counts: DuplicateCounts) -> Iterator[NearPair]:
    copy_of = _small_copies(index, snapshot)
    proposed = iter(_proposed(snapshot, copies))
    while pairs := [pair for pair, _ in zip(proposed, range(_PAIRS_AT_ONCE), strict=False)]:
        rows = sorted({row for one, other, _ in pairs for row in (one, other)})
        small = dict(zip(rows, map_ordered(copy_of, rows, ahead=_PAIRS_AT_ONCE), strict=True))
        ids = dict(zip(rows, snapshot.catalog.ids(rows), strict=True))
        for one, other, cosine in pairs:
            likeness, mirrored = _likeness(small[one], small[other])
            if likeness or (likeness is None and cosine >= CERTAIN_COSINE):
                counts.near += 1
                yield NearPair(ids[one], ids[other], round(cosine, 4), likeness, mirrored)


def _likeness(one: np.ndarray | None, other: np.ndarray | None) -> tuple[float | None, bool]:
    """How alike two small copies are, 0 for different pictures, and whether one is mirrored; None where one lacks."""
    if one is None or other is None:
        return None, False
    straight, flipped = (
        float(alike_in_part(one[np.newaxis], seen)[0]) for seen in (other[np.newaxis], mirror(other[np.newaxis]))
    )
    return round(max(straight, flipped), 4), flipped > straight


def _proposed(snapshot: Snapshot, copies: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Rows whose embeddings are near, each pair once, the lower row first, and their cosine."""
    index = snapshot.index
    if index is None:
        return

    def search(start: int) -> tuple[int, np.ndarray, np.ndarray]:
        vectors = np.asarray(snapshot.vectors[start : start + _AT_ONCE], np.float32)
        vectors[:, snapshot.manifest.dimension :] = 0  # images ask for one another by their pictures alone
        return start, *index.search(vectors, NEIGHBOURS)

    starts = range(0, len(copies), _AT_ONCE)
    found = console.progress(map_ordered(search, starts, ahead=8), "looking for duplicates", total=len(starts))
    with DistinctIds() as seen:
        for start, scores, rows in found:
            own = np.broadcast_to(start + np.arange(len(rows))[:, np.newaxis], rows.shape)
            near = (scores >= LEAST_COSINE) & (rows != own) & ~copies[own] & ~copies[rows]
            for one, other, cosine in zip(own[near].tolist(), rows[near].tolist(), scores[near].tolist(), strict=True):
                low, high = min(one, other), max(one, other)
                if seen.add(f"{low},{high}"):
                    yield low, high, cosine


def _small_copies(index: Path, snapshot: Snapshot) -> Callable[[int], np.ndarray | None]:
    """Gives the small copy (BYTES,) of the picture in a row, None where its file is not at hand; from any thread."""

    @lru_cache(_COPIES)
    def small_copy(row: int) -> np.ndarray | None:
        (entry,) = snapshot.catalog.by_rows([row])
        file = find_image(index, entry.digest, entry.location)
        try:
            return None if file is None else look_of(decode(file.read(), enough=4 * SIDE)).copy
        except (OSError, ImageError):
            return None

    return small_copy
