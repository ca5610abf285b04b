"""Looks at every image of a source once: unusable ones, copies, leaks between splits; knows no caption."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data import console
from data.durable import digest_bytes
from data.embedding_neighbours import Rows
from data.errors import ImageError
from data.groups import Member, join_groups
from data.image_likeness import Look, look_of
from data.images import decode
from data.loading import map_ordered
from data.near_duplicates import NearDuplicates
from data.pairs import ImageTextPair, PairSource
from data.quarantine import QuarantineEntry
from data.splits import UnionFind

SMALLEST_SIDE = 32  # pixels
BLANK_DEVIATION = 2.0  # of pixel values, 0 to 255
LONGEST_ASPECT = 10.0  # sides beyond this ratio leave little when an image is squashed to a square
MOST_PIXELS = 25_000_000
HELD_OUT = ("test", "validation")  # no copy of theirs is to be trained on, nor one of the first in the second
AHEAD = 64

# Gives the embeddings (N, D) of images, in order; zeros for one that cannot be embedded.
ImageEmbedder = Callable[[Iterable[ImageTextPair]], Rows]


@dataclass(frozen=True)
class Likeness:
    """Two images of the same picture, how alike they are, up to 1, and whether one is mirrored."""

    image_id: str
    other_id: str
    likeness: float
    mirrored: bool


@dataclass
class ImageFindings:
    """What not to learn from, what belongs together, what is worth a look, and figures of all images."""

    entries: list[QuarantineEntry] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)
    near: list[Likeness] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)  # image id, what is unusual but harmless
    sizes: list[tuple[int, int]] = field(default_factory=list)  # width and height of each usable image
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Seen:
    """An image's digest, size and look, None for an unusable one, and what is wrong with it."""

    pair: ImageTextPair
    reason: str
    digest: str | None = None
    size: tuple[int, int] = (0, 0)
    look: Look | None = None


def look_at_images(source: PairSource, embed: ImageEmbedder | None = None) -> ImageFindings:
    """Read and decode every image of a source on all cores, and compare them, by their embeddings too if there are."""
    found = ImageFindings()
    members: dict[str, list[Member]] = {}  # by digest
    digests: list[str] = []  # of each look
    places = array("q")  # of each look, in the source
    with NearDuplicates() as looks:
        seen = map_ordered(_looked_at, source, ahead=AHEAD)
        shown = console.progress(seen, "looking at images", total=len(source), unit="images")
        for place, one in enumerate(shown):
            if one.reason:
                found.entries.append(QuarantineEntry(one.pair.image_id, None, one.reason))
            if one.digest is None:
                continue
            found.sizes.append(one.size)
            found.notes += [(one.pair.image_id, note) for note in _notes(*one.size)]
            if one.digest not in members and one.look is not None:
                looks.add(one.look)
                digests.append(one.digest)
                places.append(place)
            members.setdefault(one.digest, []).append((one.pair.image_id, one.pair.group, one.pair.split))
        console.say(f"comparing {len(looks):,} different images")
        pairs = looks.pairs(None if embed is None or len(looks) < 2 else embed(_images(source, places, digests)))
    joined = [(digests[pair.one], digests[pair.other]) for pair in pairs]
    found.near = [
        Likeness(members[one][0][0], members[other][0][0], pair.likeness, pair.mirrored)
        for pair, (one, other) in zip(pairs, joined, strict=True)
    ]
    _judge(found, members, joined)
    return found


def _images(source: PairSource, places: Iterable[int], digests: Iterable[str]) -> Iterator[ImageTextPair]:
    """The pairs at these places, without their captions and with the digests of their images."""
    wanted = iter(zip(places, digests, strict=True))
    place, digest = next(wanted, (-1, ""))
    for number, pair in enumerate(source):
        if number == place:
            yield replace(pair, captions=(), caption_weights=(), digest=digest)
            place, digest = next(wanted, (-1, ""))


def _judge(found: ImageFindings, members: dict[str, list[Member]], joined: list[tuple[str, str]]) -> None:
    """Add leaks, groups and figures, given the images of each digest and the digests of one picture."""
    pictures = list(_pictures(members, joined))
    leaks = {entry.image_id: entry for picture in pictures for entry in _leaks(picture)}
    found.entries += leaks.values()
    # A copy that is left out says nothing of its group, which may stay where it is.
    apart = [
        [(i, None if i in leaks else group, split) for same in picture for i, group, split in same]
        for picture in pictures
    ]
    found.groups = join_groups(apart)
    found.figures = {
        "identical images": sum(len(same) - 1 for same in members.values()),
        "near-duplicate images": len(joined),
        "pictures with more than one image": sum(len(picture) > 1 for picture in apart),
        "most images of one picture": max((len(picture) for picture in apart), default=0),
        "worth a look": dict(Counter(note for _, note in found.notes)),
    }


def _looked_at(pair: ImageTextPair) -> _Seen:
    try:
        data = pair.image.read()
        image = decode(data)
    except ImageError as error:
        return _Seen(pair, f"image {error.reason}".replace("_", " "))
    size = image.size
    look = look_of(image)
    image.thumbnail((64, 64))
    blank = float(np.asarray(image, np.float32).std(axis=(0, 1)).max()) < BLANK_DEVIATION
    reason = "tiny image" if min(size) < SMALLEST_SIDE else "blank image" if blank else ""
    return _Seen(pair, reason, digest_bytes(data), size, None if blank else look)


def _notes(width: int, height: int) -> Iterator[str]:
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        yield "extreme aspect ratio"
    if width * height > MOST_PIXELS:
        yield "very many pixels"


def _pictures(members: dict[str, list[Member]], joined: Iterable[tuple[str, str]]) -> Iterator[list[list[Member]]]:
    """All images of each picture, identical ones in one list."""
    sets = UnionFind()
    for one, other in joined:
        sets.join(one, other)
    pictures: dict[Any, list[list[Member]]] = {}
    for digest, same in members.items():
        if digest in sets:
            pictures.setdefault(sets.find(digest), []).append(same)
        else:
            yield [same]
    yield from pictures.values()


def _leaks(picture: list[list[Member]]) -> Iterator[QuarantineEntry]:
    """Entries of the images of a picture that a split held out shows too."""
    splits = {split for same in picture for _, _, split in same}
    held_out = next((split for split in HELD_OUT if split in splits), None)
    for same in picture:
        copied = any(split == held_out for _, _, split in same)
        for image_id, _, split in same:
            # The data set says nothing of an image without a split: it may join the validation split.
            leaks = split != "test" if held_out == "test" else held_out is not None and split == "train"
            if leaks:
                yield QuarantineEntry(image_id, None, f"{'' if copied else 'near '}copy of a {held_out} image")
