"""Tiny stand-ins, with random weights, for what TensorFlow Hub and KerasHub publish, written in their formats; knows no
test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import keras
import keras_hub
import tensorflow as tf
import tensorflow_text as tf_text

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    *SPECIAL,
    *("a", "red", "bicycle", "two", "dogs", "play", "in", "the", "snow", "x"),
    *("circle", "square", "triangle", "green", "blue", "yellow", "painted", ","),
]
RESNET = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [3],
    "stackwise_num_filters": [64, 16],
    "stackwise_num_blocks": [1, 1],
    "stackwise_num_strides": [1, 2],
    "block_type": "basic_block",
    "use_pre_activation": False,
}
BERT = {"vocabulary_size": 60, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}


class Images(tf.Module):
    """A trainable convolution and a moving statistic; like Hub models, traced with and without `training`."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal((3, 3, 3, 6), (1, 2)), name="conv/kernel")
        self.mean = tf.Variable(tf.zeros(6), trainable=False, name="bn/mean")

    @tf.function
    def __call__(self, pixels, training=False):
        maps = tf.nn.conv2d(pixels, self.kernel, 2, "SAME")
        if training:
            self.mean.assign_add(tf.reduce_mean(maps, (0, 1, 2)))
        return tf.nn.relu(maps - self.mean)


class Tokens(tf.Module):
    """A BERT-like preprocessor: strings to padded word ids."""

    def __init__(self):
        super().__init__()
        self.tokenizer = tf_text.BertTokenizer(
            tf.lookup.StaticVocabularyTable(
                tf.lookup.KeyValueTensorInitializer(WORDS, tf.range(len(WORDS), dtype=tf.int64)), 1
            ),
            lower_case=True,
        )

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def __call__(self, texts):
        ids = self.tokenizer.tokenize(texts).merge_dims(-2, -1).to_tensor(shape=(None, 8))
        return {"input_word_ids": tf.cast(ids, tf.int32), "input_mask": tf.cast(ids > 0, tf.int32)}


class Encoder(tf.Module):
    """Word vectors and their mean."""

    def __init__(self):
        super().__init__()
        self.table = tf.Variable(tf.random.stateless_normal((len(WORDS) + 1, 5), (3, 4)), name="table")

    @tf.function(
        input_signature=[{name: tf.TensorSpec((None, 8), tf.int32) for name in ("input_word_ids", "input_mask")}]
    )
    def __call__(self, tokens):
        sequence = tf.gather(self.table, tokens["input_word_ids"])
        return {"sequence_output": sequence, "pooled_output": tf.reduce_mean(sequence, 1)}


class Sentences(tf.Module):
    """Takes strings itself."""

    def __init__(self):
        super().__init__()
        self.tokens, self.encoder = Tokens(), Encoder()

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def __call__(self, texts):
        return self.encoder(self.tokens(texts))["pooled_output"]


def write_saved_models(root: Path) -> Path:
    """SavedModels `images`, `tokens`, `encoder` and `sentences` under `root`."""
    images = Images()
    for training in (False, True):
        images.__call__.get_concrete_function(tf.TensorSpec((None, None, None, 3), tf.float32), training=training)
    modules = {"images": images, "tokens": Tokens(), "encoder": Encoder(), "sentences": Sentences()}
    for name, module in modules.items():
        tf.saved_model.save(module, str(root / name))
    return root


def write_presets(root: Path) -> Path:
    """KerasHub presets `resnet`, `bert` (WordPiece) and `roberta` (byte pairs) under `root`."""
    keras.utils.set_random_seed(1)
    keras_hub.models.ResNetBackbone(**RESNET).save_to_preset(str(root / "resnet"))
    converter = keras_hub.layers.ResNetImageConverter(image_size=(32, 32), scale=1 / 127.5, offset=-1.0)
    converter.save_to_preset(str(root / "resnet"))
    keras_hub.models.BertBackbone(**BERT).save_to_preset(str(root / "bert"))
    keras_hub.models.BertTokenizer(vocabulary=WORDS, lowercase=True).save_to_preset(str(root / "bert"))
    letters = ["<s>", "<pad>", "</s>", "<mask>", *_byte_letters(), "re"]
    tokenizer = keras_hub.models.RobertaTokenizer({token: row for row, token in enumerate(letters)}, merges=["r e"])
    keras_hub.models.RobertaBackbone(**BERT | {"vocabulary_size": len(letters)}).save_to_preset(str(root / "roberta"))
    tokenizer.save_to_preset(str(root / "roberta"))
    return root


def _byte_letters() -> list[str]:
    """How byte pair encoding writes the 256 bytes (Radford et al. 2019): those without a letter come after U+0100."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def place_for_tensorflow_hub(cache: Path, address: str) -> Path:
    """Where tensorflow_hub looks for an address under `TFHUB_CACHE_DIR`."""
    return cache / hashlib.sha1(address.encode()).hexdigest()


def place_for_kagglehub(cache: Path, model: str, files: Path | None = None) -> Path:
    """Where kagglehub looks for owner/model/framework/variation/version under `KAGGLEHUB_CACHE`, marked as complete.

    With `files`, the directory they come from, each is marked by itself, as KerasHub downloads them.
    """
    place = cache / "models" / model
    place.parent.mkdir(parents=True, exist_ok=True)
    place.with_name(f"{place.name}.complete").touch()
    for file in files.rglob("*") if files else ():
        mark = place.parent / ".complete" / place.name / f"{file.relative_to(files)}.complete"
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return place
