"""The runtime gives one answer for one input: whatever the engine, the batch, the thread or the way an image took."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from server_process import ROOT
from tiny_training import tokenizer

from data.durable import digest_json
from data.errors import BundleError, ImageError
from data.images import load_pixels
from data.loading import decoded_batches
from data.pairs import ImageBytes, ImageTextPair
from data.pipeline import batches as pixel_batches
from data.sources.openmoji import draw
from dual_encoder.bundle import Bundle, open_bundle
from dual_encoder.engines import IMAGE_BATCH, TEXT_BATCH, KerasEngine, OnnxEngine
from dual_encoder.runtime import Runtime

CAPTIONS = [
    "a red bicycle",
    "Two dogs play in the deep snow near a wooden house, while a third one looks on from the porch.",
    "",
    "Ærøskøbing café",
    "東京タワー at night",
    "красный велосипед 🚲",
    "word " * 500,
]


def photograph(seed: int, **save) -> bytes:
    """A JPEG with gradients and noise, wider than high."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:150, 0:200] / 200
    base = np.stack([x, y, (x + y) / 2], axis=-1) * 200 + generator.uniform(0, 50, 3)
    pixels = np.clip(base + generator.normal(0, 12, base.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **save)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return photograph(orientation, exif=exif)


IMAGES = [photograph(0), draw("🐘"), turned(6), draw("🍎"), draw("🚲"), photograph(1)]


def test_onnx_runtime_gives_keras_s_embeddings(default_runtime: Runtime) -> None:
    assert isinstance(default_runtime.image_engine, OnnxEngine)
    assert isinstance(default_runtime.text_engine, OnnxEngine)
    reference = Runtime.load(default_runtime.bundle.path, engine="keras")
    assert isinstance(reference.image_engine, KerasEngine)
    np.testing.assert_allclose(default_runtime.embed_images(IMAGES), reference.embed_images(IMAGES), atol=1e-4)
    np.testing.assert_allclose(default_runtime.embed_texts(CAPTIONS), reference.embed_texts(CAPTIONS), atol=1e-4)


def test_embeddings_are_unit_vectors_in_float32(default_runtime: Runtime) -> None:
    for found, rows in (
        (default_runtime.embed_images(IMAGES), len(IMAGES)),
        (default_runtime.embed_texts(CAPTIONS), len(CAPTIONS)),
    ):
        assert found.dtype == np.float32
        assert found.shape == (rows, default_runtime.embedding_dim)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_what_stands_beside_a_text_does_not_change_it(default_runtime: Runtime) -> None:
    many = [*CAPTIONS, *(f"picture number {n}" for n in range(TEXT_BATCH))]
    together = default_runtime.embed_texts(many)
    order = np.random.default_rng(0).permutation(len(many))
    np.testing.assert_allclose(default_runtime.embed_texts([many[row] for row in order]), together[order], atol=1e-6)
    alone = np.concatenate([default_runtime.embed_texts([text]) for text in many[:12]])
    np.testing.assert_allclose(alone, together[:12], atol=1e-6)


def test_what_stands_beside_an_image_does_not_change_it(default_runtime: Runtime) -> None:
    many = [IMAGES[row % len(IMAGES)] for row in range(IMAGE_BATCH + 3)]
    together = default_runtime.embed_images(many)
    assert len(together) == IMAGE_BATCH + 3
    alone = np.concatenate([default_runtime.embed_images([image]) for image in IMAGES])
    np.testing.assert_allclose(together, alone[[row % len(IMAGES) for row in range(len(many))]], atol=1e-5)


def test_an_empty_list_gives_no_rows_of_the_right_width(default_runtime: Runtime) -> None:
    for found in (default_runtime.embed_texts([]), default_runtime.embed_images([])):
        assert found.shape == (0, default_runtime.embedding_dim)
        assert found.dtype == np.float32


@pytest.mark.parametrize("count", [1, 3])
def test_bytes_that_are_no_image_are_refused(default_runtime: Runtime, count: int) -> None:
    with pytest.raises(ImageError) as refused:
        default_runtime.embed_images([*IMAGES[: count - 1], b"<html>not found</html>"])
    assert refused.value.reason == "not_an_image"


def test_threads_do_not_disturb_each_other(default_runtime: Runtime) -> None:
    expected_texts, expected_images = default_runtime.embed_texts(CAPTIONS), default_runtime.embed_images(IMAGES)

    def ask(number: int) -> None:
        rows = np.roll(np.arange(len(CAPTIONS)), number)
        found = default_runtime.embed_texts([CAPTIONS[row] for row in rows])
        np.testing.assert_allclose(found, expected_texts[rows], atol=1e-5)
        picture = number % len(IMAGES)
        found = default_runtime.embed_images([IMAGES[picture]])
        np.testing.assert_allclose(found, expected_images[[picture]], atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(24)))


class SeeingEngine:
    """Keeps the pixels it is given."""

    name, runs_at_once = "seeing", 1

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        self.seen.append(inputs["pixels"])
        return np.ones((len(inputs["pixels"]), 1), np.float32)


def test_one_file_is_one_tensor_in_training_indexing_and_serving(default_runtime: Runtime) -> None:
    preprocessing = default_runtime.preprocessing
    pairs = [ImageTextPair(f"{n}", ImageBytes(lambda d=data: d), ("x",)) for n, data in enumerate(IMAGES)]  # type: ignore[misc]
    (training,) = pixel_batches(pairs, preprocessing, tokenizer(), len(pairs), seed=0, epoch=0).as_numpy_iterator()
    trained_on = training["image"][np.argsort(training["image_row"])]
    (indexing,) = decoded_batches((pair.image for pair in pairs), preprocessing)
    engine = SeeingEngine()
    serving = Runtime(default_runtime.bundle, engine, engine)
    serving.embed_images(IMAGES)
    for data in IMAGES:
        serving.embed_images([data])
    batch, *single = engine.seen
    for way in (trained_on, indexing.pixels, batch, np.concatenate(single)):
        assert way.dtype == np.float32
        np.testing.assert_array_equal(way, np.stack([load_pixels(data, preprocessing) for data in IMAGES]))
    assert np.abs(trained_on[0] - trained_on[2]).max() > 0.5, "different images are told apart"


def natural(seed: int, width: int, height: int) -> bytes:
    """A JPEG whose detail falls off with its frequency as that of photographs does."""
    waves = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width) * width)
    phases = np.exp(2j * np.pi * np.random.default_rng(seed).random((3, height, width)))
    values = np.fft.ifft2(phases / np.maximum(waves, 1)).real
    values = 128 + 50 * values / values.std(axis=(1, 2), keepdims=True)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(values.transpose(1, 2, 0), 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def test_decoding_a_jpeg_in_part_leaves_its_embedding(default_runtime: Runtime) -> None:
    preprocessing = default_runtime.preprocessing
    assert preprocessing.jpeg_margin == 2
    data = [
        natural(seed, width, height) for seed, (width, height) in enumerate([(1200, 900), (900, 1920), (1800, 2000)])
    ]
    whole = [load_pixels(image, dataclasses.replace(preprocessing, jpeg_margin=0)) for image in data]
    found = [load_pixels(image, preprocessing) for image in data]
    assert all(np.any(a != b) for a, b in zip(whole, found, strict=True)), "these are large enough to be scaled"
    cosines = (default_runtime.embed_pixels(np.stack(whole)) * default_runtime.embed_pixels(np.stack(found))).sum(
        axis=1
    )
    assert cosines.min() > 0.999


def test_a_cached_default_model_embeds_without_tensorflow(default_runtime: Runtime, tmp_path: Path) -> None:
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(IMAGES[0])
    program = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from dual_encoder.runtime import Runtime\n"
        "runtime = Runtime.load('default')\n"
        "runtime.warm_up()\n"
        "texts = runtime.embed_texts(['a red bicycle'])\n"
        "images = runtime.embed_images([Path(sys.argv[1]).read_bytes()])\n"
        "heavy = sorted(name for name in ('tensorflow', 'keras', 'keras_hub', 'torch') if name in sys.modules)\n"
        "print(json.dumps([runtime.fingerprint, heavy, texts[0].tolist(), images[0].tolist()]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(picture)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    fingerprint, heavy, text, image = json.loads(result.stdout)
    assert heavy == []
    assert fingerprint == default_runtime.fingerprint
    np.testing.assert_allclose(text, default_runtime.embed_texts(["a red bicycle"])[0], atol=1e-5)
    np.testing.assert_allclose(image, default_runtime.embed_images(IMAGES[:1])[0], atol=1e-5)


def test_a_tower_without_an_onnx_graph_runs_in_keras_unless_one_is_demanded(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / "m")
    fast = Runtime.load(tmp_path / "m", engine="onnxruntime")
    manifest = json.loads((tmp_path / "m" / "bundle.json").read_text())
    del manifest["files"]["text_tower.onnx"]
    manifest["digest"] = digest_json({key: value for key, value in manifest.items() if key != "digest"})
    (tmp_path / "m" / "bundle.json").write_text(json.dumps(manifest))
    slow = Runtime.load(tmp_path / "m")
    assert (slow.image_engine.name, slow.text_engine.name) == ("onnxruntime", "keras")
    assert slow.fingerprint == fast.fingerprint
    np.testing.assert_allclose(slow.embed_texts(CAPTIONS), fast.embed_texts(CAPTIONS), atol=1e-4)
    with pytest.raises(BundleError, match="a bundle with ONNX graphs"):
        Runtime.load(tmp_path / "m", engine="onnxruntime")


def test_a_changed_byte_keeps_a_runtime_from_starting(tiny_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / "m")
    graph = tmp_path / "m" / "text_tower.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(BundleError, match=r"text_tower\.onnx"):
        Runtime.load(tmp_path / "m")
    assert open_bundle(tmp_path / "m", verify=False).name == "m"
