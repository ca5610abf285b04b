"""CLIP, SigLIP and SigLIP 2 as Hugging Face publishes them: a directory of config, weights, tokeniser, preprocessing.

Formats: the `transformers` library's configuration and image processor classes for `clip` and `siglip`. SigLIP 2 of a
fixed image size is published as `siglip`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.errors import PretrainedError
from data.published_files import read_object
from data.published_tokenizers import clip_tokenizer, siglip_tokenizer
from data.text import CaptionTokenizer
from dual_encoder.model import DualEncoderConfig
from dual_encoder.pretrained.hugging_face_images import image_settings
from dual_encoder.pretrained.placement import Module, Source, layer_sources
from dual_encoder.pretrained.published_model import (
    PublishedModel,
    as_config_error,
    check_end,
    check_tokenizer,
    projection,
)
from dual_encoder.projection_head import IdentityHead
from dual_encoder.towers.clip import ClipImage, ClipText
from dual_encoder.towers.siglip import SiglipImage, SiglipText

CONFIG = "config.json"
MODELS = {"clip": "CLIPModel", "siglip": "SiglipModel"}

ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}

# What config.json may leave out because it is the library's default.
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "text_config": {
            "vocab_size": 49408,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "eos_token_id": 49407,
        },
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_channels": 3,
            "image_size": 224,
            "patch_size": 32,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
    },
    "siglip": {
        "text_config": {
            "vocab_size": 32000,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 64,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_channels": 3,
            "image_size": 224,
            "patch_size": 16,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "vision_use_head": True,
        },
    },
}

_LAYER = {  # KerasHub's names in a CLIP layer, and in a SigLIP layer, against this format's
    "clip": {
        "layer_norm_1": "layer_norm1",
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/attention_output": "self_attn.out_proj",
        "layer_norm_2": "layer_norm2",
        "dense_1": "mlp.fc1",
        "dense_2": "mlp.fc2",
    },
    "siglip": {
        "layer_norm1": "layer_norm1",
        "self_attn/query": "self_attn.q_proj",
        "self_attn/key": "self_attn.k_proj",
        "self_attn/value": "self_attn.v_proj",
        "self_attn/attention_output": "self_attn.out_proj",
        "layer_norm2": "layer_norm2",
        "mlp/fc1": "mlp.fc1",
        "mlp/fc2": "mlp.fc2",
    },
}


def read_hugging_face(directory: Path) -> PublishedModel:
    """Read the description of a model and its tokeniser; weights are only looked for when it is built."""
    path = directory / CONFIG
    config = read_object(path)
    with as_config_error(path):
        kind = _kind(config, path)
        towers = {name: _tower(config, kind, name) for name in ("text_config", "vision_config")}
        read = _clip if kind == "clip" else _siglip
        model, tokenizer = read(directory, config, towers["text_config"], towers["vision_config"])
    text = model.text_backbone
    assert isinstance(text, ClipText | SiglipText)
    check_tokenizer(tokenizer, text.vocabulary_size, directory)
    return PublishedModel(
        name=directory.resolve().name,
        directory=directory,
        weights="model",
        config=model,
        tokenizer=tokenizer,
        sources=_clip_sources(model) if kind == "clip" else _siglip_sources(model),
        has_bias=kind == "siglip",
        unused=("embeddings.position_ids",),
        facts={"format": "Hugging Face", "architecture": MODELS[kind]},
    )


def _kind(config: dict[str, Any], path: Path) -> str:
    kind, architectures = config.get("model_type"), config.get("architectures") or []
    if kind == "siglip2":
        raise PretrainedError(
            f"a model of one image size in {path}",
            "SigLIP 2 of any image size (NaFlex)",
            "use a SigLIP 2 model of a fixed size, such as siglip2-base-patch16-224",
        )
    if kind not in MODELS or (architectures and MODELS[kind] not in architectures):
        named = f"model_type {kind!r}" + (
            f", architectures {', '.join(map(str, architectures))}" if architectures else ""
        )
        raise PretrainedError(
            f"a model of {' or '.join(f'type {kind} ({name})' for kind, name in MODELS.items())} in {path}",
            named,
            "import a CLIP, SigLIP or SigLIP 2 model with both towers",
        )
    return str(kind)


def _tower(config: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    """One tower's settings; in old configs NAME_dict overrides NAME, as in the library."""
    return {**_DEFAULTS[kind][name], **(config.get(name) or {}), **(config.get(f"{name}_dict") or {})}


def _common(tower: dict[str, Any]) -> dict[str, Any]:
    """Settings that all four towers have."""
    activation = tower["hidden_act"]
    if activation not in ACTIVATIONS:
        raise PretrainedError(f"hidden_act among {', '.join(ACTIVATIONS)}", repr(activation), "use another model")
    if tower.get("num_channels", 3) != 3:
        raise PretrainedError("3 colour channels", repr(tower["num_channels"]), "use another model")
    return {
        "width": tower["hidden_size"],
        "layers": tower["num_hidden_layers"],
        "heads": tower["num_attention_heads"],
        "hidden": tower["intermediate_size"],
        "activation": ACTIVATIONS[activation],
        "epsilon": float(tower["layer_norm_eps"]),
    }


def _clip(
    directory: Path, config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]
) -> tuple[DualEncoderConfig, CaptionTokenizer]:
    image_tower = ClipImage(
        patch=vision["patch_size"], **image_settings(directory, "clip", vision["image_size"]), **_common(vision)
    )
    text_tower = ClipText(
        vocabulary_size=text["vocab_size"], max_tokens=text["max_position_embeddings"], **_common(text)
    )
    head = projection(config.get("projection_dim", 512))
    tokenizer = clip_tokenizer(directory, text_tower.max_tokens)
    end_id = text["eos_token_id"]
    check_end(tokenizer, None if end_id == 2 else end_id, directory)  # 2 is what old configs say, for the highest id
    return DualEncoderConfig(image_tower, text_tower, head, head), tokenizer


def _siglip(
    directory: Path, config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]
) -> tuple[DualEncoderConfig, CaptionTokenizer]:
    if not vision["vision_use_head"]:
        raise PretrainedError("attention pooling of the image tower", "vision_use_head false", "use another model")
    image_tower = SiglipImage(
        patch=vision["patch_size"], **image_settings(directory, "siglip", vision["image_size"]), **_common(vision)
    )
    max_tokens = text["max_position_embeddings"]
    tokenizer = siglip_tokenizer(directory, max_tokens)
    text_tower = SiglipText(
        vocabulary_size=text["vocab_size"],
        max_tokens=max_tokens,
        embedding_dim=text.get("projection_size") or text["hidden_size"],
        pad_id=tokenizer.pad_id,
        **_common(text),
    )
    return DualEncoderConfig(image_tower, text_tower, IdentityHead(), IdentityHead()), tokenizer


def _layers(kind: str, count: int, tower: str) -> dict[str, Source]:
    modules = {path: Module.of(f"{tower}.encoder.layers.{{n}}.{name}") for path, name in _LAYER[kind].items()}
    return layer_sources(count, "encoder_block_{n}", modules)


def _clip_sources(config: DualEncoderConfig) -> dict[str, dict[str, Source]]:
    image, text = config.image_backbone, config.text_backbone
    assert isinstance(image, ClipImage)
    assert isinstance(text, ClipText)
    return {
        "image_backbone": {
            "embedding/class_embedding": Source("vision_model.embeddings.class_embedding"),
            "embedding/patch_embedding/kernel": Source("vision_model.embeddings.patch_embedding.weight"),
            "embedding/position_embedding/embeddings": Source("vision_model.embeddings.position_embedding.weight"),
            **Module.of("vision_model.pre_layrnorm").sources("pre_layer_norm"),  # the library's spelling
            **_layers("clip", image.layers, "vision_model"),
            **Module.of("vision_model.post_layernorm").sources("layer_norm"),
        },
        "text_backbone": {
            "embedding/token_embedding/embeddings": Source("text_model.embeddings.token_embedding.weight"),
            "embedding/position_embedding/embeddings": Source("text_model.embeddings.position_embedding.weight"),
            **_layers("clip", text.layers, "text_model"),
            **Module.of("text_model.final_layer_norm").sources("layer_norm"),
        },
        "image_head": {"projection/kernel": Source("visual_projection.weight")},
        "text_head": {"projection/kernel": Source("text_projection.weight")},
    }


def _siglip_sources(config: DualEncoderConfig) -> dict[str, dict[str, Source]]:
    image, text = config.image_backbone, config.text_backbone
    assert isinstance(image, SiglipImage)
    assert isinstance(text, SiglipText)
    head = "vision_model.head"
    fused = (f"{head}.attention.in_proj_weight", f"{head}.attention.in_proj_bias")
    pooling = {
        "attention/query": Module(*fused, 0, 3),
        "attention/key": Module(*fused, 1, 3),
        "attention/value": Module(*fused, 2, 3),
        "attention/attention_output": Module.of(f"{head}.attention.out_proj"),
        "layernorm": Module.of(f"{head}.layernorm"),
        "mlp/fc1": Module.of(f"{head}.mlp.fc1"),
        "mlp/fc2": Module.of(f"{head}.mlp.fc2"),
    }
    return {
        "image_backbone": {
            **Module.of("vision_model.embeddings.patch_embedding").sources("embedding/patch_embedding"),
            "embedding/position_embedding/embeddings": Source("vision_model.embeddings.position_embedding.weight"),
            **_layers("siglip", image.layers, "vision_model"),
            **Module.of("vision_model.post_layernorm").sources("post_layer_norm"),
            "head/probe": Source(f"{head}.probe"),
            **layer_sources(1, "head", pooling),
        },
        "text_backbone": {
            "embedding/token_embedding/embeddings": Source("text_model.embeddings.token_embedding.weight"),
            "embedding/position_embedding/embeddings": Source("text_model.embeddings.position_embedding.weight"),
            **_layers("siglip", text.layers, "text_model"),
            **Module.of("text_model.final_layer_norm").sources("post_layer_norm"),
            **Module.of("text_model.head").sources("head"),
        },
        "image_head": {},
        "text_head": {},
    }
