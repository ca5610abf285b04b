"""Looks at every caption of a source: repeated, empty, long or odd ones, and their languages; knows no image.

Nothing is kept of a caption but a short digest, so that millions of them fit into memory.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from data.caption_language import language_of, script_of
from data.pairs import PairSource
from data.quarantine import QuarantineEntry
from data.text import clean_caption

# What a camera or a scanner names: IMG_1234, 20190412_134455, a.jpg. A short number alone is a word: 100, 1969, 747.
FILE_NAME = re.compile(
    r"(?i)^(img|dscn?|image|photo|screenshot)[\s_-]*\d[\d\s_-]*$|^\d([\s_-]*\d){7,}$|^\S+\.(jpe?g|png|gif|webp)$"
)
WEB_ADDRESS = re.compile(r"(?i)\bhttps?://|\bwww\.")
MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|&(amp|lt|gt|quot|nbsp|#\d+);")
LONG = 80  # words; text towers read some 64 to 128 tokens of a caption
COUNTED = 64  # words; longer captions share the last bar of the histogram

# The same text on more images than either tells nothing about any of them ...
REPEATED_IMAGES, REPEATED_SHARE = 50, 0.001
CLASS_SHARE = 0.5  # ... unless most captions are so: then they are names of classes.
TEMPLATE_WORDS, TEMPLATE_SHARE = 5, 0.01  # as many first or last words on that share of all captions
KEPT_TEMPLATES = 10
MOST_ENDS = 1 << 20  # beginnings and ends that are counted at a time


@dataclass
class CaptionFindings:
    """What not to learn from, and figures of all captions; `words` counts captions by their number of words."""

    entries: list[QuarantineEntry] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    words: list[int] = field(default_factory=lambda: [0] * (COUNTED + 1))


def look_at_captions(source: PairSource) -> CaptionFindings:
    """Read the captions of a source twice: to count, and to list."""
    count = _Count()
    for pair in source:
        count.add(pair.captions)
    boilerplate = count.boilerplate()
    templates = count.templates()
    shown: dict[bytes, str] = {}
    found = CaptionFindings(words=count.words)
    for pair in source:
        for caption in pair.captions:
            cleaned = clean_caption(caption)
            if FILE_NAME.match(cleaned):
                found.entries.append(QuarantineEntry(pair.image_id, caption, "file name as caption"))
            elif boilerplate and (key := _digest(plain(cleaned))) in boilerplate:
                found.entries.append(QuarantineEntry(pair.image_id, caption, "same caption on many images"))
                shown.setdefault(key, cleaned)
            for key, words in _ends(cleaned) if templates else ():
                if key in templates:
                    shown.setdefault(key, words)
    found.figures = count.figures()
    found.figures["same caption on many images"] = _named(boilerplate, shown)
    found.figures["same beginning or end"] = _named(templates, shown)
    return found


def plain(caption: str) -> str:
    """A caption without what hides that another says the same: case, punctuation, accents' forms."""
    text = unicodedata.normalize("NFKC", caption).casefold()
    return " ".join("".join(c if c.isalnum() or unicodedata.category(c)[0] in "MS" else " " for c in text).split())


class _Count:
    """What is counted in the first pass."""

    def __init__(self) -> None:
        self.words = [0] * (COUNTED + 1)
        self._images = self._captions = 0
        self._seen: Counter[str] = Counter()
        self._scripts: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._images_of: Counter[bytes] = Counter()  # by digest of the plain text
        self._ends: Counter[bytes] = Counter()

    def add(self, captions: tuple[str, ...]) -> None:
        """Count the captions of one image."""
        self._images += 1
        cleaned = [clean_caption(caption) for caption in captions]
        filled = [caption for caption in cleaned if caption]
        self._seen["empty captions"] += len(cleaned) - len(filled)
        self._seen["images without a caption"] += not filled
        self._captions += len(filled)
        self._images_of.update({_digest(plain(caption)) for caption in filled})
        for caption in filled:
            words = len(caption.split())
            self.words[min(words, COUNTED)] += 1
            self._seen["captions of one word"] += words == 1
            self._seen[f"captions of more than {LONG} words"] += words > LONG
            self._seen["captions with a web address"] += WEB_ADDRESS.search(caption) is not None
            self._seen["captions with markup"] += MARKUP.search(caption) is not None
            script = script_of(caption)
            self._scripts[script] += 1
            if script == "LATIN":
                self._languages[language_of(caption)] += 1
            self._ends.update(key for key, _ in _ends(caption))
        if len(self._ends) > MOST_ENDS:  # lossy counting (Manku and Motwani, VLDB 2002): what is frequent stays
            self._ends = Counter({key: number - 1 for key, number in self._ends.items() if number > 1})

    def boilerplate(self) -> dict[bytes, int]:
        """How many images each text is on that is on too many; nothing where captions are names of classes."""
        least = max(REPEATED_IMAGES, REPEATED_SHARE * self._images)
        many = {key: images for key, images in self._images_of.items() if images > least}
        return many if sum(many.values()) < CLASS_SHARE * self._captions else {}

    def templates(self) -> dict[bytes, int]:
        """How many captions begin, or end, with the same words."""
        least = max(REPEATED_IMAGES, TEMPLATE_SHARE * self._captions)
        return dict(item for item in self._ends.most_common(KEPT_TEMPLATES) if item[1] > least)

    def figures(self) -> dict[str, Any]:
        """As the report has them."""
        distinct = len(self._images_of)
        return {
            "captions": self._captions,
            "captions that say the same as another": sum(self._images_of.values()) - distinct,
            **self._seen,
            "scripts": dict(self._scripts.most_common()),
            "languages of Latin script, guessed": dict(self._languages.most_common()),
        }


def _ends(caption: str) -> Iterator[tuple[bytes, str]]:
    """The first and the last words of a caption that has more than both."""
    words = caption.split()
    if len(words) > TEMPLATE_WORDS:
        for text in (" ".join(words[:TEMPLATE_WORDS]) + " …", "… " + " ".join(words[-TEMPLATE_WORDS:])):
            yield _digest(text), text


def _named(counts: dict[bytes, int], shown: dict[bytes, str]) -> dict[str, int]:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return {shown[key]: number for key, number in ordered if key in shown}


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()
