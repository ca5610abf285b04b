"""Assigns images to train, validation and test so that nothing leaks between them; knows no file format."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from data.errors import SourceError
from data.loading import with_digests
from data.pairs import ImageTextPair

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitFractions:
    """Expected shares of the splits among groups; they add up to 1."""

    train: float = 0.8
    validation: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(f"expected shares of at least 0 that add up to 1; received {shares}")


class UnionFind:
    """Which things belong together, given pairs that do."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def __contains__(self, item: Hashable) -> bool:
        """Whether `item` was ever found or joined."""
        return item in self._parent

    def find(self, item: Hashable) -> Hashable:
        """The representative of `item`'s set."""
        parent = self._parent.setdefault(item, item)
        while parent != self._parent[parent]:
            self._parent[item] = self._parent[parent]
            item, parent = parent, self._parent[parent]
        return parent

    def join(self, one: Hashable, other: Hashable) -> None:
        """Make one set of two."""
        self._parent[self.find(one)] = self.find(other)


class SplitAssigner:
    """Takes images one by one, holding only their names (some 400 bytes an image), then assigns splits by group.

    Images with the same `group`, or the same `digest` of their bytes, get the same split. A group's split depends only
    on the seed and the group's key (the smallest of its `group` names, else of its ids), so it does not change with
    the order of images or when other groups are added.
    """

    def __init__(self, seed: int = 0, fractions: SplitFractions | None = None) -> None:
        self.seed = seed
        self.fractions = fractions or SplitFractions()
        self._sets = UnionFind()  # image ids that are not alone
        self._groups: dict[str, str | None] = {}  # image_id → group
        self._first_of_group: dict[str, str] = {}  # → image_id
        self._first_of_digest: dict[bytes, str] = {}  # by a short digest of the digest, to save memory
        self._prescribed: dict[str, str] = {}

    def add(self, image_id: str, group: str | None = None, digest: str | None = None, split: str | None = None) -> None:
        """Take one image; `split` is what its data set prescribes. `SourceError` for an id met before."""
        if image_id in self._groups:
            raise SourceError("each image_id once", f"{image_id} twice", "give every image an id of its own")
        self._groups[image_id] = group
        if group is not None:
            self._join(image_id, self._first_of_group.setdefault(group, image_id))
        if digest is not None:
            short = hashlib.blake2b(digest.encode(), digest_size=16).digest()
            self._join(image_id, self._first_of_digest.setdefault(short, image_id))
        if split is not None:
            self._prescribed[image_id] = split

    def assign(self) -> dict[str, str]:
        """`{image_id: split}`; `SourceError` when images that belong together have different prescribed splits."""
        splits = dict.fromkeys(self._groups, "")
        members: dict[Hashable, list[str]] = {}
        for image_id in self._groups:
            if image_id in self._sets:
                members.setdefault(self._sets.find(image_id), []).append(image_id)
            else:
                splits[image_id] = self._prescribed.get(image_id) or self._by_hash([image_id])
        torn: list[list[str]] = []
        for images in members.values():
            prescribed = {self._prescribed[image] for image in images if image in self._prescribed}
            if len(prescribed) > 1:
                torn.append(images)
                continue
            split = prescribed.pop() if prescribed else self._by_hash(images)
            splits.update(dict.fromkeys(images, split))
        if torn:
            raise self._leak(torn)
        return splits

    def _join(self, one: str, other: str) -> None:
        if one != other:
            self._sets.join(one, other)

    def _by_hash(self, images: list[str]) -> str:
        groups = [group for image in images if (group := self._groups[image]) is not None]
        key = f"group {min(groups)}" if groups else f"image {min(images)}"
        digest = hashlib.sha256(f"{self.seed}\0{key}".encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        if share < self.fractions.train:
            return "train"
        return "validation" if share < self.fractions.train + self.fractions.validation else "test"

    def _leak(self, torn: list[list[str]]) -> SourceError:
        examples = []
        for images in torn[:3]:
            one_each = {self._prescribed[image]: image for image in images if image in self._prescribed}
            examples.append(" and ".join(f"{image} ({split})" for split, image in one_each.items()))
        return SourceError(
            "images of one group, or with identical bytes, in one split",
            f"{len(torn):,} groups across prescribed splits: {'; '.join(examples)}",
            "move each group to one split, or let the splits be made anew (data.prepare --resplit)",
        )


def split_pairs(
    pairs: Iterable[ImageTextPair],
    seed: int = 0,
    fractions: SplitFractions | None = None,
    compare_bytes: bool = True,
) -> dict[str, list[ImageTextPair]]:
    """`{"train": […], "validation": […], "test": […]}`, each in the order of `pairs`, with the digests of images.

    Pairs that bring their digest, as those of prepared shards do, are not read. `compare_bytes=False` reads none, for
    sources whose groups already join identical images.
    """
    pairs = with_digests(pairs) if compare_bytes else list(pairs)
    assigner = SplitAssigner(seed, fractions)
    for pair in pairs:
        readable = pair.digest if pair.digest and not pair.digest.startswith("unreadable:") else None
        assigner.add(pair.image_id, pair.group, readable, pair.split)
    assigned = assigner.assign()
    return {split: [pair for pair in pairs if assigned[pair.image_id] == split] for split in SPLITS}
