"""CLIP and SigLIP as KerasHub presets: a preset's directory, or a name that KerasHub downloads; no other format.

The preset says how images are prepared too, in KerasHub's words: a central square, or the whole image squeezed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import PretrainedError
from data.published_files import read_object
from data.published_tokenizers import clip_tokenizer_of, siglip_tokenizer_of
from data.text import CaptionTokenizer
from dual_encoder.model import DualEncoder, DualEncoderConfig
from dual_encoder.pretrained.published_model import check_end, check_tokenizer
from dual_encoder.projection_head import IdentityHead, LinearHead
from dual_encoder.towers.clip import ClipImage, ClipText
from dual_encoder.towers.keras_hub import how_to_get
from dual_encoder.towers.siglip import SiglipImage, SiglipText

ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_approximate": "gelu_tanh"}

# Files of a preset that name Keras objects, and all the objects that those of CLIP and SigLIP need.
_OBJECT_FILES = ("config.json", "tokenizer.json", "image_converter.json")
_PARTS = ("Backbone", "VisionEncoder", "TextEncoder", "Tokenizer", "ImageConverter")
_OBJECTS = {"DTypePolicy", *(f"{kind}{part}" for kind in ("CLIP", "SigLIP") for part in _PARTS)}


@dataclass(frozen=True)
class PresetModel:
    """A loaded preset; like `PublishedModel`, it is built once."""

    name: str
    config: DualEncoderConfig
    tokenizer: CaptionTokenizer
    has_bias: bool
    network: Any = field(repr=False)  # KerasHub's own model
    facts: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> DualEncoder:
        """The model with the preset's weights."""
        model = DualEncoder(self.config, load_weights=False, initial_bias=0.0 if self.has_bias else None)
        network = self.network
        _copy(network.vision_encoder.weights, model.image_backbone.weights)
        _copy(network.text_encoder.weights, model.text_backbone.weights)
        if self.has_bias:
            model.log_scale.assign(network.siglip_head.logit_scale)
            assert model.logit_bias is not None
            model.logit_bias.assign(network.siglip_head.logit_bias)
        else:
            model.log_scale.assign(network.clip_head.logit_scale)
            _copy(network.vision_projection.weights, model.image_head.weights)
            _copy(network.text_projection.weights, model.text_head.weights)
        return model


def _copy(given: list[Any], ours: list[Any]) -> None:
    """Our towers call the same layers in the same order; positions are computed and not worth copying."""
    for theirs, mine in zip(given, ours, strict=True):
        assert tuple(theirs.shape) == tuple(mine.shape), (theirs.path, mine.path)
        if not mine.path.endswith("position_ids"):
            mine.assign(theirs.value)


def is_preset(source: str) -> bool:
    """Whether `source` is a preset's directory, the name of a CLIP or SigLIP preset, or an address of one."""
    from keras_hub.models import CLIPBackbone, SigLIPBackbone

    if Path(source).exists():
        return (Path(source) / "metadata.json").is_file()
    return source in CLIPBackbone.presets or source in SigLIPBackbone.presets or "://" in source


def read_preset(source: str) -> PresetModel:
    """Load a preset; one that is named and not a directory is downloaded by KerasHub, or taken from its cache."""
    import keras_hub

    if Path(source).exists():
        _check_objects(Path(source))
    try:
        network = keras_hub.models.Backbone.from_preset(source)
        tokenizer = keras_hub.models.Tokenizer.from_preset(source)
        images = keras_hub.layers.ImageConverter.from_preset(source)
    except Exception as error:  # KerasHub and what downloads for it raise whatever they like
        raise PretrainedError(
            "a KerasHub preset of CLIP or SigLIP with its tokeniser and image converter",
            f"{source} ({str(error)[:200]})",
            how_to_get(source),
        ) from None
    is_clip = isinstance(network, keras_hub.models.CLIPBackbone)
    if not is_clip and not isinstance(network, keras_hub.models.SigLIPBackbone):
        raise PretrainedError("a CLIP or SigLIP preset", f"{source}, a {type(network).__name__}", "name another one")
    config, captions = (_clip if is_clip else _siglip)(network, tokenizer, _image_settings(images, source), source)
    text = config.text_backbone
    assert isinstance(text, ClipText | SiglipText)
    check_tokenizer(captions, text.vocabulary_size, Path(source))
    facts = {"format": "KerasHub preset", "architecture": type(network).__name__}
    return PresetModel(Path(source).name, config, captions, not is_clip, network, facts)


def _check_objects(directory: Path) -> None:
    """Keras makes whatever object a preset's files name, from any module: let them name only what is known here."""
    for path in (directory / name for name in _OBJECT_FILES):
        if not path.is_file():
            continue
        waiting: list[Any] = [read_object(path)]
        while waiting:
            value = waiting.pop()
            waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            if not isinstance(value, dict) or not {"class_name", "module"} & value.keys():
                continue
            name, module = value.get("class_name"), str(value.get("module", "keras"))
            if name not in _OBJECTS or module.split(".")[0] not in ("keras", "keras_hub"):
                raise PretrainedError(
                    f"a KerasHub preset of CLIP or SigLIP in {path}", f"{name!r} of {module}", "name another one"
                )


def _tower(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that all towers have."""
    activation = settings["intermediate_activation"]
    if activation not in ACTIVATIONS:
        raise PretrainedError(f"an activation among {', '.join(ACTIVATIONS)}", repr(activation), "name another preset")
    return {
        "width": settings["hidden_dim"],
        "layers": settings["num_layers"],
        "heads": settings["num_heads"],
        "hidden": settings["intermediate_dim"],
        "activation": ACTIVATIONS[activation],
    }


def _clip(
    network: Any, tokenizer: Any, images: dict[str, Any], source: str
) -> tuple[DualEncoderConfig, CaptionTokenizer]:
    vision, text = network.vision_encoder.get_config(), network.text_encoder.get_config()
    max_tokens = text["max_sequence_length"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer.merges]
    merges = [merge for merge in merges if not merge.startswith("#version")]
    captions = clip_tokenizer_of(dict(tokenizer.vocabulary), merges, max_tokens)
    check_end(captions, None, Path(source))
    image_tower = ClipImage(patch=vision["patch_size"], **_tower(vision), **_sized(images, vision, source))
    text_tower = ClipText(vocabulary_size=text["vocabulary_size"], max_tokens=max_tokens, **_tower(text))
    head = LinearHead(network.projection_dim)
    return DualEncoderConfig(image_tower, text_tower, head, head), captions


def _siglip(
    network: Any, tokenizer: Any, images: dict[str, Any], source: str
) -> tuple[DualEncoderConfig, CaptionTokenizer]:
    vision, text = network.vision_encoder.get_config(), network.text_encoder.get_config()
    max_tokens = text["max_sequence_length"]
    captions = siglip_tokenizer_of(tokenizer.proto, max_tokens)
    image_tower = SiglipImage(
        patch=vision["patch_size"],
        epsilon=vision["layer_norm_epsilon"],
        **_tower(vision),
        **_sized(images, vision, source),
    )
    text_tower = SiglipText(
        vocabulary_size=text["vocabulary_size"],
        max_tokens=max_tokens,
        embedding_dim=text["projection_dim"],
        pad_id=captions.pad_id,
        epsilon=text["layer_norm_epsilon"],
        **_tower(text),
    )
    return DualEncoderConfig(image_tower, text_tower, IdentityHead(), IdentityHead()), captions


def _image_settings(converter: Any, source: str) -> dict[str, Any]:
    """KerasHub scales by `value * scale + offset`, which is a mean and a deviation."""
    scale = np.broadcast_to(1.0 if converter.scale is None else np.asarray(converter.scale, float), (3,))
    offset = np.broadcast_to(0.0 if converter.offset is None else np.asarray(converter.offset, float), (3,))
    size = converter.image_size or (None, None)
    if size[0] != size[1] or not (scale > 0).all() or converter.pad_to_aspect_ratio:
        raise PretrainedError(f"images made square by {source}", f"size {size}", "name another preset")
    if converter.interpolation not in ("bicubic", "bilinear"):
        raise PretrainedError("bicubic or bilinear interpolation", converter.interpolation, "name another preset")
    std = 1.0 / (255.0 * scale)
    return {
        "size": size[0],
        "resize": "crop" if converter.crop_to_aspect_ratio else "squash",
        "interpolation": converter.interpolation,
        "mean": tuple((-offset * std).tolist()),
        "std": tuple(std.tolist()),
    }


def _sized(images: dict[str, Any], vision: dict[str, Any], source: str) -> dict[str, Any]:
    side = vision["image_shape"][0]
    if images["size"] not in (None, side):
        raise PretrainedError(f"images of the tower's {side} pixels from {source}", f"{images['size']}", "name another")
    return {**images, "size": side}
