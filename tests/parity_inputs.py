"""Images, captions and weights of the parity fixtures, for the reference implementations and for the tests alike."""

from __future__ import annotations

import io
import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "pretrained"

# Already clean, as captions are before they are tokenised: composed, single spaces, no control characters.
CAPTIONS = (
    "a red bicycle leaning against a brick wall",
    "Two DOGS play in the snow, don't they?",
    "x",
    "",
    "It's we're they've I'm you'll he'd THE END",
    "une maison bleue près de la mer à Ærøskøbing",
    "Straße, Ångström, naïve café",
    "Красный велосипед у стены",
    "日本の山と湖",
    "emoji 🚲 and unknown words: qwrtzplkjh",
    "1892 ½ ² ① 10,000.5 km/h #1 (50%) a_b",
    "!!! ... ???",
    "a very long caption about a garden with many flowers and trees " * 6,
)


def images() -> dict[str, bytes]:
    """Encoded images by name: smooth colours at odd sizes, tall and wide, noise, and a picture of many details."""
    rows, columns = np.mgrid[0:181, 0:334]
    waves = np.stack([127 + 120 * np.sin(rows / 17 + columns / (23 + 10 * channel)) for channel in range(3)], axis=-1)
    noise = np.random.default_rng(7).integers(0, 256, (143, 100, 3))
    return {
        "waves": _encoded(waves, "JPEG"),
        "tall": _encoded(waves.transpose(1, 0, 2)[:, 40:149], "PNG"),
        "noise": _encoded(noise, "PNG"),
        "picture": (ROOT / "docs" / "images" / "results.png").read_bytes(),
    }


def _encoded(values: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def seeded_tensors(shapes: Mapping[str, Sequence[int]], dtype: str = "float32") -> dict[str, np.ndarray]:
    """Weights that depend on names and shapes alone, so large that every part of a network shows in its output."""
    tensors = {}
    for name, shape in shapes.items():
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        values = generator.normal(size=shape)
        if "logit_scale" in name:
            values = 2.0 + 0.1 * values
        elif len(shape) >= 2 and "embedding" not in name:
            values /= np.sqrt(np.prod(shape) / max(shape))
        elif name.endswith("weight") and len(shape) == 1:
            values = 1 + 0.2 * values
        else:
            values *= 0.3
        tensors[name] = _rounded(np.asarray(values, np.float32), dtype)
    return tensors


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """What is left of float32 values in a file of `dtype`, as an array of it."""
    if dtype == "bfloat16":
        import ml_dtypes

        return np.asarray(values, ml_dtypes.bfloat16)
    return np.asarray(values, dtype)


def write_weights(directory: Path, name: str, tensors: dict[str, np.ndarray], shards: int = 1) -> None:
    """`name`.safetensors, or as many shards with their index, as Hugging Face names them."""
    if shards == 1:
        save_file(tensors, directory / f"{name}.safetensors")
        return
    listed = {}
    for number in range(shards):
        part = {key: tensors[key] for key in sorted(tensors)[number::shards]}
        file = f"{name}-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, directory / file)
        listed |= dict.fromkeys(part, file)
    (directory / f"{name}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))


def write_published(case: str, directory: Path) -> Path:
    """The fixture `case` as its publisher's library would have written it, weights and all."""
    unpublished = shutil.ignore_patterns("weights.json", "expected.npz")
    shutil.copytree(FIXTURES / case, directory, ignore=unpublished)
    facts = json.loads((FIXTURES / case / "weights.json").read_text())
    write_weights(directory, facts["name"], seeded_tensors(facts["shapes"], facts["dtype"]), facts["shards"])
    return directory
