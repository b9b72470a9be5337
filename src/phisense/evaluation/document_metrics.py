"""Scores for short answers that are read off documents and charts.

    anls              average normalized Levenshtein similarity (Biten et al., 2019): partial credit
                      for an answer with a few wrong characters
    relaxed_accuracy  5 % tolerance for numbers, equality for everything else (Methani et al., 2020;
                      Masry et al., 2022, ChartQA)

Both reproduce what lmms-eval 0.7 computes, to the bit, including the quirks that its published
figures depend on; they are named below.
"""

from __future__ import annotations

from collections.abc import Sequence

ANLS_THRESHOLD = 0.5
RELATIVE_TOLERANCE = 0.05


def anls(answer: str, accepted: Sequence[str]) -> float:
    """Similarity of the answer to the reference that it is most similar to, or 0 if that is below
    `ANLS_THRESHOLD`.

    The similarity is 1 - (edit distance / length of the longer text). Case and repeated white space
    do not count for the distance, but lengths are those of the texts as written, in upper case. An
    answer at exactly the threshold keeps its credit, where the paper gives none.
    """
    best = max(_similarity(answer, one) for one in accepted)
    return best if best >= ANLS_THRESHOLD else 0.0


def _similarity(answer: str, reference: str) -> float:
    length = max(len(answer.upper()), len(reference.upper()))
    said, true = _folded(answer), _folded(reference)
    if length == 0:
        return 1.0
    if abs(len(said) - len(true)) > length * ANLS_THRESHOLD:
        return 0.0  # below the threshold, whatever the letters are
    return 1.0 - edit_distance(said, true) / length


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def edit_distance(one: Sequence[object], other: Sequence[object]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions, row by row."""
    row = list(range(len(other) + 1))
    for i, element in enumerate(one, 1):
        above_left, row[0] = row[0], i
        for j, against in enumerate(other, 1):
            above_left, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, above_left + (element != against)),
            )
    return row[-1]


def relaxed_accuracy(answer: str, reference: str) -> float:
    """1 if both are numbers and differ by at most 5 % of the reference, or if they are equal apart
    from case; else 0.

    "12%" is 0.12, so it is not within 5 % of "12". A reference of zero has no 5 %, and is compared
    as text. Numbers are what `float` reads: "1,000" and "$5" are texts, "1_000" and "nan" are not.
    White space counts where texts are compared.
    """
    said, true = _number(answer), _number(reference)
    if said is None or not true:
        return float(answer.lower() == reference.lower())
    return float(abs(said - true) / abs(true) <= RELATIVE_TOLERANCE)


def _number(text: str) -> float | None:
    percent = text.endswith("%")
    try:
        value = float(text.rstrip("%") if percent else text)
    except ValueError:
        return None
    return value / 100 if percent else value
