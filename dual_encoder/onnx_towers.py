"""Writes a bundle's towers as two ONNX files that need nothing of this project, and says how to run them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.durable import write_json
from data.errors import BundleError
from dual_encoder.bundle import TOKENIZER
from dual_encoder.engines import OnnxEngine, run_on_pixels, run_on_texts
from dual_encoder.onnx_attention import in_standard_operations

if TYPE_CHECKING:
    from data.images import ImagePreprocessing
    from dual_encoder.bundle import Bundle

IMAGE, TEXT, PREPROCESSING, CARD = "image.onnx", "text.onnx", "preprocessing.json", "README.md"


class OnnxTowers:
    """Both files of a directory in ONNX Runtime."""

    parts = (IMAGE, TEXT, TOKENIZER, PREPROCESSING, CARD)

    def __init__(self, bundle: Bundle, directory: Path) -> None:
        self._image, self._text = OnnxEngine(directory / IMAGE), OnnxEngine(directory / TEXT)
        self._tokenizer = bundle.tokenizer()

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Strings to embeddings (B, D) float32."""
        return run_on_texts(self._text, self._tokenizer, texts)

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (B, S, S, 3) float32 to embeddings (B, D) float32."""
        return run_on_pixels(self._image, pixels)


def write_onnx_towers(bundle: Bundle, directory: Path) -> OnnxTowers:
    """Write both towers in float32, any batch and length, the tokeniser, the preprocessing and a README.

    The towers are of standard operations, whatever ONNX Runtime has kernels of its own for in the bundle's.
    `BundleError` for a bundle whose towers do not convert.
    """
    import onnx

    image, text = (bundle.engine_file(tower) for tower in ("image_tower", "text_tower"))
    if image is None or text is None:
        raise BundleError(
            "a bundle with ONNX graphs of its towers", f"{bundle.path} without", "export it with --format saved_model"
        )
    for graph, name in ((image, IMAGE), (text, TEXT)):
        model = in_standard_operations(onnx.load(graph))
        (directory / name).write_bytes(model.SerializeToString())
    shutil.copyfile(bundle.path / TOKENIZER, directory / TOKENIZER)
    write_json(directory / PREPROCESSING, bundle.preprocessing.to_config())
    (directory / CARD).write_text(_card(bundle), "utf-8")
    return OnnxTowers(bundle, directory)


def _card(bundle: Bundle) -> str:
    """What the files are and a program that runs them."""
    size, dim = bundle.preprocessing.size, bundle.embedding_dim
    return f"""# {bundle.name}, image and text tower in ONNX

`image.onnx` takes pixels (batch, {size}, {size}, 3) in float32, `text.onnx` takes `ids` and `mask` (batch, length) in
int32, of any batch and length. Both give L2-normalised embeddings (batch, {dim}) in float32: the cosine of a text and
an image is their dot product. Made from the model with fingerprint `{bundle.fingerprint}`.

```python
{_program(bundle.preprocessing)}```
"""


def _program(preprocessing: ImagePreprocessing) -> str:
    """Python that embeds images and texts by the files alone, as `data.images` and `data.text` prepare them."""
    size, enough = preprocessing.size, preprocessing.enough
    method = f"Image.Resampling.{preprocessing.interpolation.upper()}"
    cut = "round((side - SIZE) / 2)" if preprocessing.resize == "shortest_edge_rounded" else "(side - SIZE) // 2"
    by_edge = f"""    scaled = [SIZE * side // min(image.size) for side in image.size]
    left, top = ({cut} for side in scaled)
    image = image.resize(scaled, {method}).crop((left, top, left + SIZE, top + SIZE))
"""
    resized = {
        "squash": f"    image = image.resize((SIZE, SIZE), {method})\n",
        "crop": f"""    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    image = image.resize((SIZE, SIZE), {method}, box=(left, top, left + side, top + side))
""",
        "pad": f'    image = ImageOps.pad(image, (SIZE, SIZE), {method}, color="white")\n',
        "shortest_edge": by_edge,
        "shortest_edge_rounded": by_edge,
    }[preprocessing.resize]
    mirrored = "    image = ImageOps.mirror(image)\n" if preprocessing.mirror else ""
    smaller = (
        f"    image.draft(None, ({enough}, {enough}))  # a large JPEG file need not be decoded whole\n"
        if enough
        else ""
    )
    return f"""import unicodedata

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

SIZE, MEAN, STD = {size}, {list(preprocessing.mean)}, {list(preprocessing.std)}

image_tower = onnxruntime.InferenceSession("image.onnx")
text_tower = onnxruntime.InferenceSession("text.onnx")
tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.encode_special_tokens = True  # a caption cannot spell out a special token


def pixels(path):
    image = Image.open(path)
{smaller}    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
{resized}{mirrored}    return ((np.asarray(image) / 255 - MEAN) / STD).astype(np.float32)


def embed_images(paths):
    batch = np.stack([pixels(path) for path in paths])
    return image_tower.run(None, {{image_tower.get_inputs()[0].name: batch}})[0]


def embed_texts(texts):
    encoded = tokenizer.encode_batch([" ".join(unicodedata.normalize("NFC", text).split()) for text in texts])
    ids = np.array([row.ids for row in encoded], np.int32)
    mask = np.array([row.attention_mask for row in encoded], np.int32)
    return text_tower.run(None, {{"ids": ids, "mask": mask}})[0]
"""
