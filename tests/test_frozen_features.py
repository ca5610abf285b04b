"""Features of frozen backbones are computed once, are always those of this very input, and survive damaged caches."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from tiny_training import IMAGE, TEXT, tokenizer

from data.images import load_pixels
from data.pairs import ImageBytes, ImageTextPair
from dual_encoder import frozen_features
from dual_encoder.engines import TEXT_BATCH, KerasEngine, OnnxEngine, run_on_texts
from dual_encoder.frozen_features import FrozenBackbone, caption_features, freeze, image_features
from dual_encoder.towers import backbone_config

PREPROCESSING = IMAGE.preprocessing


class CountingEngine:
    """Gives simple features and counts the rows it was asked for."""

    name = "counting"

    def __init__(self) -> None:
        self.rows = 0

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        values = next(iter(inputs.values()))
        self.rows += len(values)
        if values.ndim == 4:
            return np.concatenate([values.mean((1, 2)), values[:, 0, 0, :1]], axis=1).astype(np.float32)
        return np.stack([(values * (values > 3)).sum(1), values.max(1)], axis=1).astype(np.float32)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUAL_ENCODER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_features, "_BLOCK", 4)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(number).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def pairs(*numbers: int | None) -> list[ImageTextPair]:
    """A pair for each number; None stands for a file that is no image."""
    data = [b"not an image" if number is None else png(number) for number in numbers]
    return [ImageTextPair(f"{row}", ImageBytes(lambda d=d: d)) for row, d in enumerate(data)]  # type: ignore[misc]


def frozen(engine: CountingEngine, key: str = "one") -> FrozenBackbone:
    return FrozenBackbone(key, engine, None)


def direct(*numbers: int) -> np.ndarray:
    return CountingEngine().run({"pixels": np.stack([load_pixels(png(n), PREPROCESSING) for n in numbers])})


def cached_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "features").rglob("*.npy"))


def test_features_are_those_of_each_image_and_are_computed_once(small_blocks: None) -> None:
    engine = CountingEngine()
    rows, bad = image_features(frozen(engine), PREPROCESSING, pairs(*range(10)))
    np.testing.assert_array_equal(rows, direct(*range(10)))
    assert (bad, engine.rows) == ([], 10)
    again, _ = image_features(frozen(engine), PREPROCESSING, pairs(*range(10)))
    np.testing.assert_array_equal(again, rows)
    assert engine.rows == 10


def test_a_changed_image_is_computed_again_alone_and_a_data_set_that_grows_computes_what_is_new(
    small_blocks: None,
) -> None:
    engine = CountingEngine()
    image_features(frozen(engine), PREPROCESSING, pairs(*range(10)))
    rows, _ = image_features(frozen(engine), PREPROCESSING, pairs(0, 1, 2, 3, 4, 99, 6, 7, 8, 9))
    np.testing.assert_array_equal(rows, direct(0, 1, 2, 3, 4, 99, 6, 7, 8, 9))
    assert engine.rows == 10 + 1
    rows, _ = image_features(frozen(engine), PREPROCESSING, pairs(50, *range(10), 51, 3))
    np.testing.assert_array_equal(rows, direct(50, *range(10), 51, 3))
    assert engine.rows == 10 + 1 + 2


def test_a_run_that_is_stopped_repeats_at_most_one_block(small_blocks: None) -> None:
    class Stopping(CountingEngine):
        def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            if self.rows >= 8:
                raise KeyboardInterrupt
            return super().run(inputs)

    with pytest.raises(KeyboardInterrupt):
        image_features(frozen(Stopping()), PREPROCESSING, pairs(*range(10)))
    engine = CountingEngine()
    rows, _ = image_features(frozen(engine), PREPROCESSING, pairs(*range(10)))
    np.testing.assert_array_equal(rows, direct(*range(10)))
    assert engine.rows == 2


def test_features_stay_in_their_file_until_a_batch_takes_them(small_blocks: None) -> None:
    rows, _ = image_features(frozen(CountingEngine()), PREPROCESSING, pairs(*range(10)))
    captions = caption_features(frozen(CountingEngine()), tokenizer(), ["red", "small green square", "red"])
    for mapped in (rows, rows.only([1, 2]), captions):
        assert isinstance(mapped.array, np.memmap)
        assert mapped.array.mode == "r"


def test_other_weights_other_preprocessing_and_mirrored_views_share_nothing() -> None:
    engine = CountingEngine()
    views = [
        np.asarray(image_features(backbone, preprocessing, pairs(1, 2))[0])
        for backbone, preprocessing in (
            (frozen(engine), PREPROCESSING),
            (frozen(engine, "other weights"), PREPROCESSING),
            (frozen(engine), dataclasses.replace(PREPROCESSING, resize="crop")),
            (frozen(engine), dataclasses.replace(PREPROCESSING, mirror=True)),
        )
    ]
    assert engine.rows == 8
    np.testing.assert_array_equal(views[0], views[1])
    assert np.abs(views[0][:, 3] - views[3][:, 3]).min() > 1e-3  # the corner pixel is another one
    np.testing.assert_allclose(views[0][:, :3], views[3][:, :3], atol=1e-4)  # the mean is not


def test_images_that_do_not_decode_are_named_and_leave_zeros(small_blocks: None) -> None:
    rows, bad = image_features(frozen(CountingEngine()), PREPROCESSING, pairs(None, None, None, None, 4, None, 6))
    assert bad == [0, 1, 2, 3, 5]
    assert rows.shape == (7, 4)
    np.testing.assert_array_equal(rows[[4, 6]], direct(4, 6))
    assert not rows[bad].any()


def test_nothing_but_bad_images_is_all_bad() -> None:
    _, bad = image_features(frozen(CountingEngine()), PREPROCESSING, pairs(None, None))
    assert bad == [0, 1]


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"no array"])
def test_a_damaged_file_is_computed_again(tmp_path: Path, damage: bytes) -> None:
    engine = CountingEngine()
    rows, _ = image_features(frozen(engine), PREPROCESSING, pairs(1, 2))
    (path,) = cached_files(tmp_path)
    path.write_bytes(damage)
    again, _ = image_features(frozen(engine), PREPROCESSING, pairs(1, 2))
    np.testing.assert_array_equal(again, rows)
    assert engine.rows == 4
    assert np.load(path, allow_pickle=False).shape == (2, 4)


def test_captions_keep_their_order_and_equal_ones_are_computed_once(small_blocks: None) -> None:
    engine, tokens = CountingEngine(), tokenizer()
    captions = ["red circle", "blue", " red   circle ", "small green square", "blue", "large red triangle", "green"]
    rows = caption_features(frozen(engine), tokens, captions)
    assert engine.rows == 5
    np.testing.assert_array_equal(rows[0], rows[2])
    np.testing.assert_array_equal(rows[1], rows[4])
    for row, caption in zip(rows, captions, strict=True):
        np.testing.assert_array_equal(row, CountingEngine().run({"ids": tokens.encode([caption]).ids})[0])
    shuffled = caption_features(frozen(engine), tokens, captions[::-1])
    np.testing.assert_array_equal(shuffled, rows[::-1])
    assert engine.rows == 5


def test_another_tokeniser_shares_nothing() -> None:
    engine, one = CountingEngine(), tokenizer()
    other = type(one).from_json(one.to_json(), 3)  # one word fits
    rows = [np.asarray(caption_features(frozen(engine), tokens, ["red circle"])) for tokens in (one, other)]
    assert rows[0].tolist() != rows[1].tolist()


@pytest.fixture(scope="module")
def image_backbone() -> keras.Model:
    keras.utils.set_random_seed(0)
    return IMAGE.build()


def sample() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 16, 16, 3)).astype(np.float32)


def test_a_frozen_backbone_runs_in_onnx_with_keras_s_features(image_backbone: keras.Model) -> None:
    backbone = freeze(image_backbone, backbone_config(IMAGE))
    assert isinstance(backbone.engine, OnnxEngine)
    expected = np.asarray(image_backbone(sample(), training=False))
    np.testing.assert_allclose(backbone.engine.run({"pixels": sample()}), expected, atol=1e-5)


def test_a_conversion_is_kept_and_a_damaged_one_is_made_again(image_backbone: keras.Model) -> None:
    first = freeze(image_backbone, backbone_config(IMAGE))
    assert first.onnx is not None
    written = first.onnx.stat().st_ino
    assert freeze(image_backbone, backbone_config(IMAGE)).onnx == first.onnx
    assert first.onnx.stat().st_ino == written
    first.onnx.write_bytes(first.onnx.read_bytes()[:100])
    mended = freeze(image_backbone, backbone_config(IMAGE))
    expected = np.asarray(image_backbone(sample(), training=False))
    np.testing.assert_allclose(mended.engine.run({"pixels": sample()}), expected, atol=1e-5)


def test_the_key_names_weights_and_settings(image_backbone: keras.Model) -> None:
    key = freeze(image_backbone, backbone_config(IMAGE)).key
    assert freeze(image_backbone, {**backbone_config(IMAGE), "size": 17}).key != key
    other = IMAGE.build()
    assert freeze(other, backbone_config(IMAGE)).key != key
    other.set_weights(image_backbone.get_weights())
    assert freeze(other, backbone_config(IMAGE)).key == key


def test_a_graph_that_onnx_cannot_express_runs_in_keras_and_is_not_cached(tmp_path: Path) -> None:
    texts = keras.Input((), dtype="string", name="texts")
    lengths = keras.layers.Lambda(lambda x: keras.ops.cast(x == "red", "float32")[:, None], output_shape=(1,))(texts)
    backbone = freeze(keras.Model(texts, lengths, name="strings"), {"family": "strings"})
    assert isinstance(backbone.engine, KerasEngine)
    assert backbone.onnx is None
    assert not list((tmp_path / "cache" / "onnx").iterdir())
    assert np.asarray(caption_features(backbone, None, ["blue", " red "])).tolist() == [[0.0], [1.0]]


def test_a_graph_that_onnx_runtime_refuses_runs_in_keras_and_is_not_cached(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = TEXT.build()
    finally:
        keras.config.set_dtype_policy("float32")
    backbone = freeze(half, backbone_config(TEXT))
    assert isinstance(backbone.engine, KerasEngine)
    assert not list((tmp_path / "cache" / "onnx").iterdir())


def test_texts_of_any_length_come_back_in_their_order() -> None:
    texts = [" ".join(["red"] * (1 + (7 * row) % 9)) for row in range(2 * TEXT_BATCH + 3)]
    found = run_on_texts(CountingEngine(), tokenizer(), texts)
    np.testing.assert_array_equal(
        found, np.concatenate([run_on_texts(CountingEngine(), tokenizer(), [t]) for t in texts])
    )


def test_a_frozen_text_backbone_gives_the_same_rows_whatever_stands_beside_them() -> None:
    keras.utils.set_random_seed(0)
    backbone = freeze(TEXT.build(), backbone_config(TEXT))
    together = caption_features(backbone, tokenizer(), ["red", "small green square", "blue circle"])
    alone = caption_features(backbone, tokenizer(), ["blue circle"])
    np.testing.assert_allclose(together[2], alone[0], atol=1e-5)


class MapEngine:
    """Gives the pixels themselves, as a trunk gives maps."""

    name = "maps"

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return next(iter(inputs.values()))


def test_outputs_of_a_trunk_stay_in_their_files_as_half_floats(small_blocks: None) -> None:
    chosen = pairs(1, None, 3, 4, 5, None)
    trunk = FrozenBackbone("trunk", MapEngine(), None)
    rows, bad = image_features(trunk, PREPROCESSING, chosen, np.float16)
    assert bad == [1, 5]
    expected = [load_pixels(png(number), PREPROCESSING).astype(np.float16) for number in (1, 3, 4, 5)]
    kept = rows.only([0, 2, 3, 4])
    assert len(kept) == 4
    np.testing.assert_array_equal(kept[:], expected)
    np.testing.assert_array_equal(kept[[3, 0]], [expected[3], expected[0]])
    np.testing.assert_array_equal(kept[np.int64(1)], expected[1])
    assert isinstance(kept.array, np.memmap)
    again, _ = image_features(trunk, PREPROCESSING, chosen, np.float16)
    np.testing.assert_array_equal(again[:], rows[:])
    features, _ = image_features(FrozenBackbone("trunk", CountingEngine(), None), PREPROCESSING, chosen)
    assert features.dtype == np.float32, "features and maps of one key are different entries"


def test_a_trunk_of_which_no_image_of_a_block_decodes_gives_zeros_there(small_blocks: None) -> None:
    chosen = pairs(None, None, None, None, 5)
    rows, bad = image_features(FrozenBackbone("trunk", MapEngine(), None), PREPROCESSING, chosen, np.float16)
    assert bad == [0, 1, 2, 3]
    assert rows[:].shape == (5, PREPROCESSING.size, PREPROCESSING.size, 3)
