"""Texts on which llama.cpp's tokenizer must give the ids of a model's own.

llama.cpp takes how a text is split before merging from a name in the file, and rewrites regular
expressions for its own engine. Whether that is what tokenizer.json does shows in texts: numbers,
contractions, white space, code, scripts, emoji.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..families.pre_tokenizers import APPROXIMATED
from .llama_vocabulary import LlamaVocabulary

_NUMBERS = (
    *("1984", "7", "12", "365", "007", "3,141", "1,234,567.89", "3.14159", "-40", "50%", "$1.99"),
    *("1e-5", "0xFF", "3x4", "A4", "v2.0.1"),
    *("+49 30 901820", "2026-11-30T16:05:00Z", "1st 2nd 22nd", "12/11/2026 10:45pm"),
    *("½ ¾ x² 10³", "١٢٣ ४५६ ৭৮৯", "Ⅻ ⅷ ①②", "4711 0815 12345678901234567890"),
)
_WORDS = ["I", "you", "They", "HE", "what", "L", "rock", "été", "o"]
_SUFFIXES = (
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "'Re", "’s", "'x", "'", "''s"),
)
_SPACES = (
    *(" " * n + "a" for n in (1, 2, 3, 4, 7, 8, 16, 33)),
    *("a" + " " * n + "b" for n in (2, 3, 4, 9)),
    *("a" + " " * n for n in (1, 2, 5)),
    *("\n" * n for n in (1, 2, 3, 5)),
    *(" ", "  ", "   ", "\t", "\t\t\tx", "a\tb", "a \n b", "a\n b", "a \nb", "a\n\nb", "a \n\n b"),
    *(
        "a\r\nb",
        "\r\n\r\n",
        "a\n  b\n    c\n",
        " \n \n ",
        "a\u00a0b",
        "a\u2003b",
        "a\u200bb",
        "\n a",
    ),
    *("line one\n\n\n\nline two", "- item\n- item\n  - inner\n", "x  \ty", "end.\n", "end.  \n"),
)
_CODE = (
    "def f(x):\n    return x**2  # ok\n",
    "for (int i = 0; i < n; ++i) {\n\ttotal += a[i] * b[i];\n}",
    "SELECT name, COUNT(*) FROM t WHERE x >= 10 GROUP BY name;",
    '{"key": [1, 2.5, null], "other": "va\\"lue"}',
    '<div class="a-b">it\'s &amp; that</div>',
    "https://example.org/a/b?c=1&d=%20e#f someone@example.org",
    "camelCase snake_case SCREAMING_CASE kebab-case PascalCaseWord HTTPServer",
    "x_1 + y_2 == (a[0] - b{1}) / 2 != ~z ^ w | v && u",
    "C:\\Users\\me\\file.txt ../path/to/file.py ~/.bashrc",
    "import torch\n\n\nclass A(B):\n    '''Doc.'''\n\n    def __init__(self):\n        ...\n",
    "\\frac{a}{b} $x^2$ `code` **bold** _it_ ### Title\n\n> quote",
)
_TEXTS = (
    "The quick brown fox jumps over 12 lazy dogs.",
    "Hello  world\n\nA child in a pink dress is climbing up a set of stairs .",
    "What is in the image? Describe it in one sentence.",
    "Yes. No! Why?! Well... (maybe) [sic] “quoted” ‘single’ — dash – so; and: more",
    "don't can't I'm you're we've she'll he'd DON'T I'M 'tis rock'n'roll",
    "naïve café façade coöperate Œuvre ÉCOLE Ça va\u202f?",
    "Straße, Übergröße, Ärger – „ja“",
    "¿Qué hay aquí? ¡Un niño!",
    "Zażółć gęślą jaźń, Příliš žluťoučký kůň",
    "Tiếng Việt có dấu: một, hai, ba",
    "İstanbul’da ılık bir gün, şişe",
    "Καλημέρα κόσμε, Τι είναι;",
    "Широкая электрификация, їжак у 1984",
    "שלום עולם, מה זה?",
    "مرحبا بالعالم، ما هذا؟",
    "यह क\u094dय\u093e ह\u0948? नमस\u094dत\u0947 द\u0941न\u093fय\u093e।",
    "এট\u09be ক\u09c0? ব\u09be\u0982ল\u09be ভ\u09beষ\u09be",
    "இத\u0bc1 என\u0bcdன? தம\u0bbfழ\u0bcd",
    "น\u0e35\u0e48ค\u0e37ออะไร ภาษาไทย",
    "这是什么？数学3.14159，你好世界。",
    "これは何ですか？カタカナと漢字、１２３",
    "이것은 무엇입니까? 한국어 123",
    "გამარჯობა Բարև ሰላም",
    "😀😂 ok 👍🏽 👨\u200d👩\u200d👧 🇩🇪❤\ufe0f!!",
    "𝑥² + √2 ≤ ∞, ∀ε>0 ∃δ → ∑∫ €5 £3 ¥100 ₹ °C ± µm",
    "e\u0301 n\u0303 o\u0308 (combining) ﬁ ª º ™ ® ©",
    "a\u0000b \u0007 \ufeffx � \u00ad",
)
_OPENINGS = ("", " ", "(", '"', "\n", ": ")
_STEMS = ["cat", "Dog", "BIRD", "x1", "42", "café", "中文", "дом", "🐕", "--", "_"]
_CLOSINGS = ("", ".", " ", "!\n", ")", "'s", " 7")


def probe_texts() -> Iterator[str]:
    """Some hundreds of texts, always the same."""
    yield from _NUMBERS
    yield from map("".join, itertools.product(_WORDS, _SUFFIXES))
    yield from _SPACES
    yield from _CODE
    yield from _TEXTS
    yield from map("".join, itertools.product(_OPENINGS, _STEMS, _CLOSINGS))


@dataclass(frozen=True, slots=True)
class TokenizerDifference:
    """A text that llama.cpp splits otherwise: the pieces of both."""

    text: str
    ours: list[str]
    llama_cpp: list[str]

    def is_known(self, pre_tokenizer: str) -> bool:
        """Whether it is a known inexactness of llama.cpp's: letters beyond ASCII that have a case,
        or a mark, where it approximates the regular expression.
        """
        return pre_tokenizer in APPROXIMATED and any(
            not c.isascii() and unicodedata.category(c)[0] in "LM" for c in self.text
        )

    def __str__(self) -> str:
        return f"{self.text!r} as {self.llama_cpp}, which the tokenizer reads as {self.ours}"


def find_differences(
    vocabulary: LlamaVocabulary, tokenizer: Any, *, behind: str, prefix_space: bool
) -> list[TokenizerDifference]:
    """The probe texts of which llama.cpp gives other ids than `tokenizer`, a fast tokenizer.

    Each stands behind the special token `behind`, as messages stand behind tags: at the beginning
    of a text some tokenizers put a space that they put nowhere else. With `prefix_space` the
    tokenizer puts one before each text and llama.cpp does not, so it is given one. A tokenizer that
    normalizes to NFC is compared on normalized texts: llama.cpp normalizes nothing.
    """
    normalizer = json.loads(tokenizer.backend_tokenizer.to_str()).get("normalizer")
    composed = '"NFC"' in json.dumps(normalizer)
    special = [token.content for token in tokenizer.added_tokens_decoder.values()]
    found = []
    for probe in probe_texts():
        if any(token in probe for token in special):
            continue
        text = unicodedata.normalize("NFC", probe) if composed else probe
        wanted = tokenizer(f"{behind}{text}", add_special_tokens=False)["input_ids"]
        space = " " if prefix_space and text[0] != " " else ""
        got = vocabulary.tokenize(f"{behind}{space}{text}", special=True)
        if got != wanted:
            ours, theirs = (tokenizer.convert_ids_to_tokens(ids) for ids in (wanted, got))
            found.append(TokenizerDifference(text, ours, theirs))
    return found
