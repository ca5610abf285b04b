"""Writes tests/fixtures/token_ids.json, golden token ids from pure-Python code; knows nothing of the code it judges.

The reference is the two halves of transformers 4's slow `BertTokenizer`, `BasicTokenizer` and `WordpieceTokenizer`:
plain Python, no `tokenizers` inside, and special tokens typed in a caption are plain text. It gets captions after
`data.text.clean_caption`, as our tokeniser's model does, since clean-up is ours by decision (it turns vertical tabs and
line separators into spaces where the reference glues the words together) and has tests of its own.

    python3.11 -m venv /tmp/tokens && /tmp/tokens/bin/pip install -r tools/requirements-tokens.txt
    PYTHONPATH=. /tmp/tokens/bin/python tools/make_token_fixture.py VOCAB.TXT
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "token_ids.json"
NAMES_PER_LANGUAGE = 36
MAX_TOKENS = 128

# Sentences in scripts that the emoji names lack, and in those that they have.
SENTENCES = (
    "A red bicycle leaning against a brick wall.",
    "two dogs playing in the snow",
    "A close-up of a bee's wing (magnified 40×)",
    "El niño come una manzana en el jardín; ¿y la niña?",
    "Ein großes Straßenschild über der Brücke",
    "Crème brûlée à la carte, s'il vous plaît…",
    "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Zażółć gęślą jaźń",
    "Đường phố Hà Nội vào buổi sáng sớm",
    "İstanbul'da ışıklı bir gece; IĞDIR",
    "Þórður bjó á Ísafirði og át súrmat, ÆØÅ",
    "Красный велосипед у стены, ёжик и Йод",
    "Київська вулиця взимку: їжак, ґанок",
    "Ένα κόκκινο ποδήλατο δίπλα στον τοίχο",
    "Η θάλασσα και ο ουρανός, ΑΘΗΝΑ",
    "אופניים אדומים ליד הקיר",
    "שָׁלוֹם עוֹלָם",
    "دراجة حمراء بجانب الجدار",
    "اَلسَّلَامُ عَلَيْكُم",
    "دوچرخهٔ قرمز کنار دیوار می‌ماند",
    "दीवार के पास एक लाल साइकिल",
    "একটি লাল সাইকেল দেয়ালের পাশে",
    "சுவரின் அருகே சிவப்பு மிதிவண்டி",
    "จักรยานสีแดงข้างกำแพง",
    "ລົດຖີບສີແດງ",
    "წითელი ველოსიპედი კედელთან",
    "Կարմիր հեծանիվ պատի մոտ",
    "ቀይ ብስክሌት ከግድግዳው አጠገብ",
    "墙边的一辆红色自行车",
    "牆邊的一輛紅色腳踏車，很漂亮！",
    "壁のそばにある赤い自転車（じてんしゃ）",
    "カタカナ ﾊﾝｶｸ ひらがな",
    "벽 옆의 빨간 자전거",
    "한국어 문장입니다.",
    "𠀀𠀁 rare ideographs 㐀㐁 and 豈更",
)

# Texts that break naive tokenisers.
HOSTILE = (
    "",
    " ",
    "\t\n\r",
    ".",
    "...!!!???",
    "[CLS] not special [SEP] [MASK] [PAD] [UNK]",
    "[unused5] ##ing ## #",
    "a" * 99,
    "a" * 100,
    "a" * 101,
    "é" * 100,
    "é" * 101,
    "я" * 100 + " ok",
    "я" * 101 + " ok",
    "donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "word " * 200,
    "naïve café" + "\u0301" * 30,
    "e\u0301 vs é",
    "A\u030angstr\u00f6m \u212b",
    "zero\u200bwidth\u200cjoin\u200der\ufeffbom",
    "soft\u00adhyphen",
    "right\u202eto left\u202c\u200f mark",
    "tab\there\nnew\rline\u00a0nbsp\u3000ideographic\u2009thin",
    "vertical\x0btab form\x0cfeed unit\x1fsep next\x85line \u2028sep\u2029par",
    "nul\x00 bell\x07 escape\x1b[31m delete\x7f",
    "replacement \ufffd character",
    "private \ue000 use \uf8ff",
    "ﬁne ﬂow ﬀ ligatures Ⅷ ² ½ ™ ℃ ㎞",
    "ＦＵＬＬ　ｗｉｄｔｈ　１２３！",
    "𝕄𝕒𝕥𝕙 𝓈𝒸𝓇𝒾𝓅𝓉 𝟙𝟚𝟛",
    "ª º µ ß ẞ ŉ ǅ",
    "STRASSE straße İ ı K Å",
    "3.14159 1,000,000 50% $5 €20 £7 ¥9 #1 a@b.c 12:30 1/2",
    "C++ C# .NET node.js self-portrait mother-in-law rock'n'roll",
    "“curly” ‘quotes’ «guillemets» „low“ – en — em … ‽ ¡ ¿ § ¶ •",
    '`code` ^caret ~tilde |pipe \\back <tag attr="x"> {brace} _under_',
    "https://example.org/a_b?c=d&e=%20#frag",
    "'; DROP TABLE images; --",
    "<script>alert(1)</script>",
    "👍👍🏽 👩‍🍳 👨‍👩‍👧 🇫🇷 1️⃣ ❤️",
    "🍎red🍎apple",
    "☕ ☂ ♞ ✈ ⌘ ☃️",
    "x́̂̃ z̷̢̛a̶l̴g̵o̸",
    "ABCdefGHI camelCase snake_case kebab-case",
    "a b  c   d",
    "日本語english中文mixed한국어",
    "¼½¾ ①②③ ⒜ ㈱ ㋀",
    "؟ ، ؛ ٪ ١٢٣ ۴۵۶ १२३ ๑๒๓",
    "ا\u0640\u0640\u0640ل",
    "ʻokina ʼapostrophe ˈstress",
    "ⵣ ⴰⵎⴰⵣⵉⵖ ᏣᎳᎩ ᎠᏂ ꮳꮃꭹ",
    "ꙮ ᚠᚢᚦ 𐎠𐎡 𒀀𒁀 𓀀𓁐",
)

# Where the reference and our tokeniser part, and why ours is kept: it is what sentence-transformers runs.
DIFFERENCES = {
    "ΟΔΟΣ ΣΕΙΣΜΟΣ": "Python lowers a capital sigma at the end of a word to ς, `tokenizers` lowers each character alone",
    "a\U0001fae9b": "unassigned in Python 3.11's Unicode 14: the reference drops it, `tokenizers` keeps it as unknown",
    "dot⹔dot": "punctuation since Unicode 14, unknown to the older table inside `tokenizers`",
    "a\U0002b821b": "the reference treats CJK Extension E as ideographs, `tokenizers` starts it 256 code points late",
}


def emoji_names() -> list[str]:
    """Names of emoji, evenly spread, in every language of the `emoji` package."""
    import emoji
    from emoji.unicode_codes import EMOJI_DATA, LANGUAGES

    names = []
    for language in LANGUAGES:
        emoji.config.load_language(language)
        all_names = sorted({entry[language] for entry in EMOJI_DATA.values() if dict.get(entry, language)})
        step = len(all_names) / NAMES_PER_LANGUAGE
        names += [all_names[int(i * step)].strip(":").replace("_", " ") for i in range(NAMES_PER_LANGUAGE)]
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Write the fixture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("vocabulary", type=Path, metavar="VOCAB.TXT", help="vocab.txt of the packaged MiniLM")
    arguments = parser.parse_args(argv)

    import transformers
    from transformers.models.bert.tokenization_bert import BasicTokenizer, WordpieceTokenizer

    from data.text import clean_caption

    vocabulary = {line: row for row, line in enumerate(arguments.vocabulary.read_text("utf-8").splitlines())}
    words, pieces = BasicTokenizer(do_lower_case=True), WordpieceTokenizer(vocabulary, "[UNK]")

    def ids(caption: str) -> list[int]:
        tokens = [piece for word in words.tokenize(clean_caption(caption)) for piece in pieces.tokenize(word)]
        return [vocabulary[token] for token in ("[CLS]", *tokens[: MAX_TOKENS - 2], "[SEP]")]

    captions = list(dict.fromkeys([*emoji_names(), *SENTENCES, *HOSTILE]))
    value = {
        "reference": f"transformers {transformers.__version__} BasicTokenizer, WordpieceTokenizer, {MAX_TOKENS} tokens",
        "vocabulary_sha256": hashlib.sha256(arguments.vocabulary.read_bytes()).hexdigest(),
        "captions": [[caption, ids(caption)] for caption in captions],
        "differences": [[caption, ids(caption), why] for caption, why in DIFFERENCES.items()],
    }
    lines = []
    for key, entry in value.items():
        rows = ",\n".join(map(json.dumps, entry))  # one caption a line, for readable diffs
        lines.append(f'"{key}": ' + (json.dumps(entry) if isinstance(entry, str) else f"[\n{rows}\n]"))
    FIXTURE.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    print(f"{len(captions)} captions in {FIXTURE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
