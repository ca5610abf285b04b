"""Emoji are drawn whole and in colour, named in words, and grouped so that variants of one never part."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import ImageChops

from data.images import decode
from data.pairs import ImageTextPair
from data.sources import open_source


@pytest.fixture(scope="module")
def emoji() -> dict[str, ImageTextPair]:
    return {pair.image_id: pair for pair in open_source("emoji")}


def test_emoji_are_all_there_with_names(emoji: dict[str, ImageTextPair]) -> None:
    assert len(emoji) == len(open_source("emoji")) == 1914
    apple = emoji["emoji/1F34E"]
    assert apple.captions == ("red apple", "apple")
    assert apple.attributes["emoji"] == "🍎"
    assert apple.attributes["codepoints"] == "1F34E"
    assert apple.attributes["emoji_version"] == 0.6
    assert "CC BY-SA 4.0" in str(apple.attributes["credit"])
    for pair in emoji.values():
        assert pair.captions
        assert not any(character in caption for caption in pair.captions for character in "_:")


@pytest.mark.slow
def test_every_emoji_is_drawn_whole_in_colour(emoji: dict[str, ImageTextPair]) -> None:
    margins = {}
    flat = []
    for pair in emoji.values():
        image = decode(pair.image.read())
        assert image.size == (224, 224)
        box = ImageChops.invert(image).getbbox()
        assert box is not None, f"{pair.image_id} is blank"
        margins[pair.image_id] = min(box[0], box[1], 224 - box[2], 224 - box[3])
        saturation = image.convert("HSV").getextrema()[1]
        flat.append(saturation[1] < 40)  # type: ignore[operator,index]
    assert min(margins.values()) >= 2, "nothing touches the edge"
    assert sum(flat) < len(flat) / 4, "drawn in colour, not in outline"


def test_a_sequence_is_drawn_as_one_emoji(emoji: dict[str, ImageTextPair]) -> None:
    """Without text shaping, a flag would be two letters and a cook a woman beside a pan."""
    flags = [pair for pair in emoji.values() if pair.captions[0] == "France"]
    image = decode(flags[0].image.read())
    assert [image.getpixel((x, 112))[2] > 128 for x in (60, 112, 164)] == [True, True, False]  # type: ignore[index]


def test_emoji_are_drawn_alike_from_several_threads(emoji: dict[str, ImageTextPair]) -> None:
    some = list(emoji.values())[::40]
    alone = [pair.image.read() for pair in some]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: pair.image.read(), some)) == alone


def test_emoji_groups_join_variants_and_nothing_else(emoji: dict[str, ImageTextPair]) -> None:
    groups = defaultdict(set)
    for pair in emoji.values():
        groups[pair.group].add(pair.attributes["emoji"])

    def group(character: str) -> set:
        return next(members for members in groups.values() if character in members)

    assert group("🧑‍🍳") == {"🧑‍🍳", "👨‍🍳", "👩‍🍳"}
    assert group("🏃") == {"🏃", "🏃‍♀️", "🏃‍♂️", "🏃‍➡️", "🏃‍♀️‍➡️", "🏃‍♂️‍➡️"}
    assert group("🧜") == {"🧜", "🧜‍♀️", "🧜‍♂️"}
    assert group("🤴") == {"🤴", "👸"}
    assert {"👨", "👩‍🦰", "🧔", "👵", "🧒"} <= group("🧑")
    assert {"❤️", "💙", "🖤"} <= group("💚")
    assert len(group("🕐")) == 24
    assert len(group("1️⃣")) == 12
    assert group("🇫🇷") == {"🇫🇷"}
    assert group("🐶") == {"🐶"}
    assert group("🚲") == {"🚲"}
    assert "♀️" not in group("➡️")
    assert len(groups) > 1400
