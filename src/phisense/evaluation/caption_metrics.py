"""Caption metrics as in COCO's caption evaluation (github.com/tylin/coco-caption): BLEU, ROUGE-L,
CIDEr-D.

Texts are tokenized into words as the official tokenizer (Stanford's PTBTokenizer, lower case,
punctuation dropped) does. Scripts without spaces between words, for which that tokenizer was not
made, are split into characters, as sacreBLEU's "zh" does with Chinese. METEOR is not included: it
needs WordNet, which no package contains.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..unicode_scripts import (
    UNSPACED,
    grapheme_clusters,
    has_combining_marks,
    is_punctuation,
    is_unspaced,
)
from .task import Array

MAX_NGRAM = 4  # the largest n-gram order
_Grams = Counter[tuple[str, ...]]

_ENTITY = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"'}
# Words that the Penn Treebank tokenization splits, and the length of their first part.
_TWO_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "lemme": 3, "gimme": 3, "y'all": 2}
_BRACKETS = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "£": "#",
}
_SHORT = (
    r"mr|mrs|ms|dr|prof|gov|gen|sgt|capt|rev|sen|rep|lt|col|maj|hon|st|rd|ave|blvd|ct|mt|ft|sq|jr|"
    r"sr|bros|inc|co|corp|ltd|dept|est|etc|vs|al|"
    r"ph\.d|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tue|wed|thu|fri"
)
_TOKEN = re.compile(
    rf"""
    [\w.+-]+@[\w-]+(?:\.[\w-]+)+ | (?:https?://|www\.)\S+[\w/]  # addresses
    # times, decimals, thousands, fractions, dates
  | \d+(?:[:.,/-]\d+)+ | (?<!\w)\.\d+
    # abbreviations keep their period
  | (?<![\w'])(?:(?:[a-z]\.){{2,}} | (?:{_SHORT})\. | no\.(?=\s\d) | [a-z]\.(?!\w))
  | (?-i:[A-Z]+&[A-Z]+(?![a-z]))
  | 'n' | '\d0s\b | '(?:em|til)\b | [#@][a-z]\w* | us\$
  | n't\b | '(?:s|m|d|re|ve|ll)\b | y'all\b
  | [^\W_]+(?:[-_][^\W_]+)*?(?=n't\b)
  | [^\W\d_]+(?:\.[^\W\d_]+)+
  | [^\W_]+(?:'(?!(?:s|m|d|re|ve|ll|t)\b)[^\W\d_]+)*
    (?:[-_/][^\W_]+(?:'(?!(?:s|m|d|re|ve|ll|t)\b)[^\W\d_]+)*)*
  | \.{{3}} | -{{2,}} | \*+ | [!?]{{2,}} | ``|'' | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)
#: Runs of a script without spaces, other runs without white space, and white space.
_PIECE = re.compile(rf"{UNSPACED.pattern}+|(?:(?!{UNSPACED.pattern})\S)+|\s+")
_DROPPED = {
    "''",
    "'",
    "``",
    "`",
    ".",
    "?",
    "!",
    ",",
    ":",
    "-",
    "--",
    "...",
    ";",
    '"',
    "“",
    "”",
    "‘",
    "’",
    "–",
    "—",
    "…",
}


def tokenize_caption(text: str) -> list[str]:
    """Tokenize a caption: lower-case words without punctuation. Differs from Stanford's tokenizer
    only in constructs that captions hardly ever contain.
    """
    if text.isascii():
        return _english(text)
    line = unicodedata.normalize("NFKC" if is_unspaced(text) else "NFC", text)
    found = _by_script(line) if has_combining_marks(line) or is_unspaced(line) else _english(line)
    return [word for word in found if not is_punctuation(word) or word.isascii()]


def _english(text: str) -> list[str]:
    line = " ".join(text.split()).replace("’", "'")
    for entity, character in _ENTITY.items():
        line = line.replace(entity, character)
    found: list[str] = []
    for token in map(str.lower, _TOKEN.findall(line)):
        if token in _DROPPED:
            continue
        cut = _TWO_WORDS.get(token)
        found += [token[:cut], token[cut:]] if cut else [_BRACKETS.get(token, token)]
    return found


def _by_script(line: str) -> list[str]:
    """Split into words by script: each character of a script without spaces is a word; text with
    combining marks is one word up to a space or punctuation mark.
    """
    found: list[str] = []
    for piece in _PIECE.findall(line):
        if UNSPACED.match(piece):
            found += grapheme_clusters(piece)
        elif has_combining_marks(piece):
            found += [word.lower() for word in _marked_words(piece)]
        else:
            found += _english(piece)
    return found


def _marked_words(piece: str) -> list[str]:
    return "".join(" " if is_punctuation(letter) else letter for letter in piece).split()


def rouge_l(answer: Sequence[str], accepted: Sequence[Sequence[str]], beta: float = 1.2) -> float:
    """ROUGE-L (Lin, 2004) of one tokenized text: F-score of the best precision and the best recall,
    which may come from different references.
    """
    common = [_common(answer, reference) for reference in accepted]
    precision = max(common) / max(1, len(answer))
    recall = max(
        found / max(1, len(reference)) for found, reference in zip(common, accepted, strict=True)
    )
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _common(said: Sequence[str], wanted: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(wanted) + 1)
    for word in said:
        above = 0
        for j, other in enumerate(wanted, 1):
            above, lengths[j] = (
                lengths[j],
                above + 1 if word == other else max(lengths[j], lengths[j - 1]),
            )
    return lengths[-1]


def count_ngrams(text: Sequence[str]) -> list[_Grams]:
    """Counts of the 1-grams to `MAX_NGRAM`-grams."""
    return [
        Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
        for n in range(1, MAX_NGRAM + 1)
    ]


def bleu_counts(answer: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[float]:
    """Sufficient statistics of one text for BLEU: for each order the clipped n-gram matches and the
    number of n-grams; its length; the length of the closest reference, the shorter one on a tie.
    """
    references = [count_ngrams(reference) for reference in accepted]
    row: list[float] = []
    for n, said in enumerate(count_ngrams(answer)):
        allowed: _Grams = Counter()
        for reference in references:
            allowed |= reference[n]
        row += [float((said & allowed).total()), float(said.total())]
    nearest = min((abs(len(reference) - len(answer)), len(reference)) for reference in accepted)[1]
    return [*row, float(len(answer)), float(nearest)]


def bleu(sums: Array) -> list[Array]:
    """BLEU-1 to BLEU-4 (Papineni et al., 2002) from sums of `bleu_counts` `(..., 10)`, with
    coco-caption's small constants against division by zero.
    """
    tiny, small = 1e-15, 1e-9
    ratio = (sums[..., 8] + tiny) / (sums[..., 9] + small)
    brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    product: Array = np.ones_like(ratio)
    found = []
    for n in range(MAX_NGRAM):
        product = product * (sums[..., 2 * n] + tiny) / (sums[..., 2 * n + 1] + small)
        found.append(product ** (1 / (n + 1)) * brevity)
    return found


class CiderScorer:
    """CIDEr and CIDEr-D (Vedantam et al., 2015): TF-IDF-weighted cosine similarity of n-gram
    counts, where the document frequency counts the images whose references contain the n-gram.

    Like coco-caption, whose "CIDEr" is CIDEr-D, it does not stem words, and multiplies by 10.
    Document frequencies come from all references given here, so the score of one image depends on
    the others, and is 0 for a single image.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        """`references` holds the tokenized references of each image."""
        self._grams = [[count_ngrams(reference) for reference in picture] for picture in references]
        self._pictures: _Grams = Counter()
        for picture in self._grams:
            self._pictures.update(
                {gram for reference in picture for order in reference for gram in order}
            )
        self._log_n = math.log(max(1, len(references)))
        self._lengths = [
            [max(0, len(reference) - 1) for reference in picture] for picture in references
        ]

    def __call__(self, at: int, answer: Sequence[str], sigma: float = 6.0) -> tuple[float, float]:
        """CIDEr-D and CIDEr of an answer about the image with index `at`; CIDEr-D clips counts and
        penalizes a difference in length (in 2-grams).
        """
        said, length = self._weighted(count_ngrams(answer)), max(0, len(answer) - 1)
        with_d = without = 0.0
        for reference, wanted_length in zip(self._grams[at], self._lengths[at], strict=True):
            wanted = self._weighted(reference)
            penalty = math.exp(-((length - wanted_length) ** 2) / (2 * sigma**2))
            for ours, theirs in zip(said, wanted, strict=True):
                norm = math.sqrt(sum(x * x for x in ours.values())) * math.sqrt(
                    sum(x * x for x in theirs.values())
                )
                if norm:
                    shared = [(x, theirs[gram]) for gram, x in ours.items() if gram in theirs]
                    with_d += sum(min(x, y) * y for x, y in shared) / norm * penalty
                    without += sum(x * y for x, y in shared) / norm
        scale = 10 / (MAX_NGRAM * len(self._grams[at]))
        return with_d * scale, without * scale

    def _weighted(self, counted: list[_Grams]) -> list[dict[tuple[str, ...], float]]:
        return [
            {
                gram: n * (self._log_n - math.log(max(1, self._pictures[gram])))
                for gram, n in order.items()
            }
            for order in counted
        ]
