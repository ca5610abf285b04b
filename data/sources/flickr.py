"""The caption files of Flickr8k and Flickr30k with their image directory; does not open the images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from data.errors import SourceError
from data.pairs import ImageTextPair
from data.sources.rows import distinct, image_inside, malformed, read_text

# `1000268201_693b08cb0e.jpg#0<TAB>A child …`, in Flickr8k.token.txt and results_20130124.token
TOKEN_ROW = re.compile(r"(?P<image>[^\t#]+)#\d+[a-z]?\t(?P<caption>.*)")
# `1000092795.jpg| 0| Two young guys …`, in results.csv; its published copy lacks the second bar in one row.
BAR_ROW = re.compile(r"(?P<image>[^|]+)\|\s*\d+\s*(?:\||\s)(?P<caption>.*)")
BAR_HEADER = re.compile(r"image(_name)?\s*\|")


class Flickr:
    """`flickr:TOKEN_FILE,IMAGES_DIR`: Flickr8k.token.txt or Flickr30k's results.csv; `image_id` is the file name.

    Formats: Hodosh et al. 2013 (Flickr8k), Young et al. 2014 (Flickr30k).
    """

    def __init__(self, tokens: Path, images: Path) -> None:
        self.tokens, self.images = tokens, images
        self._captions: dict[str, list[str]] = {}
        lines = read_text(tokens).split("\n")
        bars = BAR_HEADER.match(lines[0]) is not None
        pattern, shape = (
            (BAR_ROW, "image_name| number| comment") if bars else (TOKEN_ROW, "IMAGE.jpg#NUMBER<tab>CAPTION")
        )
        for number, line in enumerate(lines, start=1):
            if not line.strip() or (bars and number == 1):
                continue
            place = f"{tokens}, line {number}"
            row = pattern.fullmatch(line.rstrip("\r"))
            if row is None:
                raise malformed(place, shape, line)
            image = row["image"].strip()
            image_inside(images, image, place)
            self._captions.setdefault(image, []).append(row["caption"])
        if not self._captions:
            raise SourceError(f"captions in {tokens}", "none", "check that this is the right file")

    @property
    def name(self) -> str:
        """`flickr:TOKEN_FILE,IMAGES_DIR`."""
        return f"flickr:{self.tokens},{self.images}"

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._captions)

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Pairs in the order in which the images first appear."""
        for image, captions in self._captions.items():
            yield ImageTextPair(image, image_inside(self.images, image, str(self.tokens)), distinct(captions))
