"""Writes small data sets with TensorFlow Datasets itself, as a fixture for `data/sources/tfds.py`.

python -m venv tfds && tfds/bin/pip install -r tools/requirements-tfds.txt && tfds/bin/python tools/make_tfds_fixture.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

FIXTURE = Path(__file__).parents[1] / "tests/fixtures/tfds"
SIZES = {"train": 5, "validation": 2}


def image(number: int) -> np.ndarray:
    """A plain image whose colour tells its number."""
    return np.full((4, 6, 3), (number * 20, 100, 200), np.uint8)


class TinyCaptions(tfds.core.GeneratorBasedBuilder):
    """Nested captions, boxes and numbers, as in coco_captions."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "first", "1.10.0": "second"}
    SUPPORTED_VERSIONS = [tfds.core.Version("1.10.0")]
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2014"), tfds.core.BuilderConfig(name="2017")]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "image/filename": tfds.features.Text(),
            "image/id": tfds.features.Scalar(np.int64),
            "captions": tfds.features.Sequence({"id": tfds.features.Scalar(np.int64), "text": tfds.features.Text()}),
            "objects": tfds.features.Sequence(
                {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
            ),
            "score": tfds.features.Scalar(np.float32),
            "flip": tfds.features.Scalar(np.bool_),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(SIZES[split]):
            captions = [{"id": place, "text": f"{split} {number} caption {place}"} for place in range(1 + number % 3)]
            box = {"bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0), "label": "dog"}
            yield (
                number,
                {
                    "image": image(number),
                    "image/filename": f"{split}-{number}.png",
                    "image/id": -number,
                    "captions": captions,
                    "objects": [box] * (number % 2),
                    "score": number / 2,
                    "flip": number % 2 == 1,
                },
            )


class TinyFlowers(tfds.core.GeneratorBasedBuilder):
    """An image and its class, as in tf_flowers; one split."""

    VERSION = tfds.core.Version("3.0.1")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["red_rose", "sunflowers"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(3):
            yield number, {"image": image(number), "label": number % 2}


class TinyFlickr(tfds.core.GeneratorBasedBuilder):
    """A plain list of captions, and an image in a nested dictionary."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "picture": {"image": tfds.features.Image(encoding_format="png")},
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(2), "test": self._generate_examples(3)}

    def _generate_examples(self, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(count):
            yield number, {"picture": {"image": image(number)}, "captions": [f"a {number}", f"b {number}"]}


def as_read(builder: tfds.core.DatasetBuilder) -> dict[str, list[dict[str, Any]]]:
    """Every example as TensorFlow Datasets reads it, flat; images as the digest of their encoded bytes."""
    found: dict[str, list[dict[str, Any]]] = {}
    for split in builder.info.splits:
        skip = {"picture": {"image": tfds.decode.SkipDecoding()}, "image": tfds.decode.SkipDecoding()}
        decoders = {name: skip[name] for name in builder.info.features if name in skip}
        config = tfds.ReadConfig(interleave_cycle_length=1)  # shard after shard
        dataset = builder.as_dataset(split=split, decoders=decoders, read_config=config)
        found[split] = [plain(example) for example in tfds.as_numpy(dataset)]
    return found


def plain(value: Any) -> Any:
    """An example as JSON."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, bytes):
        is_text = value.isascii() and value[:1].isalnum()
        return value.decode() if is_text else hashlib.sha256(value).hexdigest()
    return [plain(each) for each in value.tolist()] if isinstance(value, np.ndarray) else np.asarray(value).tolist()


def main() -> None:
    """Write every data set, and what TensorFlow Datasets reads back from them."""
    builders = {
        "tiny_captions/2014:1.0.0": TinyCaptions(data_dir=FIXTURE, config="2014"),
        "tiny_captions/2014:1.10.0": TinyCaptions(data_dir=FIXTURE, config="2014", version="1.10.0"),
        "tiny_flowers:3.0.1": TinyFlowers(data_dir=FIXTURE),
        "tiny_flickr:1.0.0": TinyFlickr(data_dir=FIXTURE),
    }
    for builder in builders.values():
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    read = {name: as_read(builder) for name, builder in builders.items()}
    (FIXTURE / "as_read.json").write_text(json.dumps(read, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
