"""Finds images that look the same among millions: hash and embedding propose, a small copy decides; knows no file.

Two images are the same when the hash of one is within `RADIUS` bits of that of the other, or of its mirror image, and
their small copies agree. No pair within the radius is missed: of four bands of 16 bits, one differs by at most a
quarter of the radius (multi-index hashing, Norouzi, Punjani and Fleet, CVPR 2012). Where there are embeddings of the
images, nearest neighbours are compared too: they stay near when a cut or a word in a corner changes the hash.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import IO

import numpy as np

from data.embedding_neighbours import Rows, neighbours
from data.image_likeness import BYTES, Look, alike, alike_in_part, mirror

RADIUS = 11  # bits of 64
BANDS, BAND_BITS = 4, 16
_PAIRS_AT_ONCE = 1 << 21
_COPIES_AT_ONCE = 1 << 11


@dataclass(frozen=True)
class NearPair:
    """Two images, by the order in which they were added, and how alike they are, up to 1; one may be mirrored."""

    one: int
    other: int
    likeness: float
    mirrored: bool


class NearDuplicates:
    """Takes the looks of images one by one, then tells which are of the same picture; a context manager.

    An image costs 16 bytes of memory and 1,152 bytes in a temporary file without a name.
    """

    def __init__(self) -> None:
        self._hashes = bytearray()
        self._copies: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._count = 0

    def __enter__(self) -> NearDuplicates:
        return self

    def __exit__(self, *exception: object) -> None:
        self._copies.close()

    def __len__(self) -> int:
        """How many images were added."""
        return self._count

    def add(self, look: Look) -> int:
        """Take an image; its number."""
        self._hashes += np.array([look.hash, look.mirrored], np.uint64).tobytes()
        self._copies.write(look.copy.tobytes())
        self._count += 1
        return self._count - 1

    def pairs(self, embeddings: Rows | None = None) -> list[NearPair]:
        """Pairs that connect the images of each picture: n images of one have n - 1 pairs.

        `embeddings` (N, D), of any length, are of the images in the order in which they were added.
        """
        if self._count < 2:
            return []
        self._copies.flush()
        copies = np.memmap(self._copies, np.uint8, "r", shape=(self._count, BYTES))
        own, mirrored = np.frombuffer(bytes(self._hashes), np.uint64).reshape(-1, 2).T
        search = _Search(copies)
        order = np.argsort(own, kind="stable")
        equal = np.flatnonzero(own[order][1:] == own[order][:-1])
        search.verify(order[equal], order[equal + 1], False)
        # What has the hash of an image of the same picture would find nothing that the other does not find.
        labels = search.labels()
        rows = np.setdiff1d(order, order[equal + 1][labels[order[equal]] == labels[order[equal + 1]]])
        for other, is_mirrored in ((own, False), (mirrored, True)):
            for one, two in _collected(within_radius(own[rows], other[rows])):
                search.verify(rows[one], rows[two], is_mirrored)
        for one, two in neighbours(embeddings) if embeddings is not None else ():
            for is_mirrored in (False, True):
                search.verify(one, two, is_mirrored, alike_in_part)
        return search.found


class _Search:
    """Verifies candidates and keeps what is joined already."""

    def __init__(self, copies: np.ndarray) -> None:
        self._copies = copies
        self._parent = np.arange(len(copies))
        self.found: list[NearPair] = []

    def labels(self) -> np.ndarray:
        """A number for each image, the same for images of one picture."""
        while not np.array_equal(above := self._parent[self._parent], self._parent):
            self._parent = above
        return self._parent

    def verify(
        self,
        one: np.ndarray,
        other: np.ndarray,
        mirrored: bool,
        compare: Callable[[np.ndarray, np.ndarray], np.ndarray] = alike,
    ) -> None:
        """Join those candidates whose small copies agree."""
        for start in range(0, len(one), _COPIES_AT_ONCE):
            labels = self.labels()
            a, b = one[start : start + _COPIES_AT_ONCE], other[start : start + _COPIES_AT_ONCE]
            apart = labels[a] != labels[b]
            a, b = a[apart], b[apart]
            if not len(a):
                continue
            left, right = self._copies[a], self._copies[b]
            likeness = compare(left, mirror(right) if mirrored else right)
            for n in np.argsort(-likeness)[: np.count_nonzero(likeness)].tolist():
                self._join(int(a[n]), int(b[n]), float(likeness[n]), mirrored)

    def _join(self, one: int, other: int, likeness: float, mirrored: bool) -> None:
        roots = [self._root(one), self._root(other)]
        if roots[0] != roots[1]:
            self._parent[max(roots)] = min(roots)
            self.found.append(NearPair(min(one, other), max(one, other), likeness, mirrored))

    def _root(self, row: int) -> int:
        while self._parent[row] != row:
            row = int(self._parent[row])
        return row


def within_radius(own: np.ndarray, other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All positions i ≠ j (P,), (P,) with `own[i]` and `other[j]` within the radius; i < j where both are the same.

    Each pair comes once.
    """
    same = own is other or np.array_equal(own, other)
    flips = [
        sum(1 << bit for bit in bits) for n in range(RADIUS // BANDS + 1) for bits in combinations(range(BAND_BITS), n)
    ]
    size = 1 << BAND_BITS
    for band in range(BANDS):
        keys, wanted = _band(own, band), _band(other, band)
        order = np.argsort(wanted, kind="stable")
        starts = np.searchsorted(wanted[order], np.arange(size + 1))
        for flip in flips:
            key = keys ^ np.uint64(flip)
            low, high = starts[key], starts[key + 1]
            for first, last in _pieces(high - low):
                counts = (high - low)[first:last]
                one = np.repeat(np.arange(first, last), counts)
                offset = np.arange(len(one)) - np.repeat(np.cumsum(counts) - counts, counts)
                two = order[np.repeat(low[first:last], counts) + offset]
                kept = one < two if same else one != two
                one, two = one[kept], two[kept]
                differing = own[one] ^ other[two]
                kept = np.bitwise_count(differing) <= RADIUS
                for earlier in range(band):  # has been found there
                    kept &= np.bitwise_count(_band(differing, earlier)) > RADIUS // BANDS
                if kept.any():
                    yield one[kept], two[kept]


def _collected(candidates: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same candidates in larger pieces."""
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for piece in candidates:
        waiting.append(piece)
        if sum(len(one) for one, _ in waiting) >= _COPIES_AT_ONCE:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(pieces: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    one, other = zip(*pieces, strict=True)
    return np.concatenate(one), np.concatenate(other)


def _band(hashes: np.ndarray, band: int) -> np.ndarray:
    return (hashes >> np.uint64(band * BAND_BITS)) & np.uint64((1 << BAND_BITS) - 1)


def _pieces(counts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of positions with some `_PAIRS_AT_ONCE` altogether, at least one position each."""
    total = np.cumsum(counts)
    first = 0
    while first < len(counts):
        before = total[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(total, before + _PAIRS_AT_ONCE, side="right")))
        yield first, last
        first = last
