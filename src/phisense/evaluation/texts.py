"""How near a text is to reference texts, as COCO's caption evaluation measures it (github.com/tylin/coco-caption): BLEU, ROUGE-L, CIDEr-D.

Texts are first split into words the way its tokeniser (Stanford's PTBTokenizer, lower case, punctuation dropped) splits captions.
METEOR is not here: it needs WordNet, which no package brings along.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .task import Array

ORDER = 4  # the longest n-grams
_Grams = Counter[tuple[str, ...]]

_ENTITY = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"'}
# Words that the Penn Treebank takes apart, and the length of their first half.
_TWO_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "lemme": 3, "gimme": 3, "y'all": 2}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#"}
_SHORT = (
    r"mr|mrs|ms|dr|prof|gov|gen|sgt|capt|rev|sen|rep|lt|col|maj|hon|st|rd|ave|blvd|ct|mt|ft|sq|jr|sr|bros|inc|co|corp|ltd|dept|est|etc|vs|al|"
    r"ph\.d|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tue|wed|thu|fri"
)
_TOKEN = re.compile(
    rf"""
    [\w.+-]+@[\w-]+(?:\.[\w-]+)+ | (?:https?://|www\.)\S+[\w/]            # addresses
  | \d+(?:[:.,/-]\d+)+ | (?<!\w)\.\d+                                     # times, decimals, thousands, fractions, dates
  | (?<![\w'])(?:(?:[a-z]\.){{2,}} | (?:{_SHORT})\. | no\.(?=\s\d) | [a-z]\.(?!\w)) # abbreviations keep their period
  | (?-i:[A-Z]+&[A-Z]+(?![a-z]))
  | 'n' | '\d0s\b | '(?:em|til)\b | [#@][a-z]\w* | us\$
  | n't\b | '(?:s|m|d|re|ve|ll)\b | y'all\b
  | [^\W_]+(?:[-_][^\W_]+)*?(?=n't\b)
  | [^\W\d_]+(?:\.[^\W\d_]+)+
  | [^\W_]+(?:'(?!(?:s|m|d|re|ve|ll|t)\b)[^\W\d_]+)*(?:[-_/][^\W_]+(?:'(?!(?:s|m|d|re|ve|ll|t)\b)[^\W\d_]+)*)*
  | \.{{3}} | -{{2,}} | \*+ | [!?]{{2,}} | ``|'' | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)
_DROPPED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"', "“", "”", "‘", "’", "–", "—", "…"}


def words(text: str) -> list[str]:
    """The words of a caption, lower case, without punctuation. Differs from Stanford's tokeniser in what captions hardly ever hold."""
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


def rouge_l(answer: Sequence[str], accepted: Sequence[Sequence[str]], beta: float = 1.2) -> float:
    """ROUGE-L (Lin, 2004) of one text in words: F of the best precision and the best recall, which may be of different references."""
    common = [_common(answer, reference) for reference in accepted]
    precision = max(common) / max(1, len(answer))
    recall = max(found / max(1, len(reference)) for found, reference in zip(common, accepted, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _common(said: Sequence[str], wanted: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(wanted) + 1)
    for word in said:
        above = 0
        for j, other in enumerate(wanted, 1):
            above, lengths[j] = lengths[j], above + 1 if word == other else max(lengths[j], lengths[j - 1])
    return lengths[-1]


def grams(text: Sequence[str]) -> list[_Grams]:
    """Counts of the 1-grams to `ORDER`-grams."""
    return [Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for n in range(1, ORDER + 1)]


def bleu_counts(answer: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[float]:
    """What one text adds to BLEU's sums: for each order the n-grams that a reference has too and all of them; its length; the length of the
    reference nearest in length, the shorter of two as near.
    """
    references = [grams(reference) for reference in accepted]
    row: list[float] = []
    for n, said in enumerate(grams(answer)):
        allowed: _Grams = Counter()
        for reference in references:
            allowed |= reference[n]
        row += [float((said & allowed).total()), float(said.total())]
    nearest = min((abs(len(reference) - len(answer)), len(reference)) for reference in accepted)[1]
    return [*row, float(len(answer)), float(nearest)]


def bleu(sums: Array) -> list[Array]:
    """BLEU-1 to BLEU-4 (Papineni et al., 2002) of sums of `bleu_counts` (..., 10), with coco-caption's small constants against zero."""
    tiny, small = 1e-15, 1e-9
    ratio = (sums[..., 8] + tiny) / (sums[..., 9] + small)
    brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    product: Array = np.ones_like(ratio)
    found = []
    for n in range(ORDER):
        product = product * (sums[..., 2 * n] + tiny) / (sums[..., 2 * n + 1] + small)
        found.append(product ** (1 / (n + 1)) * brevity)
    return found


class Cider:
    """CIDEr and CIDEr-D (Vedantam et al., 2015): cosine of n-gram counts, weighted by how few pictures' references have the n-gram.

    Like coco-caption, whose "CIDEr" is CIDEr-D, it does not stem words, and multiplies by 10. How rare an n-gram is comes of all references
    given here, so the figure of one picture depends on the others, and is 0 where there is only one.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        """For each picture its references, in words."""
        self._grams = [[grams(reference) for reference in picture] for picture in references]
        self._pictures: _Grams = Counter()
        for picture in self._grams:
            self._pictures.update({gram for reference in picture for order in reference for gram in order})
        self._log_n = math.log(max(1, len(references)))
        self._lengths = [[max(0, len(reference) - 1) for reference in picture] for picture in references]

    def __call__(self, at: int, answer: Sequence[str], sigma: float = 6.0) -> tuple[float, float]:
        """CIDEr-D and CIDEr of an answer about the picture `at`; D clips counts and punishes another length (in 2-grams)."""
        said, length = self._weighted(grams(answer)), max(0, len(answer) - 1)
        with_d = without = 0.0
        for reference, wanted_length in zip(self._grams[at], self._lengths[at], strict=True):
            wanted = self._weighted(reference)
            penalty = math.exp(-((length - wanted_length) ** 2) / (2 * sigma**2))
            for ours, theirs in zip(said, wanted, strict=True):
                norm = math.sqrt(sum(x * x for x in ours.values())) * math.sqrt(sum(x * x for x in theirs.values()))
                if norm:
                    shared = [(x, theirs[gram]) for gram, x in ours.items() if gram in theirs]
                    with_d += sum(min(x, y) * y for x, y in shared) / norm * penalty
                    without += sum(x * y for x, y in shared) / norm
        scale = 10 / (ORDER * len(self._grams[at]))
        return with_d * scale, without * scale

    def _weighted(self, counted: list[_Grams]) -> list[dict[tuple[str, ...], float]]:
        return [{gram: n * (self._log_n - math.log(max(1, self._pictures[gram]))) for gram, n in order.items()} for order in counted]
