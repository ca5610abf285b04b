"""Lists of pairs that are not to be trusted, and what training leaves of them; knows not how they were found.

A list is JSON lines: `{"image_id": …, "caption": … or null, "reason": …, "weight": 0 to 1, "score": … or null}`.
Without a caption the whole image is meant. The weight says how far the pair is trusted: 0 is not at all. The user's own
files are never changed, and pairs of the test split are left as they are, so that cleaning flatters no figure.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from data.console import say
from data.durable import canonical_json, digest_bytes, write_atomic
from data.errors import SourceError
from data.pairs import ImageTextPair
from data.text import clean_caption

Mode = Literal["drop", "down-weight"]
CLEANED = ("train", "validation")  # splits that a quarantine changes

# Below this weight a pair is dropped by "drop"; the others of the list stay as they are.
DROPPED_BELOW = 0.5


@dataclass(frozen=True)
class QuarantineEntry:
    """One caption of an image, or with None the image and all its captions, and how far it is trusted, 0 to 1."""

    image_id: str
    caption: str | None
    reason: str
    weight: float = 0.0
    score: float | None = None


class Quarantine:
    """What a list leaves of pairs.

    "drop" leaves out those of a weight below one half; "down-weight" gives each pair its weight in the loss and leaves
    out those of weight 0.
    """

    def __init__(self, entries: Iterable[QuarantineEntry], mode: Mode = "drop") -> None:
        self.mode: Mode = mode
        self._weights: dict[str, dict[str | None, float]] = {}  # image_id → caption → weight
        entries = list(entries)
        listed = sorted(canonical_json(asdict(entry)) for entry in entries)
        self.digest = digest_bytes(b"\n".join(listed))
        for entry in entries:
            caption = None if entry.caption is None else clean_caption(entry.caption)
            weight = self._effective(entry.weight)
            of_image = self._weights.setdefault(entry.image_id, {})
            of_image[caption] = min(weight, of_image.get(caption, 1.0))

    def __len__(self) -> int:
        """How many images have an entry."""
        return len(self._weights)

    def to_config(self) -> dict[str, Any]:
        """What names this quarantine in manifests and run keys."""
        return {"sha256": self.digest, "mode": self.mode}

    def admits(self, pair: ImageTextPair) -> bool:
        """Whether the image stays, before splits are made: those that the data set itself puts into test always do."""
        return pair.split == "test" or self._weights.get(pair.image_id, {}).get(None, 1.0) > 0

    def cleaned(self, pair: ImageTextPair) -> ImageTextPair | None:
        """The pair with the captions and weights that are left to train on; None where nothing is."""
        weights = self._weights.get(pair.image_id)
        if weights is None:
            return pair
        of_image = weights.get(None, 1.0)
        kept = [
            (caption, own * of_image * weights.get(clean_caption(caption), 1.0))
            for caption, own in zip(pair.captions, pair.weights, strict=True)
        ]
        kept = [(caption, weight) for caption, weight in kept if weight > 0]
        if not of_image or (pair.captions and not kept):
            return None
        captions, own = zip(*kept, strict=True) if kept else ((), ())
        return replace(pair, captions=captions, caption_weights=own if min(own, default=1.0) < 1 else ())

    def of_split(self, pair: ImageTextPair, split: str) -> ImageTextPair | None:
        """`cleaned`, except for pairs of the test split."""
        return self.cleaned(pair) if split in CLEANED else pair

    def of_splits(self, splits: Mapping[str, Iterable[ImageTextPair]]) -> dict[str, list[ImageTextPair]]:
        """Every split with what is left of it, and a line on what went; `SourceError` when no image has an entry."""
        left: dict[str, list[ImageTextPair]] = {}
        changed, known = Counter[str](), 0
        for split, pairs in splits.items():
            left[split] = []
            for pair in pairs:
                known += pair.image_id in self._weights
                kept = self.of_split(pair, split)
                changed["images left out"] += kept is None
                if kept is not None:
                    changed["captions left out"] += len(pair.captions) - len(kept.captions)
                    changed["captions with less weight"] += sum(weight < 1 for weight in kept.caption_weights)
                    left[split].append(kept)
        if self._weights and not known:
            raise SourceError(
                "a quarantine list of this data set",
                f"{len(self):,} images, such as {next(iter(self._weights))}, none of which it has",
                "make the list anew with python -m data.doctor",
            )
        say("quarantine: " + ", ".join(f"{count:,} {what}" for what, count in changed.items()))
        return left

    def _effective(self, weight: float) -> float:
        if self.mode == "down-weight":
            return weight
        return 0.0 if weight < DROPPED_BELOW else 1.0


def read_quarantine(path: Path, mode: Mode = "drop") -> Quarantine:
    """The list in a file; `SourceError` with the line of what is malformed."""
    return Quarantine(read_entries(path), mode)


def read_entries(path: Path) -> list[QuarantineEntry]:
    """The entries of a file, in order; `SourceError` with the line of what is malformed."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"a quarantine list at {path}", str(error), "check the path, or run data.doctor") from None
    return [_entry(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def write_entries(path: Path, entries: Iterable[QuarantineEntry]) -> None:
    """Write a list that `read_entries` reads."""
    write_atomic(path, b"".join(canonical_json(asdict(entry)) + b"\n" for entry in entries))


def _entry(line: str, place: str) -> QuarantineEntry:
    expected = 'an object with "image_id", "caption", "reason", "weight" of 0 to 1 and perhaps "score"'
    next_step = "correct the line, or make the list anew with python -m data.doctor"
    try:
        entry = QuarantineEntry(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise SourceError(f"{expected} in {place}", str(error), next_step) from None
    numbers = [entry.weight, *([] if entry.score is None else [entry.score])]
    texts = isinstance(entry.image_id, str) and isinstance(entry.caption, str | None)
    real = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
    if not (texts and real and 0 <= entry.weight <= 1):
        raise SourceError(f"{expected} in {place}", line[:200], next_step)
    return entry


def add_quarantine_options(parser: argparse.ArgumentParser) -> None:
    """`--quarantine FILE` and `--quarantine-mode`."""
    parser.add_argument(
        "--quarantine", type=Path, metavar="FILE", help="pairs not to learn from, as data.doctor lists them"
    )
    parser.add_argument(
        "--quarantine-mode",
        choices=get_args(Mode),
        default="drop",
        help="drop leaves them out, down-weight lets each count as far as the list trusts it (default drop)",
    )


def chosen_quarantine(options: argparse.Namespace) -> Quarantine | None:
    """The quarantine that a command line names."""
    return None if options.quarantine is None else read_quarantine(options.quarantine, options.quarantine_mode)
