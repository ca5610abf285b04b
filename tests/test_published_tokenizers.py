"""Tokenisers from published files; that they give the reference's ids is test_import_parity's."""

from __future__ import annotations

import gzip
import json

import pytest
from parity_inputs import FIXTURES

from data import published_files
from data.errors import PretrainedError
from data.published_tokenizers import OPENAI_MERGES, _model_proto, clip_tokenizer, siglip_tokenizer, siglip_tokenizer_of
from data.text import CaptionTokenizer


def ids(tokenizer, text):
    return tokenizer.encode([text]).ids[0].tolist()


@pytest.fixture
def openai(tmp_path):
    """Two merges as OpenAI's file has them: behind a line of its own."""
    (tmp_path / OPENAI_MERGES).write_bytes(gzip.compress(b"a version\na b\nab c</w>"))
    return tmp_path


def test_openai_s_merges_number_bytes_then_ends_of_words_then_merges_then_the_frame(openai):
    tokenizer = clip_tokenizer(openai, 8)
    start, end = 514, 515
    assert ids(tokenizer, "ABC  abc") == [start, 513, 513, end]
    assert ids(tokenizer, "ab!") == [start, 64, 256 + 65, 256 + 0, end]  # "ab" is no word's end: a, b</w>, !</w>
    assert ids(tokenizer, "abc " * 20) == [start, *[513] * 6, end]


def test_a_caption_cannot_spell_the_end_of_a_text(openai):
    spelled = ids(clip_tokenizer(openai, 40), "a<|endoftext|>b")
    assert spelled.count(515) == 1
    assert spelled[-1] == 515


@pytest.mark.parametrize("case", ["clip", "siglip", "siglip2"])
def test_a_tokeniser_survives_its_json_with_its_padding(case):
    read = clip_tokenizer if case == "clip" else siglip_tokenizer
    tokenizer = read(FIXTURES / case, 16)
    again = CaptionTokenizer.from_json(tokenizer.to_json(), 16)
    texts = ["A red bicycle", "x"]
    assert again.pad_id == tokenizer.pad_id
    assert (again.encode(texts).ids == tokenizer.encode(texts).ids).all()
    assert (again.encode(texts).mask == tokenizer.encode(texts).mask).all()


def test_siglip_reads_neither_case_nor_punctuation_and_siglip_2_no_case():
    first, second = siglip_tokenizer(FIXTURES / "siglip", 16), siglip_tokenizer(FIXTURES / "siglip2", 16)
    assert ids(first, "A Red, bicycle!") == ids(first, "a red bicycle")
    assert ids(second, "A Red, bicycle!") == ids(second, "a red, bicycle!")
    assert ids(second, "a red, bicycle!") != ids(second, "a red bicycle")


def test_padding_on_the_left_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((FIXTURES / "siglip2" / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"padding_side": "left"}')
    with pytest.raises(PretrainedError, match="padding on the right"):
        siglip_tokenizer(tmp_path, 16)


def test_a_tokeniser_that_ends_no_text_is_refused(tmp_path):
    tokenizer = json.loads((FIXTURES / "siglip2" / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    with pytest.raises(PretrainedError, match="ends a text"):
        siglip_tokenizer(tmp_path, 16)


def test_a_padding_token_that_is_not_in_the_vocabulary_is_refused(openai):
    (openai / "tokenizer_config.json").write_text('{"pad_token": {"content": "<nowhere>"}}')
    with pytest.raises(PretrainedError, match="<nowhere>"):
        clip_tokenizer(openai, 8)


def test_a_sentencepiece_model_of_another_kind_is_refused():
    sound = (FIXTURES / "siglip" / "spiece.model").read_bytes()
    with pytest.raises(PretrainedError, match="bytes that are none"):
        siglip_tokenizer_of(b"\xff" * 30, 16)
    with pytest.raises(PretrainedError, match="0 unknown pieces"):
        siglip_tokenizer_of(b"", 16)
    model = _model_proto().FromString(sound)
    model.trainer_spec.model_type = 2
    with pytest.raises(PretrainedError, match="type 2"):
        siglip_tokenizer_of(model.SerializeToString(), 16)
    model = _model_proto().FromString(sound)
    model.pieces[1].piece = "<end>"
    with pytest.raises(PretrainedError, match="an end token"):
        siglip_tokenizer_of(model.SerializeToString(), 16)


@pytest.mark.parametrize(
    "data",
    [b"no gzip", gzip.compress(b"\xff\xfe"), gzip.compress(b"0" * 5000), gzip.compress(b"x")[:-9]],
    ids=["no gzip", "no text", "too long", "cut off"],  # the bytes hold the time of day
)
def test_merges_that_are_no_text_or_too_much_of_it_are_refused(tmp_path, data, monkeypatch):
    monkeypatch.setattr(published_files, "MAX_FILE_BYTES", 4000)
    (tmp_path / OPENAI_MERGES).write_bytes(data)
    with pytest.raises(PretrainedError):
        clip_tokenizer(tmp_path, 8)


def test_a_merge_of_three_is_refused(tmp_path):
    (tmp_path / OPENAI_MERGES).write_bytes(gzip.compress(b"a version\na b c"))
    with pytest.raises(PretrainedError, match="two tokens a line"):
        clip_tokenizer(tmp_path, 8)
