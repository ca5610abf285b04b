"""SigLIP and SigLIP 2 as OpenCLIP publishes them: timm's image tower, OpenCLIP's text tower, under their names.

Sizes and activations are those of the models of these names in the `timm` library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import PretrainedError
from data.published_tokenizers import siglip_tokenizer
from data.text import CaptionTokenizer
from dual_encoder.model import DualEncoderConfig
from dual_encoder.pretrained.placement import Module, Source, layer_sources
from dual_encoder.projection_head import IdentityHead
from dual_encoder.towers.siglip import SiglipImage, SiglipText


class Size(NamedTuple):
    """Of timm's image towers: width, number of layers and heads, width inside the MLPs."""

    width: int
    layers: int
    heads: int
    hidden: int


SIZES = {
    "base": Size(768, 12, 12, 3072),
    "large": Size(1024, 24, 16, 4096),
    "so400m": Size(1152, 27, 16, 4304),
    "giantopt": Size(1536, 40, 16, 6144),
}
NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_(\d+)")
# The names whose GELU is the tanh approximation; in the others it is exact.
TANH = re.compile(r"vit_(base_patch32|large_patch16_siglip_512|so400m_patch16|giantopt)")

# What makes a text tower SigLIP's, beside sizes; anything else in text_cfg must be absent.
_TEXT = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "tokenizer_kwargs": {"clean": "canonicalize"}}
_TEXT_KNOWN = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs", "act_kwargs")
_TEXT_IDLE = ("hf_tokenizer_name",)
_IMAGE = {"timm_pool": "map", "timm_proj": "none"}
_IMAGE_IDLE = ("image_size", "timm_model_name", "timm_model_pretrained")


def is_siglip(vision: Mapping[str, Any]) -> bool:
    """Whether a vision_cfg names one of SigLIP's image towers."""
    return bool(NAME.fullmatch(str(vision.get("timm_model_name"))))


def read_towers(
    directory: Path, config: Mapping[str, Any], images: Mapping[str, Any], path: Path
) -> tuple[DualEncoderConfig, CaptionTokenizer]:
    """Both towers and the tokeniser of a model_cfg; `images` are the settings of preprocessing."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    _check(vision, _IMAGE, _IMAGE_IDLE, f"vision_cfg of {path}")
    _check(text, _TEXT, (*_TEXT_KNOWN, *_TEXT_IDLE), f"text_cfg of {path}")
    approximate = text.get("act_kwargs") or {}
    if approximate not in ({}, {"approximate": "tanh"}) or config.get("quick_gelu"):
        raise PretrainedError(f"GELU, exact or by tanh, in {path}", f"{approximate}", "use another model")
    name = vision["timm_model_name"]
    found = NAME.fullmatch(name)
    assert found is not None
    image_tower = SiglipImage(
        patch=int(found[2]),
        activation="gelu_tanh" if TANH.match(name) else "gelu",
        **SIZES[found[1]]._asdict(),
        **images,
    )
    max_tokens, width = text.get("context_length", 77), text.get("width", 512)
    tokenizer = siglip_tokenizer(directory, max_tokens, cleaned_by_open_clip=True)
    text_tower = SiglipText(
        vocabulary_size=text.get("vocab_size", 49408),
        max_tokens=max_tokens,
        width=width,
        layers=text.get("layers", 12),
        heads=text.get("heads", 8),
        hidden=int(width * text.get("mlp_ratio", 4.0)),
        embedding_dim=config["embed_dim"],
        pad_id=tokenizer.pad_id,
        activation="gelu_tanh" if approximate else "gelu",
        epsilon=(text.get("norm_kwargs") or {}).get("eps", 1e-5),
    )
    return DualEncoderConfig(image_tower, text_tower, IdentityHead(), IdentityHead()), tokenizer


def _check(settings: Mapping[str, Any], wanted: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    wrong = {name: settings.get(name) for name, value in wanted.items() if settings.get(name) != value}
    wrong |= {name: value for name, value in settings.items() if name not in wanted and name not in known}
    if wrong:
        shown = ", ".join(f"{name} {value!r}" for name, value in wrong.items())
        raise PretrainedError(f"SigLIP's settings in {place}", shown, "use the model as Hugging Face publishes it")


_ATTENTION = ("layer_norm1", "self_attn/query", "self_attn/key", "self_attn/value", "self_attn/attention_output")
_LAYER = (*_ATTENTION, "layer_norm2", "mlp/fc1", "mlp/fc2")


def _layers(count: int, block: str, names: tuple[str, str, str, str, str, str, str]) -> dict[str, Source]:
    """`names` are a layer's first norm, fused weight and bias, output, second norm and both parts of the MLP."""
    norm1, weight, bias, output, norm2, fc1, fc2 = (f"{block}.{name}" for name in names)
    fused = [Module(weight, bias, part, 3) for part in range(3)]
    modules = (Module.of(norm1), *fused, Module.of(output), Module.of(norm2), Module.of(fc1), Module.of(fc2))
    return layer_sources(count, "encoder_block_{n}", dict(zip(_LAYER, modules, strict=True)))


def sources(config: DualEncoderConfig) -> dict[str, dict[str, Source]]:
    """Where the variables of both towers are."""
    image, text = config.image_backbone, config.text_backbone
    assert isinstance(image, SiglipImage)
    assert isinstance(text, SiglipText)
    trunk, pool = "visual.trunk", "visual.trunk.attn_pool"
    pooling = {
        "attention/query": Module.of(f"{pool}.q"),
        "attention/key": Module(f"{pool}.kv.weight", f"{pool}.kv.bias", 0, 2),
        "attention/value": Module(f"{pool}.kv.weight", f"{pool}.kv.bias", 1, 2),
        "attention/attention_output": Module.of(f"{pool}.proj"),
        "layernorm": Module.of(f"{pool}.norm"),
        "mlp/fc1": Module.of(f"{pool}.mlp.fc1"),
        "mlp/fc2": Module.of(f"{pool}.mlp.fc2"),
    }
    positions = (1, (image.size // image.patch) ** 2, image.width)
    timm = ("norm1", "attn.qkv.weight", "attn.qkv.bias", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    own = ("ln_1", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    return {
        "image_backbone": {
            **Module.of(f"{trunk}.patch_embed.proj").sources("embedding/patch_embedding"),
            "embedding/position_embedding/embeddings": Source(f"{trunk}.pos_embed", shape=positions),
            **_layers(image.layers, f"{trunk}.blocks.{{n}}", timm),
            **Module.of(f"{trunk}.norm").sources("post_layer_norm"),
            "head/probe": Source(f"{pool}.latent"),
            **layer_sources(1, "head", pooling),
        },
        "text_backbone": {
            "embedding/token_embedding/embeddings": Source("text.token_embedding.weight"),
            "embedding/position_embedding/embeddings": Source("text.positional_embedding"),
            **_layers(text.layers, "text.transformer.resblocks.{n}", own),
            **Module.of("text.ln_final").sources("post_layer_norm"),
            **Module.of("text.text_projection").sources("head"),
        },
        "image_head": {},
        "text_head": {},
    }
