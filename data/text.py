"""The only place where a caption becomes token ids: clean-up and tokenisation; imports no TensorFlow."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data.errors import UserError

# A longer text is cut before it is tokenised: no caption needs more, and work must stay bounded.
MAX_CHARACTERS = 10_000

FRAME = PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


def clean_caption(text: str) -> str:
    """Canonical form of a caption: valid Unicode, NFC, no control characters, single spaces, no outer space."""
    text = text[:MAX_CHARACTERS].encode("utf-8", "ignore").decode("utf-8")  # drops lone surrogates
    if text.isascii() and text.isprintable():  # most captions: nothing to compose or to drop
        return " ".join(text.split())
    kept = (" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c) != "Cc")
    # Composed last: a control character may have stood between a letter and its accent.
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of a batch of captions, `ids` and `mask` both `(B, L)` int32; `mask` is 1 where a token stands."""

    ids: np.ndarray
    mask: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class CaptionTokenizer:
    """Captions to token ids by a Hugging Face `tokenizers` model, cut to `max_tokens`, special tokens included.

    A caption cannot spell a special token out: its letters are read as any others. Padding is of the token that the
    model names, else `[PAD]`, else id 0.

    Example: `CaptionTokenizer.wordpiece(vocabulary).encode(["a red bicycle"]).ids`.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        tokenizer.encode_special_tokens = True
        tokenizer.enable_truncation(max_tokens)
        padding = tokenizer.padding or {"pad_id": tokenizer.token_to_id(PAD) or 0, "pad_token": PAD}
        self.pad_id = padding["pad_id"]
        tokenizer.enable_padding(pad_id=self.pad_id, pad_token=padding["pad_token"])

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids; every id is smaller."""
        return self.tokenizer.get_vocab_size()

    def encode(self, captions: Sequence[str]) -> TokenBatch:
        """Clean and tokenise captions, padded to the longest of them."""
        if not captions:
            return TokenBatch(np.zeros((0, 1), np.int32), np.zeros((0, 1), np.int32))
        if len(captions) == 1:  # without a change of threads, which takes as long as the tokens of a caption
            encodings = [self.tokenizer.encode(clean_caption(captions[0]))]
        else:
            encodings = self.tokenizer.encode_batch([clean_caption(caption) for caption in captions])
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int32)
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int32)
        return TokenBatch(ids, mask)

    def to_json(self) -> str:
        """The tokeniser in Hugging Face's `tokenizer.json` form."""
        return self.tokenizer.to_str()

    @classmethod
    def from_json(cls, text: str, max_tokens: int) -> CaptionTokenizer:
        """The inverse of `to_json`."""
        return cls(Tokenizer.from_str(text), max_tokens)

    @classmethod
    def wordpiece(cls, vocabulary: Path | Sequence[str], max_tokens: int = 128) -> CaptionTokenizer:
        """BERT's uncased WordPiece over a `vocab.txt` (or its lines)."""
        if isinstance(vocabulary, Path):
            # Not `splitlines`, which would also cut at separators that can be tokens themselves.
            vocabulary = vocabulary.read_text("utf-8").rstrip("\n").split("\n")
        tokens = {token: position for position, token in enumerate(vocabulary)}
        missing = [token for token in (PAD, UNKNOWN, START, END) if token not in tokens]
        if missing:
            raise UserError(
                f"a vocabulary with {PAD}, {UNKNOWN}, {START} and {END}",
                f"{len(tokens):,} tokens without {', '.join(missing)}",
                "use the vocab.txt of a BERT model",
            )
        tokenizer = Tokenizer(models.WordPiece(tokens, unk_token=UNKNOWN, max_input_chars_per_word=100))
        return cls(_as_bert(tokenizer), max_tokens)

    @classmethod
    def trained(cls, captions: Iterable[str], vocabulary_size: int = 8000, max_tokens: int = 64) -> CaptionTokenizer:
        """A WordPiece vocabulary learned from `captions`, for text towers trained from scratch in any language.

        It has at most `vocabulary_size` tokens; where characters alone are more, the rarest are unknown. The same
        captions, in any order, give the same vocabulary: a resumed run learns it again.
        """
        cleaned = [clean_caption(caption) for caption in captions]
        tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
        tokenizer.normalizer = _bert_normalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        characters = _character_counts(tokenizer, cleaned)
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocabulary_size,
            # The trainer numbers continuing characters in the order of a randomly seeded hash table and breaks ties by
            # number; named here, they have the same numbers every time.
            special_tokens=[*FRAME, *sorted(token for token in characters if len(token) > 1)],
            show_progress=False,
        )
        tokenizer.train_from_iterator(cleaned, trainer)
        # Built anew from the vocabulary: the trainer marks `[SEP]` and its like as tokens that a caption may spell out.
        ids = tokenizer.get_vocab()
        vocabulary = sorted(ids, key=ids.__getitem__)
        if len(vocabulary) > vocabulary_size:
            common = sorted(characters, key=lambda token: (-characters[token], token))
            vocabulary = [*FRAME, *common[: vocabulary_size - len(FRAME)]]
        return cls.wordpiece(vocabulary, max_tokens)


def _character_counts(tokenizer: Tokenizer, captions: Iterable[str]) -> Counter[str]:
    """How often each character begins a word, as `c`, and continues one, as `##c`."""
    counts: Counter[str] = Counter()
    for caption in captions:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(caption)):
            counts[word[0]] += 1
            counts.update(f"##{character}" for character in word[1:])
    return counts


def _bert_normalizer() -> normalizers.Normalizer:
    return normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True)


def _as_bert(tokenizer: Tokenizer) -> Tokenizer:
    """Give a WordPiece model BERT's normaliser, word splitter, decoder and `[CLS] … [SEP]` frame."""
    tokenizer.normalizer = _bert_normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    vocabulary = tokenizer.get_vocab()
    start, end = vocabulary[START], vocabulary[END]
    tokenizer.post_processor = processors.BertProcessing((END, end), (START, start))
    return tokenizer
