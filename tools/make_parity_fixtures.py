"""Writes tests/fixtures/pretrained: small published models and what the reference implementations make of them.

The references are `transformers` and `open_clip_torch`. Weights are random but seeded by the tensors' names, so a
fixture holds only their shapes; tests make them again. Tokenisers are CLIP's own, reduced to the merges that the
captions need, and small ones trained here. `make test-parity` runs this with --check, which only compares.

    make build/parity/.installed
    PYTHONPATH=.:tests build/parity/bin/python tools/make_parity_fixtures.py
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_inputs import CAPTIONS, images, seeded_tensors
from PIL import Image

from tools.parity_tokenizers import gemma_like_bpe, reduced_clip_bpe, sentencepiece_model

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "pretrained"
TOLERANCE = 1e-5

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "hidden_size": 32}
OTHER = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 80, "hidden_size": 40}


def main(argv: Sequence[str] | None = None) -> int:
    """Make all fixtures, or compare those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the fixtures that are there")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        for name, make in CASES.items():
            directory = Path(temporary) / name
            directory.mkdir()
            make(directory)
        if options.check:
            problems = [line for name in CASES for line in differences(Path(temporary) / name, FIXTURES / name)]
            print("\n".join(problems) or f"{len(CASES)} models agree with {FIXTURES}")
            return 1 if problems else 0
        shutil.rmtree(FIXTURES, ignore_errors=True)
        shutil.copytree(temporary, FIXTURES)
    return 0


def differences(made: Path, kept: Path) -> list[str]:
    """What differs between a fixture made now and the one that is kept, in words."""
    names = {path.name for path in made.iterdir()}
    found = [f"{made.name}: {name} only once" for name in names ^ {path.name for path in kept.iterdir()}]
    for name in sorted(names):
        if name == "expected.npz":
            ours, theirs = np.load(made / name), np.load(kept / name)
            for key in ours:
                difference = np.abs(ours[key] - theirs[key]).max() if ours[key].shape == theirs[key].shape else np.inf
                found += [f"{made.name}: {key} differs by {difference}"] if difference > TOLERANCE else []
        elif (kept / name).is_file() and (made / name).read_bytes() != (kept / name).read_bytes():
            found.append(f"{made.name}: {name} differs")
    return found


# ---------------------------------------------------------------------------------------------- Hugging Face


def clip_quick_gelu(directory: Path) -> None:
    """CLIP as OpenAI published it, with CLIP's own tokeniser in tokenizer.json."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    vocabulary, merges = reduced_clip_bpe()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    config = CLIPConfig(
        text_config={**SMALL, "max_position_embeddings": 20},
        vision_config={**OTHER, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    hugging_face(directory, CLIPModel(config), tokenizer, processor, max_length=20)


def clip_gelu_old_config(directory: Path) -> None:
    """CLIP with exact GELU, patches that leave pixels over, vocab.json and merges.txt, shards, and the end token 2."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    vocabulary, merges = reduced_clip_bpe()
    numbers = {token: number for number, token in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))}
    tokenizer = CLIPTokenizer(vocab=numbers, merges=merges)
    towers = {"hidden_act": "gelu", "layer_norm_eps": 1e-4}
    config = CLIPConfig(
        text_config={**OTHER, **towers, "vocab_size": len(numbers), "eos_token_id": 2, "max_position_embeddings": 12},
        vision_config={**SMALL, **towers, "image_size": 30, "patch_size": 7},
        projection_dim=16,
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}, resample=2)
    facts = {"shards": 3, "dtype": "float16"}
    hugging_face(directory, CLIPModel(config), tokenizer, processor, max_length=12, **facts)
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text(json.dumps(numbers, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


def siglip(directory: Path) -> None:
    """SigLIP with its SentencePiece model."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipTokenizer

    (directory / "spiece.model").write_bytes(sentencepiece_model())
    tokenizer = SiglipTokenizer(str(directory / "spiece.model"))
    config = SiglipConfig(
        text_config={**SMALL, "max_position_embeddings": 16, "vocab_size": tokenizer.vocab_size},
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
    )
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    hugging_face(directory, SiglipModel(config), tokenizer, processor, max_length=16)


def siglip2(directory: Path) -> None:
    """SigLIP 2 of a fixed size, as published under SigLIP's name: Gemma's tokeniser, unequal widths, bilinear."""
    from tokenizers import processors
    from transformers import Siglip2Tokenizer, SiglipConfig, SiglipImageProcessorPil, SiglipModel

    vocabulary, merges = gemma_like_bpe()
    tokenizer = Siglip2Tokenizer(vocab=vocabulary, merges=merges, padding_side="right")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", vocabulary["<eos>"])]
    )
    config = SiglipConfig(
        text_config={**SMALL, "max_position_embeddings": 24, "vocab_size": len(vocabulary), "projection_size": 40},
        vision_config={**OTHER, "image_size": 34, "patch_size": 8},
    )
    processor = SiglipImageProcessorPil(size={"height": 34, "width": 34}, resample=2)
    hugging_face(directory, SiglipModel(config), tokenizer, processor, max_length=24, dtype="bfloat16")


def hugging_face(
    directory: Path,
    model: Any,
    tokenizer: Any,
    processor: Any,
    max_length: int,
    shards: int = 1,
    dtype: str = "float32",
) -> None:
    """Store a model of `transformers` and what it computes."""
    model.config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    processor.save_pretrained(directory)
    shapes = load_seeded(model, dtype)
    is_clip = model.config.model_type == "clip"
    padding = True if is_clip else "max_length"  # SigLIP sees its padding
    tokens = tokenizer(list(CAPTIONS), padding=padding, truncation=True, max_length=max_length, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    pixels = [
        processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"][0] for data in images().values()
    ]
    pixels = np.stack(pixels).astype(np.float32)
    with torch.no_grad():
        text = {"attention_mask": mask} if is_clip else {}
        out = model(input_ids=ids, pixel_values=torch.from_numpy(pixels), **text)
    write_expected(directory, ids, mask, pixels, out.image_embeds, out.text_embeds, out.logits_per_image)
    write_facts(directory, {"name": "model", "shapes": shapes, "shards": shards, "dtype": dtype})


def load_seeded(model: torch.nn.Module, dtype: str = "float32") -> dict[str, list[int]]:
    """Give a model its seeded weights, rounded to `dtype`; the shapes by the names they have in a file."""
    shapes = {name: list(tensor.shape) for name, tensor in sorted(model.state_dict().items())}
    tensors = {name: np.asarray(value, np.float32) for name, value in seeded_tensors(shapes, dtype).items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    model.eval()
    return shapes


def write_expected(
    directory: Path, ids: Any, mask: Any, pixels: np.ndarray, image: Any, text: Any, logits: Any
) -> None:
    """`expected.npz`: pixels (N, S, S, 3), embeddings L2-normalised, logits (N, C)."""
    np.savez_compressed(
        directory / "expected.npz",
        ids=np.asarray(ids, np.int32),
        mask=np.asarray(mask, np.int32),
        pixels=pixels.transpose(0, 2, 3, 1),
        image=torch.nn.functional.normalize(image, dim=-1).numpy(),
        text=torch.nn.functional.normalize(text, dim=-1).numpy(),
        logits=logits.numpy(),
    )


def write_facts(directory: Path, facts: dict[str, Any]) -> None:
    """`weights.json`: how the weights' files are made."""
    (directory / "weights.json").write_text(json.dumps(facts) + "\n", "utf-8")


# ---------------------------------------------------------------------------------------------- OpenCLIP


def open_clip_class_token(directory: Path) -> None:
    """OpenCLIP's Vision Transformer, with its published tokeniser in vocab.json and merges.txt."""
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
    }
    steps = {"size": 32, "interpolation": "bicubic", "resize_mode": "shortest"}
    open_clip_model(directory, config, steps)


def open_clip_mean(directory: Path) -> None:
    """The same with quick GELU, patches averaged, a text tower under a name of its own, a bias, and squashed images."""
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": 30,
            "layers": 3,
            "width": 40,
            "head_width": 20,
            "patch_size": 7,
            "mlp_ratio": 2.0,
            "pool_type": "avg",
            "norm_kwargs": {"eps": 1e-4},
        },
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 3},
    }
    steps = {
        "size": [30, 30],
        "interpolation": "bilinear",
        "resize_mode": "squash",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    open_clip_model(directory, config, steps)


def open_clip_siglip(directory: Path) -> None:
    """SigLIP 2 with timm's image tower, made small: a fixture says of which size."""
    from unittest import mock

    import timm
    from open_clip.model import CustomTextCLIP
    from open_clip.tokenizer import HFTokenizer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = gemma_like_bpe()
    fast = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    fast.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", vocabulary["<eos>"])]
    )
    PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", unk_token="<unk>").save_pretrained(directory)
    size = {"embed_dim": 32, "depth": 2, "num_heads": 4}
    config = {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 48,
            "timm_model_name": "vit_base_patch16_siglip_224",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 24,
            "vocab_size": len(vocabulary),
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 24,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    }
    steps = {"size": [48, 48], "interpolation": "bicubic", "resize_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3}
    create = timm.create_model
    small = lambda name, **settings: create(name, **settings, **size, img_size=48)  # noqa: E731
    with mock.patch.object(timm, "create_model", small):
        model = CustomTextCLIP(**{name: value for name, value in config.items() if name != "custom_text"})
    ids = HFTokenizer(str(directory), context_length=24, clean="canonicalize")(list(CAPTIONS))
    (directory / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": steps}), "utf-8"
    )
    open_clip_outputs(directory, model, steps, ids, ids != vocabulary["<pad>"], {"siglip_base": [32, 2, 4, 128]})


def open_clip_model(directory: Path, config: dict[str, Any], steps: dict[str, Any]) -> None:
    """Store a model of `open_clip_torch` and what it computes."""
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.tokenizer import SimpleTokenizer

    (directory / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": steps}), "utf-8"
    )
    vocabulary, merges = reduced_clip_bpe()
    (directory / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    settings = {name: value for name, value in config.items() if name != "custom_text"}
    model = (CustomTextCLIP if config.get("custom_text") else CLIP)(**settings)
    ids = SimpleTokenizer(context_length=config["text_cfg"]["context_length"])(list(CAPTIONS))
    open_clip_outputs(directory, model, steps, ids, ids != 0, {})


def open_clip_outputs(
    directory: Path, model: Any, steps: dict[str, Any], ids: Any, mask: Any, facts: dict[str, Any]
) -> None:
    """Store what a model of `open_clip_torch` computes."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    shapes = load_seeded(model)
    transform = image_transform_v2(PreprocessCfg(**steps), is_train=False)
    decoded = [Image.open(io.BytesIO(data)).convert("RGB") for data in images().values()]
    pixels = np.stack([transform(image).numpy() for image in decoded])
    with torch.no_grad():
        image = model.encode_image(torch.from_numpy(pixels), normalize=True)
        text = model.encode_text(ids, normalize=True)
        logits = model.logit_scale.exp() * image @ text.T + (0 if model.logit_bias is None else model.logit_bias)
    write_expected(directory, ids, mask, pixels, image, text, logits)
    write_facts(directory, {"name": "open_clip_model", "shapes": shapes, "shards": 1, "dtype": "float32", **facts})


CASES = {
    "clip": clip_quick_gelu,
    "clip_gelu": clip_gelu_old_config,
    "siglip": siglip,
    "siglip2": siglip2,
    "open_clip": open_clip_class_token,
    "open_clip_mean": open_clip_mean,
    "open_clip_siglip": open_clip_siglip,
}

if __name__ == "__main__":
    raise SystemExit(main())
