"""Reads and decodes every image of a source once, on all cores, and keeps a journal of the verdicts.

A check that was killed goes on behind the last verdict of its journal. Knows neither splits nor shards.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import console
from data.durable import canonical_json, digest_bytes, naming_file
from data.errors import ImageError
from data.images import decode
from data.loading import map_ordered
from data.pairs import ImageTextPair, PairSource

# Images held between checking and writing, so that a small data set is read (or drawn) only once; bytes.
KEPT_BYTES = 64 << 20
OVERHEAD = 200  # of an object and its entry
AHEAD = 64  # images in work


@dataclass(frozen=True)
class Verdict:
    """What the check found: the SHA-256 of a usable image, else the reason why it is not usable."""

    image_id: str
    group: str | None
    split: str | None  # as the data set prescribes it
    sha256: str | None
    reason: str = ""
    received: str = ""


class ImageStore:
    """The first images of a data set, by their position, up to `KEPT_BYTES` altogether."""

    def __init__(self) -> None:
        self._images: dict[int, bytes] = {}
        self._free = KEPT_BYTES

    def put(self, position: int, image: bytes) -> None:
        """Keep an image where there is room."""
        size = len(image) + OVERHEAD
        if self._free >= size:
            self._free -= size
            self._images[position] = image

    def take(self, position: int) -> bytes | None:
        """Give an image away, None where it is not kept."""
        return self._images.pop(position, None)


def check_images(source: PairSource, journal: Path) -> ImageStore:
    """Append a verdict on every pair of `source` to `journal`, behind those that it already holds."""
    done = _whole_lines(journal)
    kept = ImageStore()
    remaining = itertools.islice(source, done, None)
    checks = map_ordered(_checked, remaining, ahead=AHEAD)
    checked = console.progress(checks, "checking images", total=len(source), done=done, unit="images")
    with naming_file(journal), journal.open("ab", buffering=0) as file:
        for position, (verdict, image) in enumerate(checked, start=done):
            file.write(_line(verdict))
            if image is not None:
                kept.put(position, image)
    return kept


def read_verdicts(journal: Path) -> Iterator[Verdict]:
    """The verdicts of a journal, in the order of the source."""
    with journal.open("rb") as file:
        for line in file:
            yield Verdict(*json.loads(line))


def _checked(pair: ImageTextPair) -> tuple[Verdict, bytes | None]:
    try:
        image = pair.image.read()
        decode(image)
    except ImageError as error:
        return Verdict(pair.image_id, pair.group, pair.split, None, error.reason, error.received), None
    return Verdict(pair.image_id, pair.group, pair.split, digest_bytes(image)), image


def _line(verdict: Verdict) -> bytes:
    fields: list[Any] = [verdict.image_id, verdict.group, verdict.split, verdict.sha256]
    if verdict.sha256 is None:
        fields += [verdict.reason, verdict.received]
    return canonical_json(fields) + b"\n"


def _whole_lines(journal: Path) -> int:
    """How many verdicts a journal holds, after a line that a crash left unfinished is cut off."""
    if not journal.exists():
        return 0
    count = end = 0
    with journal.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n") or b"\0" in line:  # zeros are what a power failure may leave
                break
            count += 1
            end += len(line)
        file.truncate(end)
    return count
