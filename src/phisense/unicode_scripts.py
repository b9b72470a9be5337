"""Writing systems: which scripts are written without spaces between words, and where English text
normalization applies.

Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan do not put spaces between words, so
splitting at spaces does not give words.
"""

from __future__ import annotations

import re
import unicodedata

_IDEOGRAMS = (
    "\u2e80-\u2fd5\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_KANA = (
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf"
    "\u31f0-\u31ff\uff66-\uff9d"
)
_SOUTH_EAST = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ede\u0f40-\u0fbc\u1000-\u103f\u1050-\u108f"
    "\u1780-\u17d3\u1950-\u19df\ua9e0-\ua9fe\uaa60-\uaa7f"
)
_ALL = _IDEOGRAMS + _KANA + _SOUTH_EAST
#: A letter or combining mark of a script without spaces between words.
UNSPACED = re.compile(f"[{_ALL}]")
_SPACES_INSIDE = re.compile(f"(?<=[{_ALL}])[ ,;:!?]+(?=[{_ALL}0-9])|(?<=[0-9]) (?=[{_ALL}])")
_TWO_A_WORD = re.compile(f"[{_IDEOGRAMS}{_KANA}]")
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]+")
_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")
_CIRCLED = re.compile("([\u2460-\u2473\u24ea\u3251-\u325f\u3280-\u3289\u32b1-\u32bf]+)")
_SQUARE = re.compile("[\u3371-\u33df]")  # units as one character: m², km², ...
# first code point beyond Latin: Greek, Cyrillic, ... follow
_BEYOND_LATIN = 0x0370


def is_unspaced(text: str) -> bool:
    """Whether any part of `text` is written without spaces between words."""
    return not text.isascii() and UNSPACED.search(text) is not None


def is_non_latin(text: str) -> bool:
    """Whether `text` has letters beyond Latin, or full-width letters or digits, for which English
    rules do not apply.
    """
    return not text.isascii() and any(
        ord(letter) >= _BEYOND_LATIN and (letter.isalnum() or _is_mark(letter)) for letter in text
    )


def word_count(text: str) -> float:
    """Approximate word count of `text`: two characters of Chinese or Japanese count as a word, four
    letters of Thai and related scripts.
    """
    if not is_unspaced(text):
        return len(text.split())
    letters = UNSPACED.findall(text)
    two = sum(_TWO_A_WORD.match(letter) is not None for letter in letters)
    return (
        len([word for word in UNSPACED.sub(" ", text).split() if any(map(str.isalnum, word))])
        + two / 2
        + (len(letters) - two) / 4
    )


def grapheme_clusters(text: str) -> list[str]:
    """The grapheme clusters of `text`, letters with their combining marks: the closest unit to a
    word in unspaced scripts.
    """
    found: list[str] = []
    for letter in text:
        if found and (_is_mark(letter) or letter in "\u200c\u200d"):
            found[-1] += letter
        else:
            found.append(letter)
    return found


def has_combining_marks(text: str) -> bool:
    r"""Whether `text` has combining marks (Hindi vowel signs), which Python's `\w`
    does not match.
    """
    return not text.isascii() and any(_is_mark(letter) for letter in text)


def is_punctuation(text: str) -> bool:
    """Whether a text consists only of punctuation and spaces; False if it is empty."""
    return bool(text) and all(
        unicodedata.category(letter).startswith(("P", "Z")) for letter in text
    )


def normalize_unicode(text: str) -> str:
    """Normalize `text`: compatibility and full-width forms become plain, case is folded, non-ASCII
    punctuation and invisible characters are removed, digits of every script become 0 to 9, and
    spaces are removed in unspaced scripts. Accents stay, and numbers keep their value: 10² becomes
    10^2 and not 102.
    """
    shown: list[str] = []
    for letter in _compatible(text).casefold():
        category = unicodedata.category(letter)
        if letter in "’‘ʼ":
            shown.append("'")
        elif category == "Nd":
            shown.append(str(unicodedata.decimal(letter)))
        elif category != "Cf":
            shown.append(" " if not letter.isascii() and category.startswith("P") else letter)
    joined = " ".join("".join(shown).split())
    return _SPACES_INSIDE.sub("", joined)


def _compatible(text: str) -> str:
    """NFKC, except where it would change a number: an exponent keeps a mark, a fraction stays
    separate from the number before it, and circled numbers (list items: "①②" is not 12) are
    unchanged.
    """
    text = _SQUARE.sub(
        lambda unit: "".join(
            chr(int(code, 16)) for code in unicodedata.decomposition(unit[0]).split()[1:]
        ),
        text,
    )
    text = _SUPERSCRIPT.sub(r"^\g<0>", text)
    text = _FRACTION.sub(
        lambda part: " " + unicodedata.normalize("NFKC", part[0]).replace("\u2044", "/"), text
    )
    return "".join(
        piece if _CIRCLED.match(piece) else unicodedata.normalize("NFKC", piece)
        for piece in _CIRCLED.split(text)
    )


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter).startswith("M")
