"""Small tokenisers for tools/make_parity_fixtures.py: CLIP's own, reduced to what the captions need, and others trained
on the captions; knows no model."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tempfile
from pathlib import Path

from parity_inputs import CAPTIONS


def reduced_clip_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's published BPE with the merges that can occur in `CAPTIONS`, under their published numbers.

    A merge whose result is in no word is never applied, so the reduced tokeniser gives the whole one's ids.
    """
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    published = SimpleTokenizer()
    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    words = {
        "".join(published.byte_encoder[byte] for byte in word.encode("utf-8")) + "</w>"
        for caption in CAPTIONS
        for word in published.pat.findall(caption.lower())
    }
    everything = " ".join(sorted(words)) + " "
    merges = [tuple(line.split(" ")) for line in lines]
    kept = [pair for pair in merges if "".join(pair) in everything]
    tokens = [*published.encoder][:512] + ["".join(pair) for pair in kept]
    frame = {"<|startoftext|>": published.sot_token_id, "<|endoftext|>": published.eot_token_id}
    return {**{token: published.encoder[token] for token in tokens}, **frame}, kept


def sentencepiece_model() -> bytes:
    """A small Unigram model in the layout of SigLIP's: end token 1, unknown token 2, no start."""
    import sentencepiece

    model = io.BytesIO()
    # The model keeps the name of the file with rules, so that must not be a temporary directory's.
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        Path("rules.tsv").write_text("B2\t32\n2460\t31\n", "utf-8")  # two of NFKC's; all of them take 240 kB
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([caption.lower() for caption in CAPTIONS if caption] * 3),
            model_writer=model,
            vocab_size=230,
            hard_vocab_limit=False,
            character_coverage=0.98,
            normalization_rule_tsv="rules.tsv",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    return model.getvalue()


def gemma_like_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A small BPE with Gemma's special tokens and byte fallback."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trainer = trainers.BpeTrainer(vocab_size=460, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([caption.lower() for caption in CAPTIONS[:8]], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
