"""Imported models compute what the reference implementations do, from captions and image files to logits.

The fixtures are made by tools/make_parity_fixtures.py and hold no weights: those are made again from their names.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from parity_inputs import CAPTIONS, FIXTURES, images, write_published

from data.images import load_pixels
from data.text import CaptionTokenizer
from dual_encoder.import_model import import_model, read_published
from dual_encoder.model import DualEncoder
from dual_encoder.pretrained import open_clip_siglip
from dual_encoder.runtime import Runtime

CASES = sorted(path.name for path in FIXTURES.iterdir())
# Exact GELU for its tanh approximation, or another epsilon, moves embeddings by 6e-5 and more; rounding, by 4e-7.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    model: DualEncoder
    tokenizer: CaptionTokenizer
    expected: dict[str, np.ndarray]


@contextmanager
def small_timm_towers(name):
    """A fixture's name of a timm model stands for a smaller one, of the size that the fixture says."""
    facts = json.loads((FIXTURES / name / "weights.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        if "siglip_base" in facts:
            patch.setitem(open_clip_siglip.SIZES, "base", open_clip_siglip.Size(*facts["siglip_base"]))
        yield


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    directory = write_published(request.param, tmp_path_factory.mktemp(request.param) / "model")
    with small_timm_towers(request.param):
        published = read_published(str(directory))
    return Case(published.build(), published.tokenizer, dict(np.load(FIXTURES / request.param / "expected.npz")))


def test_token_ids_agree(case):
    tokens = case.tokenizer.encode(CAPTIONS)
    for ids, mask, expected in zip(tokens.ids, tokens.mask, case.expected["ids"], strict=True):
        ours = ids[mask == 1]
        np.testing.assert_array_equal(ours, expected[: len(ours)])
        assert len(set(expected[len(ours) :].tolist())) <= 1, "more than padding follows"


def test_pixels_agree(case):
    preprocessing = case.model.config.image_backbone.preprocessing
    pixels = np.stack([load_pixels(data, preprocessing) for data in images().values()])
    np.testing.assert_allclose(pixels, case.expected["pixels"], atol=TOLERANCE)


def test_embeddings_and_logits_agree(case):
    tokens = case.tokenizer.encode(CAPTIONS)
    image = np.asarray(case.model.embed_images(case.expected["pixels"]))
    text = np.asarray(case.model.embed_texts({"ids": tokens.ids, "mask": tokens.mask}))
    np.testing.assert_allclose(image, case.expected["image"], atol=TOLERANCE)
    np.testing.assert_allclose(text, case.expected["text"], atol=TOLERANCE)
    bias = 0.0 if case.model.logit_bias is None else float(case.model.logit_bias)
    logits = np.exp(float(case.model.log_scale)) * image @ text.T + bias
    np.testing.assert_allclose(logits, case.expected["logits"], atol=TOLERANCE)


def test_the_fixtures_tell_inputs_apart(case):
    """Nearly equal embeddings would agree with anything."""
    for name in ("image", "text"):
        distinct = np.unique(case.expected[name].round(4), axis=0)
        assert len(distinct) >= len(case.expected[name]) - 1
        assert (case.expected[name] @ case.expected[name].T).min() < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_bundles_agree_in_the_engine_that_runs_them(name, tmp_path):
    with small_timm_towers(name):
        import_model(str(write_published(name, tmp_path / "model")), tmp_path / "bundle")
    runtime = Runtime.load(tmp_path / "bundle", engine="onnxruntime")
    expected = np.load(FIXTURES / name / "expected.npz")
    np.testing.assert_allclose(runtime.embed_images(list(images().values())), expected["image"], atol=TOLERANCE)
    np.testing.assert_allclose(runtime.embed_texts(CAPTIONS), expected["text"], atol=TOLERANCE)
