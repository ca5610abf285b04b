import dataclasses

import keras
import numpy as np
import pytest
from tower_contract import CAPTIONS, check_image_backbone, check_text_backbone

from data.errors import UserError
from dual_encoder.towers.scratch import ScratchImage, ScratchText

IMAGE = ScratchImage(size=32, width=8, stages=2, depth=1)
TEXT = ScratchText(vocabulary_size=60, width=16, layers=2, heads=2, max_tokens=12)


@pytest.mark.parametrize("trainable", [True, False])
def test_the_image_tower_keeps_the_contract(trainable):
    assert check_image_backbone(dataclasses.replace(IMAGE, trainable=trainable)).shape == (3, 16)


@pytest.mark.parametrize("trainable", [True, False])
def test_the_text_tower_keeps_the_contract(trainable):
    assert check_text_backbone(dataclasses.replace(TEXT, trainable=trainable)).shape == (3, 16)


@pytest.mark.parametrize("backbone", [IMAGE, TEXT])
def test_a_seed_repeats_the_weights_and_another_gives_others(backbone):
    def weights(seed):
        keras.utils.set_random_seed(seed)
        return np.concatenate([weight.numpy().ravel() for weight in backbone.build().weights])

    np.testing.assert_array_equal(weights(3), weights(3))
    assert np.abs(weights(3) - weights(4)).max() > 0


def test_the_vocabulary_is_learned_from_the_captions():
    tokenizer = ScratchText(vocabulary_size=100, max_tokens=12).tokenizer(lambda: iter(CAPTIONS * 5))
    assert tokenizer.vocabulary_size <= 100
    assert "bicycle" in tokenizer.tokenizer.get_vocab()


@pytest.mark.slow
def test_both_towers_learn():
    keras.utils.set_random_seed(0)
    pixels = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
    tokens = TEXT.tokenizer(lambda: iter(CAPTIONS)).encode(CAPTIONS)
    for backbone, inputs in ((IMAGE, pixels), (TEXT, {"ids": tokens.ids, "mask": tokens.mask})):
        model = backbone.build()
        rows = len(next(iter(inputs.values()))) if isinstance(inputs, dict) else len(inputs)
        targets = np.random.default_rng(1).normal(size=(rows, 16)).astype(np.float32)
        model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
        losses = model.fit(inputs, targets, epochs=30, batch_size=rows, verbose=0).history["loss"]
        assert losses[-1] < 0.5 * losses[0]


def test_settings_that_cannot_be_built_are_refused():
    with pytest.raises(UserError, match="a size that 8 divides"):
        ScratchImage(size=36, stages=3)
    with pytest.raises(UserError, match="width that heads divides"):
        ScratchText(width=30, heads=4)
