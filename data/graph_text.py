"""Caption strings to token ids inside a TensorFlow graph, equal to `data.text`; knows no model and no SavedModel.

TensorFlow Text's own `BertTokenizer(lower_case=True)` is not equal to BERT's published one: it folds case by NFKC
("²" becomes "2", "，" becomes ",", "…" becomes three dots, "ß" becomes "ss"), turns some format characters into spaces
instead of dropping them, keeps private-use characters, counts a word's limit in bytes instead of characters, and
takes its character classes from another Unicode version. So the steps of `clean_caption` and of the `tokenizers`
normaliser are written out here in order, with the character classes read off the tokeniser itself. Of all code points
116 still differ, all of Unicode 13 and later: 95 capitals (Vithkuqi, Garay …) that the graph does not lower, and 21
vowel signs that it decomposes. They matter only to a vocabulary that holds them; MiniLM's does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tokenizers import normalizers, pre_tokenizers

from data.errors import UserError
from data.text import END, MAX_CHARACTERS, PAD, START, UNKNOWN

if TYPE_CHECKING:
    import tensorflow as tf

# A character that clean-up drops, so that no caption and no vocabulary holds it.
NOWHERE = "\x00"

# A digit that no character normalises to when compatibility forms are left alone.
SEPARATOR = "0"


@dataclass(frozen=True)
class CharacterClasses:
    """Regular expressions (RE2 classes) of what BERT's normaliser and word splitter treat specially."""

    space: str
    dropped: str
    ideograph: str
    accent: str
    punctuation: str


def graph_tokenizer(tokenizer_json: str, max_tokens: int) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """A function from captions `(B,)` string to `(ids, mask)`, both `(B, L)` int32, L at most `max_tokens`.

    `tokenizer_json` is `CaptionTokenizer.to_json()`. The function builds graph ops only; its vocabulary table is its
    attribute `table`, which an exported module must hold on to. Bytes that are not UTF-8 are dropped. Raises
    `UserError` for a tokeniser that is not BERT's uncased WordPiece.

    Example: `ids, mask = graph_tokenizer(tokenizer.to_json(), 64)(tf.constant(["a red bicycle"]))`.
    """
    import tensorflow as tf
    import tensorflow_text as tf_text

    settings = _wordpiece_settings(tokenizer_json)
    vocabulary: dict[str, int] = settings["vocab"]
    entries = tf.lookup.KeyValueTensorInitializer(
        list(vocabulary), list(vocabulary.values()), key_dtype=tf.string, value_dtype=tf.int64
    )
    table = tf.lookup.StaticHashTable(entries, default_value=vocabulary[UNKNOWN])
    # The longest word in bytes that the limit in characters lets through.
    longest_word = settings["max_input_chars_per_word"]
    pieces = tf_text.WordpieceTokenizer(
        table,
        suffix_indicator=settings["continuing_subword_prefix"],
        max_bytes_per_word=4 * longest_word,
        unknown_token=UNKNOWN,
    )
    classes = character_classes()

    def tokenize(captions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        text = _normalise(captions, classes)
        words = tf_text.regex_split(text, f"{classes.space}|{classes.punctuation}", classes.punctuation)
        too_long = f"(?s)^.{{{longest_word + 1},}}$"
        words = words.with_flat_values(tf.strings.regex_replace(words.flat_values, too_long, NOWHERE))
        tokens = pieces.tokenize(words).merge_dims(-2, -1)[:, : max_tokens - 2]
        batch = tokens.nrows()
        start = tf.fill([batch, 1], tf.constant(vocabulary[START], tf.int64))
        end = tf.fill([batch, 1], tf.constant(vocabulary[END], tf.int64))
        framed = tf.concat([start, tokens, end], axis=1)
        ids = tf.cast(framed.to_tensor(default_value=vocabulary[PAD]), tf.int32)
        return ids, tf.cast(tf.sequence_mask(framed.row_lengths(), tf.shape(ids)[1]), tf.int32)

    tokenize.table = table  # type: ignore[attr-defined]
    return tokenize


def graph_clean(captions: tf.Tensor) -> tf.Tensor:
    """`clean_caption` of captions `(B,)` string, as string ops; for graphs that tokenise by themselves."""
    import tensorflow as tf
    import tensorflow_text as tf_text

    text = tf.strings.unicode_transcode(captions, "UTF-8", "UTF-8", errors="ignore")
    text = tf.strings.substr(text, 0, MAX_CHARACTERS, unit="UTF8_CHAR")
    text = tf.strings.regex_replace(text, f"{_spaces()}+", " ")
    text = tf_text.normalize_utf8(tf.strings.regex_replace(text, r"\p{Cc}+", ""), "NFC")
    return tf.strings.strip(tf.strings.regex_replace(text, " +", " "))


def has_graph_form(tokenizer_json: str) -> bool:
    """Whether `graph_tokenizer` can make the tokeniser of a `CaptionTokenizer.to_json()`."""
    try:
        _wordpiece_settings(tokenizer_json)
    except UserError:
        return False
    return True


def _normalise(captions: tf.Tensor, classes: CharacterClasses) -> tf.Tensor:
    """`clean_caption`, then BERT's normaliser, as string ops."""
    import tensorflow as tf
    import tensorflow_text as tf_text

    text = tf.strings.unicode_transcode(captions, "UTF-8", "UTF-8", errors="ignore")
    text = tf.strings.substr(text, 0, MAX_CHARACTERS, unit="UTF8_CHAR")
    text = tf.strings.regex_replace(text, classes.space, " ")
    text = tf.strings.regex_replace(text, classes.dropped, "")
    text = tf_text.normalize_utf8(text, "NFC")
    text = tf.strings.regex_replace(text, classes.ideograph, r" \0 ")
    text = tf_text.normalize_utf8(text, "NFD")
    text = tf.strings.regex_replace(text, classes.accent, "")
    # The lower-case op gives a final sigma at the end of a word; the tokeniser lowers each character by itself.
    text = tf.strings.regex_replace(text, "Σ", "σ")
    return tf.strings.lower(text, encoding="utf-8")


def _wordpiece_settings(tokenizer_json: str) -> dict[str, Any]:
    """The model part of a `tokenizer.json`, checked to be what the graph reproduces."""
    config = json.loads(tokenizer_json)
    expected_normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": True,
        "lowercase": True,
    }
    expected_splitter = {"type": "BertPreTokenizer"}
    parts = (config["model"]["type"], config["normalizer"], config["pre_tokenizer"])
    if parts != ("WordPiece", expected_normalizer, expected_splitter) or config["added_tokens"]:
        raise UserError(
            "BERT's uncased WordPiece without added tokens",
            f"{parts[0]} with {(config['normalizer'] or {}).get('type')}, {len(config['added_tokens'])} added tokens",
            "export a model whose text tower uses CaptionTokenizer.wordpiece or CaptionTokenizer.trained",
        )
    return config["model"]


@lru_cache(maxsize=1)
def character_classes() -> CharacterClasses:
    """Ask the tokeniser about every code point (about three seconds), so that its Unicode version is ours."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF and chr(code) != SEPARATOR]
    cleaned = _each(characters, clean_text=True)
    spaced = _each(characters, handle_chinese_chars=True)
    stripped = _each(characters, strip_accents=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    space = [c for c, after in zip(characters, cleaned, strict=True) if after == " " or c.isspace()]
    return CharacterClasses(
        space=_class(space),
        dropped=_class(c for c, after in zip(characters, cleaned, strict=True) if after == "" and not c.isspace()),
        ideograph=_class(c for c, after in zip(characters, spaced, strict=True) if after != c),
        accent=_class(c for c, after in zip(characters, stripped, strict=True) if after == ""),
        punctuation=_class(c for c in characters if not c.isspace() and len(splitter.pre_tokenize_str(f"a{c}")) == 2),
    )


@lru_cache(maxsize=1)
def _spaces() -> str:
    return _class(chr(code) for code in range(0x110000) if chr(code).isspace())


def _each(characters: list[str], **steps: bool) -> list[str]:
    """What the given steps of BERT's normaliser make of each character by itself."""
    off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    normalizer = normalizers.BertNormalizer(**{**off, **steps})
    return normalizer.normalize_str(SEPARATOR.join(characters)).split(SEPARATOR)


def _class(characters: Iterable[str]) -> str:
    """A regular-expression class of the characters, neighbours joined into ranges."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(rf"\x{{{first:X}}}-\x{{{last:X}}}" for first, last in ranges) + "]"
