"""CLIP and SigLIP as OpenCLIP publishes them: open_clip_config.json, safetensors and a tokeniser in a directory.

Format: the `open_clip_torch` library's `CLIPVisionCfg`, `CLIPTextCfg` and `PreprocessCfg`. Its own Transformers are
read, and SigLIP's image towers of timm (`open_clip_siglip`); other towers of timm and those of Hugging Face are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import PretrainedError
from data.published_files import read_object
from data.published_tokenizers import clip_tokenizer
from data.text import CaptionTokenizer
from dual_encoder.model import DualEncoderConfig
from dual_encoder.pretrained import open_clip_siglip
from dual_encoder.pretrained.placement import Module, Source, layer_sources
from dual_encoder.pretrained.published_model import (
    PublishedModel,
    as_config_error,
    check_end,
    check_tokenizer,
    projection,
)
from dual_encoder.towers.clip import CLIP_MEAN, CLIP_STD, ClipImage, ClipText
from dual_encoder.towers.siglip import SiglipText

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model"

# Settings that decide what is computed, with the values that a ClipImage or ClipText has.
_IMAGE_FIXED: dict[str, tuple] = {
    "ls_init_value": (None,),
    "attentional_pool": (False,),
    "no_ln_pre": (False,),
    "pos_embed_type": ("learnable",),
    "final_ln_after_pool": (False,),
    "act_kwargs": (None, {}),
    "block_type": (None, "default"),
    "timm_model_name": (None,),
}
_TEXT_FIXED: dict[str, tuple] = {
    "ls_init_value": (None,),
    "embed_cls": (False,),
    "no_causal_mask": (False,),
    "final_ln_after_pool": (False,),
    "pool_type": ("argmax",),
    "proj_bias": (False,),
    "proj_type": ("linear",),
    "act_kwargs": (None, {}),
    "block_type": (None, "default"),
    "hf_model_name": (None,),
    "hf_tokenizer_name": (None,),
    "tokenizer_kwargs": (None, {}),
}
_CUSTOM = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")

# What only matters to training, or is read below; any other setting is of a tower that is not known here.
_IMAGE_KNOWN = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "pool_type", "norm_kwargs")
_IMAGE_IDLE = ("patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "output_tokens")
_TEXT_KNOWN = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs")
_TEXT_IDLE = ("tokenizer_mode", "pad_id", "eos_id", "output_tokens")


def read_open_clip(directory: Path) -> PublishedModel:
    """Read the description of a model and its tokeniser; weights are only looked for when it is built."""
    path = directory / CONFIG
    stated = read_object(path)
    with as_config_error(path):
        config, steps = stated["model_cfg"], stated.get("preprocess_cfg") or {}
        _check_top(config, path)
        images = _image_settings(steps, config["vision_cfg"].get("image_size", 224), path)
        if open_clip_siglip.is_siglip(config["vision_cfg"]):
            model, tokenizer = open_clip_siglip.read_towers(directory, config, images, path)
            sources = open_clip_siglip.sources(model)
        else:
            model, tokenizer = _towers(directory, config, images, path)
            sources = _sources(model, "text." if config.get("custom_text") else "")
    text = model.text_backbone
    assert isinstance(text, ClipText | SiglipText)
    check_tokenizer(tokenizer, text.vocabulary_size, directory)
    return PublishedModel(
        name=directory.resolve().name,
        directory=directory,
        weights=WEIGHTS,
        config=model,
        tokenizer=tokenizer,
        sources=sources,
        has_bias=config.get("init_logit_bias") is not None,
        facts={"format": "OpenCLIP", "architecture": "CLIP" if isinstance(text, ClipText) else "SigLIP"},
    )


def _towers(
    directory: Path, config: Mapping[str, Any], images: Mapping[str, Any], path: Path
) -> tuple[DualEncoderConfig, CaptionTokenizer]:
    vision, text = config["vision_cfg"], config["text_cfg"]
    _check_settings(vision, _IMAGE_FIXED, (*_IMAGE_KNOWN, *_IMAGE_IDLE), f"vision_cfg of {path}")
    _check_settings(text, _TEXT_FIXED, (*_TEXT_KNOWN, *_TEXT_IDLE), f"text_cfg of {path}")
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    image_tower = _image_tower(vision, images, activation, path)
    text_tower = _text_tower(text, activation)
    tokenizer = clip_tokenizer(directory, text_tower.max_tokens)
    check_end(tokenizer, None, directory)
    head = projection(config["embed_dim"])
    return DualEncoderConfig(image_tower, text_tower, head, head), tokenizer


def has_weights(directory: Path) -> bool:
    """Whether a directory has weights under OpenCLIP's name."""
    return any((directory / f"{WEIGHTS}.safetensors{suffix}").is_file() for suffix in ("", ".index.json"))


def _check_top(config: Mapping[str, Any], path: Path) -> None:
    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_bias", "init_logit_scale"}
    known |= {"nonscalar_logit_scale", "force_custom_text", "cast_dtype", "output_dict"}
    if (unknown := sorted(config.keys() - known)) or config.get("nonscalar_logit_scale"):
        raise PretrainedError(
            f"a CLIP model in {path}", ", ".join(unknown) or "nonscalar_logit_scale", "use a model of two plain towers"
        )


def _check_settings(
    settings: Mapping[str, Any], fixed: Mapping[str, tuple], known: tuple[str, ...], place: str
) -> None:
    """Refuse what would be computed otherwise than here."""
    allowed = {**fixed, **dict.fromkeys(_CUSTOM, (False,))}
    other = {
        name: value
        for name, value in settings.items()
        if not name.startswith(("timm_", "hf_model_pretrained", "hf_p"))
        and name not in known
        and (name not in allowed or value not in allowed[name])
    }
    foreign = {name: settings[name] for name in ("timm_model_name", "hf_model_name") if settings.get(name)}
    if foreign or other:
        shown = ", ".join(f"{name} {value!r}" for name, value in {**other, **foreign}.items())
        raise PretrainedError(
            f"OpenCLIP's own Transformer in {place}",
            shown,
            "use such a model as Hugging Face publishes it (SigLIP's weights are there too)"
            if foreign
            else "use a model without this setting",
        )


def _image_tower(vision: Mapping[str, Any], images: Mapping[str, Any], activation: Any, path: Path) -> ClipImage:
    width, pool = vision.get("width", 768), vision.get("pool_type", "tok")
    if type(vision.get("layers", 12)) is not int or pool not in ("tok", "avg"):
        raise PretrainedError(
            f"a Vision Transformer with pool_type tok or avg in {path}",
            f"layers {vision.get('layers')}, pool_type {pool!r}",
            "use another model",
        )
    return ClipImage(
        patch=vision.get("patch_size", 16),
        width=width,
        layers=vision.get("layers", 12),
        heads=width // vision.get("head_width", 64),
        hidden=int(width * vision.get("mlp_ratio", 4.0)),
        activation=activation,
        epsilon=(vision.get("norm_kwargs") or {}).get("eps", 1e-5),
        pooling="class" if pool == "tok" else "mean",
        **images,
    )


def _image_settings(steps: Mapping[str, Any], image_size: Any, path: Path) -> dict[str, Any]:
    """How images are prepared; what preprocess_cfg leaves out is CLIP's."""
    size, stated = (
        side[-1] if isinstance(side, list) and len(set(side[-2:])) == 1 else side
        for side in (image_size, steps.get("size", image_size))
    )
    mode, interpolation = steps.get("resize_mode", "shortest"), steps.get("interpolation", "bicubic")
    resize = {"shortest": "shortest_edge_rounded", "squash": "squash"}.get(mode)
    if resize is None or interpolation not in ("bicubic", "bilinear", "random") or stated != size:
        raise PretrainedError(
            f"size {size}, resize_mode shortest or squash, interpolation bicubic or bilinear in {path}",
            f"size {stated}, resize_mode {mode!r}, interpolation {interpolation!r}",
            "use the model's own preprocessing",
        )
    return {
        "size": size,
        "resize": resize,
        "interpolation": "bilinear" if interpolation == "bilinear" else "bicubic",  # random is bicubic outside training
        "mean": tuple(map(float, steps.get("mean", CLIP_MEAN))),
        "std": tuple(map(float, steps.get("std", CLIP_STD))),
    }


def _text_tower(text: Mapping[str, Any], activation: Any) -> ClipText:
    width = text.get("width", 512)
    return ClipText(
        vocabulary_size=text.get("vocab_size", 49408),
        max_tokens=text.get("context_length", 77),
        width=width,
        layers=text.get("layers", 12),
        heads=text.get("heads", 8),
        hidden=int(width * text.get("mlp_ratio", 4.0)),
        activation=activation,
        epsilon=(text.get("norm_kwargs") or {}).get("eps", 1e-5),
    )


def _layers(count: int, tower: str) -> dict[str, Source]:
    block = f"{tower}transformer.resblocks.{{n}}"
    fused = (f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias")
    modules = {
        "layer_norm_1": Module.of(f"{block}.ln_1"),
        "attention/query": Module(*fused, 0, 3),
        "attention/key": Module(*fused, 1, 3),
        "attention/value": Module(*fused, 2, 3),
        "attention/attention_output": Module.of(f"{block}.attn.out_proj"),
        "layer_norm_2": Module.of(f"{block}.ln_2"),
        "dense_1": Module.of(f"{block}.mlp.c_fc"),
        "dense_2": Module.of(f"{block}.mlp.c_proj"),
    }
    return layer_sources(count, "encoder_block_{n}", modules)


def _sources(config: DualEncoderConfig, prefix: str) -> dict[str, dict[str, Source]]:
    """`prefix` is of the text tower's names: empty in models that keep it at the top."""
    image, text = config.image_backbone, config.text_backbone
    assert isinstance(image, ClipImage)
    assert isinstance(text, ClipText)
    return {
        "image_backbone": {
            "embedding/class_embedding": Source("visual.class_embedding"),
            "embedding/patch_embedding/kernel": Source("visual.conv1.weight"),
            "embedding/position_embedding/embeddings": Source("visual.positional_embedding"),
            **Module.of("visual.ln_pre").sources("pre_layer_norm"),
            **_layers(image.layers, "visual."),
            **Module.of("visual.ln_post").sources("layer_norm"),
        },
        "text_backbone": {
            "embedding/token_embedding/embeddings": Source(f"{prefix}token_embedding.weight"),
            "embedding/position_embedding/embeddings": Source(f"{prefix}positional_embedding"),
            **_layers(text.layers, prefix),
            **Module.of(f"{prefix}ln_final").sources("layer_norm"),
        },
        "image_head": {"projection/kernel": Source("visual.proj", as_kernel=True)},
        "text_head": {"projection/kernel": Source(f"{prefix}text_projection", as_kernel=True)},
    }
