"""Builds the tokenisers of published CLIP and SigLIP models from the files they come with; imports no TensorFlow.

Files are data: JSON, text, and a SentencePiece model read by protobuf. Every refusal is a `PretrainedError`.
"""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from data.errors import PretrainedError
from data.published_files import as_text, read_bytes, read_gzip, read_object, read_text
from data.text import CaptionTokenizer

TOKENIZER_JSON = "tokenizer.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
OPENAI_MERGES = "bpe_simple_vocab_16e6.txt.gz"
SENTENCEPIECE = "spiece.model"

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
# CLIP's words, as published: English contractions, runs of letters, single digits, runs of the rest.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# The lines of OpenAI's file that are merges, after its first.
_OPENAI_MERGES = 49152 - 256 - 2

_SPACE = "▁"  # how SentencePiece writes a space


def clip_tokenizer(directory: Path, max_tokens: int) -> CaptionTokenizer:
    """CLIP's byte-level BPE of lower-cased text between a start and an end token, padded with the end token.

    Read from tokenizer.json, from vocab.json and merges.txt, or from OpenAI's merges as OpenCLIP packs them.
    """
    if (directory / TOKENIZER_JSON).is_file():
        tokenizer = _tokenizer_json(directory / TOKENIZER_JSON)
    elif (directory / VOCABULARY).is_file() and (directory / MERGES).is_file():
        lines = read_text(directory / MERGES).replace("\r\n", "\n").split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        tokenizer = _clip_bpe(_vocabulary(directory / VOCABULARY), merges, directory / MERGES)
    elif (directory / OPENAI_MERGES).is_file():
        text = as_text(read_gzip(directory / OPENAI_MERGES), directory / OPENAI_MERGES)
        merges = text.split("\n")[1 : _OPENAI_MERGES + 1]
        tokenizer = _clip_bpe(_openai_vocabulary(merges), merges, directory / OPENAI_MERGES)
    else:
        raise _absent(directory, f"{TOKENIZER_JSON}, or {VOCABULARY} with {MERGES}, or {OPENAI_MERGES}")
    _require_tokens(tokenizer, directory, CLIP_START, CLIP_END)
    return _padded(tokenizer, _pad_token(directory, CLIP_END), max_tokens)


def clip_tokenizer_of(vocabulary: dict[str, int], merges: list[str], max_tokens: int) -> CaptionTokenizer:
    """CLIP's tokeniser over a vocabulary and merges that are at hand."""
    return _padded(_clip_bpe(vocabulary, merges, Path(VOCABULARY)), CLIP_END, max_tokens)


def siglip_tokenizer(directory: Path, max_tokens: int, cleaned_by_open_clip: bool = False) -> CaptionTokenizer:
    """SigLIP's SentencePiece of text without case and punctuation, or SigLIP 2's Gemma BPE of lower-cased text.

    The first is read from spiece.model or a Unigram tokenizer.json, the second from a BPE tokenizer.json. OpenCLIP
    drops punctuation for SigLIP 2 too, and turns underscores into spaces where Hugging Face drops them with the rest.
    """
    if (directory / SENTENCEPIECE).is_file():
        model = read_bytes(directory / SENTENCEPIECE)
        return siglip_tokenizer_of(model, max_tokens, directory, cleaned_by_open_clip)
    if not (directory / TOKENIZER_JSON).is_file():
        raise _absent(directory, f"{SENTENCEPIECE} or {TOKENIZER_JSON}")
    tokenizer = _tokenizer_json(directory / TOKENIZER_JSON)
    is_first = isinstance(tokenizer.model, models.Unigram)
    default = "</s>" if is_first else "<pad>"
    if is_first or cleaned_by_open_clip:
        _put_first(tokenizer, *_canonical(cleaned_by_open_clip))
    else:
        _put_first(tokenizer, normalizers.Lowercase())
    side = _settings(directory).get("padding_side", "right")
    if side != "right":
        raise PretrainedError(
            f"padding on the right in {directory / 'tokenizer_config.json'}, as SigLIP models are trained",
            f"padding_side {side!r}",
            'set it to "right" if the model was trained so',
        )
    return _padded(tokenizer, _pad_token(directory, default), max_tokens)


def siglip_tokenizer_of(
    model: bytes, max_tokens: int, directory: Path | None = None, cleaned_by_open_clip: bool = False
) -> CaptionTokenizer:
    """SigLIP's tokeniser over a serialised SentencePiece model; `directory` may have a tokenizer_config.json."""
    tokenizer, end = _unigram(model)
    before = _canonical(cleaned_by_open_clip)
    tokenizer.normalizer = normalizers.Sequence([*before, *([tokenizer.normalizer] if tokenizer.normalizer else [])])
    return _padded(tokenizer, end if directory is None else _pad_token(directory, end), max_tokens)


def _clip_bpe(vocabulary: dict[str, int], merges: list[str], path: Path) -> Tokenizer:
    if wrong := next((line for line in merges if line.count(" ") != 1), None):
        raise PretrainedError(f"two tokens a line in {path}", repr(wrong[:80]), "copy the file again")
    pairs = [(first, second) for first, _, second in (line.partition(" ") for line in merges)]
    try:
        bpe = models.BPE(
            vocab=vocabulary,
            merges=pairs,
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
            fuse_unk=False,
            unk_token=CLIP_END,
        )
    except Exception as error:  # the library raises plain exceptions, for a merge of unknown tokens among others
        raise PretrainedError(f"a vocabulary and merges that fit in {path.parent}", str(error), "copy both") from None
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _require_tokens(tokenizer, path.parent, CLIP_START, CLIP_END)
    ids = {token: vocabulary[token] for token in (CLIP_START, CLIP_END)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLIP_START} $A {CLIP_END}", special_tokens=list(ids.items())
    )
    return tokenizer


def _openai_vocabulary(merges: list[str]) -> dict[str, int]:
    """The bytes, the bytes that end a word, what each merge makes, and the frame, numbered in this order."""
    # Printable bytes stand for themselves and come first, as in the published tokeniser; the rest move up to 256 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    made = ["".join(line.split(" ")) for line in merges]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *made, CLIP_START, CLIP_END]
    return {token: number for number, token in enumerate(tokens)}


def _canonical(underscore_is_space: bool) -> list[Any]:
    """Lower case, no ASCII punctuation, single spaces: what SigLIP's captions went through in training."""
    punctuation = "[" + "".join(re.escape(character) for character in string.punctuation) + "]"
    return [
        normalizers.Lowercase(),
        *([normalizers.Replace("_", " ")] if underscore_is_space else []),
        normalizers.Replace(Regex(punctuation), ""),
        normalizers.Replace(_SPACE, " "),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]


def _unigram(data: bytes) -> tuple[Tokenizer, str]:
    """The tokeniser of a serialised SentencePiece model, and its end token."""
    from google.protobuf.message import DecodeError

    try:
        model = _model_proto().FromString(data)
    except DecodeError:
        raise PretrainedError("a SentencePiece model", "bytes that are none", "copy the file again") from None
    pieces = [(entry.piece, entry.score) for entry in model.pieces]
    kinds = [entry.type for entry in model.pieces]
    settings, text = model.trainer_spec, model.normalizer_spec
    if settings.model_type != 1 or kinds.count(2) != 1 or 4 in kinds:
        raise PretrainedError(
            "a SentencePiece model of type Unigram with one unknown piece and no user-defined symbols",
            f"type {settings.model_type}, {kinds.count(2)} unknown pieces, {kinds.count(4)} symbols",
            f"use the model's {TOKENIZER_JSON}",
        )
    end = "</s>"
    if end not in [piece for piece, _ in pieces]:
        raise PretrainedError(f"a SentencePiece model with an end token {end}", "one without", "copy the file again")
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=kinds.index(2), byte_fallback=settings.byte_fallback))
    steps: list[Any] = []
    if text.precompiled_charsmap:
        steps.append(normalizers.Precompiled(text.precompiled_charsmap))
    if text.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_SPACE,
        prepend_scheme="always" if text.add_dummy_prefix else "never",
        split=not any(_SPACE in piece[1:] for piece, _ in pieces),
    )
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, [piece for piece, _ in pieces].index(end))]
    )
    return tokenizer, end


def _model_proto() -> Any:
    """The message class of the part of sentencepiece_model.proto that is needed here.

    The sentencepiece package's own asks for a newer protobuf than TensorFlow allows.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    flag, number, text, raw, real = (
        kinds.TYPE_BOOL,
        kinds.TYPE_INT32,
        kinds.TYPE_STRING,
        kinds.TYPE_BYTES,
        kinds.TYPE_FLOAT,
    )
    messages = {
        "Piece": (("piece", 1, text, ""), ("score", 2, real, "0"), ("type", 3, number, "1")),
        "Trainer": (("model_type", 3, number, "1"), ("byte_fallback", 35, flag, "false")),
        "Normalizer": (
            ("precompiled_charsmap", 2, raw, ""),
            ("add_dummy_prefix", 3, flag, "true"),
            ("remove_extra_whitespaces", 4, flag, "true"),
        ),
    }
    package = "dual_encoder.sentencepiece"
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto2")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, position, kind, default in fields:
            message.field.add(name=field, number=position, type=kind, label=1, default_value=default)
    model = file.message_type.add(name="Model")
    for field, position, name, label in (
        ("pieces", 1, "Piece", 3),
        ("trainer_spec", 2, "Trainer", 1),
        ("normalizer_spec", 3, "Normalizer", 1),
    ):
        type_name = f".{package}.{name}"
        model.field.add(name=field, number=position, type=kinds.TYPE_MESSAGE, type_name=type_name, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.Model"))


def _put_first(tokenizer: Tokenizer, *steps: Any) -> None:
    """Normalise by `steps` before what the tokeniser does itself; a lower-casing that it begins with is enough."""
    own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([*steps, *own])


def _padded(tokenizer: Tokenizer, pad_token: str, max_tokens: int) -> CaptionTokenizer:
    pad_id = tokenizer.token_to_id(pad_token)
    if pad_id is None:
        raise PretrainedError(f"a vocabulary with the padding token {pad_token}", "one without", "copy all files again")
    tokenizer.enable_padding(pad_id=pad_id, pad_token=pad_token)
    if len(tokenizer.encode("").ids) == 0:
        raise PretrainedError(
            "a tokeniser that ends a text with a token of its own",
            "one that gives no token for an empty text",
            "save the tokeniser again with its post-processor",
        )
    return CaptionTokenizer(tokenizer, max_tokens)


def _require_tokens(tokenizer: Tokenizer, directory: Path, *tokens: str) -> None:
    if missing := [token for token in tokens if tokenizer.token_to_id(token) is None]:
        raise PretrainedError(
            f"CLIP's tokens {' and '.join(tokens)} in the tokeniser of {directory}",
            f"a vocabulary without {' and '.join(missing)}",
            "copy the files of one model",
        )


def _settings(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, where there is one."""
    path = directory / "tokenizer_config.json"
    return read_object(path) if path.is_file() else {}


def _pad_token(directory: Path, default: str) -> str:
    token = _settings(directory).get("pad_token") or default
    return str(token.get("content", default)) if isinstance(token, dict) else str(token)


def _vocabulary(path: Path) -> dict[str, int]:
    vocabulary = read_object(path)
    if not all(type(number) is int and 0 <= number < 2**31 for number in vocabulary.values()):
        raise PretrainedError(f"tokens and their numbers in {path}", "another value", "copy the file again")
    return vocabulary


def _tokenizer_json(path: Path) -> Tokenizer:
    text = read_text(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain exceptions
        raise PretrainedError(f"a tokeniser in {path}", str(error)[:200], "copy the file again") from None


def _absent(directory: Path, files: str) -> PretrainedError:
    return PretrainedError(f"a tokeniser in {directory}: {files}", "none of them", "copy these files there too")
