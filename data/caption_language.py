"""Guesses which script and which language a caption is in, by its letters and its commonest words; knows no model."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

# Words that are frequent in one language and rare in the others.
_FREQUENT = {
    "Dutch": "de het een van met op is en voor zijn aan bij naar niet door",
    "English": "the a an of and with in on is are at to by for from his her its this that",
    "French": "le la les un une des du de et avec dans sur est sont aux pour par qui au",
    "German": "der die das ein eine einer eines und mit auf ist im am von zu den dem auf vor nicht",
    "Italian": "il lo la gli un una di del della e con su nel nella che sono per da al alla",
    "Polish": "na w z jest się nie przed obok oraz przez dla po",
    "Portuguese": "o os um uma de da dos das e com em na que são por ao",
    "Spanish": "el la los las un una de del y con en que es son por para al su",
    "Swedish": "en ett och på med av i är som för till den det från vid",
    "Turkish": "bir ve ile bu için olan üzerinde önünde içinde da de",
}
_LANGUAGES = {language: frozenset(words.split()) for language, words in _FREQUENT.items()}
UNKNOWN, NONE = "unknown", "no letters"
_WORD = re.compile(r"[^\W\d_]+")


def script_of(caption: str) -> str:
    """The script of most letters, named as Unicode names characters (LATIN, CYRILLIC, CJK, …), else `NONE`."""
    counts = Counter(_script(character) for character in caption)
    counts.pop(NONE, None)
    return counts.most_common(1)[0][0] if counts else NONE


def language_of(caption: str) -> str:
    """The language of most of the caption's frequent words; `UNKNOWN` for a tie, or fewer than two."""
    words = _WORD.findall(caption.lower())
    scores = Counter({name: sum(word in frequent for word in words) for name, frequent in _LANGUAGES.items()})
    (best, first), (_, second) = scores.most_common(2)
    return best if first > max(1, second) else UNKNOWN


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    return unicodedata.name(character, NONE).split(" ")[0].split("-")[0] if character.isalpha() else NONE
