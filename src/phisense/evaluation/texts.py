"""How near a text is to reference texts: BLEU, ROUGE-L, CIDEr-D."""

from __future__ import annotations

from collections.abc import Sequence

from .answers import normalise


def rouge_l(answer: str, accepted: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004), best over the accepted answers."""
    return max(_rouge_one(normalise(answer).split(), normalise(one).split()) for one in accepted)


def _rouge_one(said: list[str], wanted: list[str]) -> float:
    lengths = [0] * (len(wanted) + 1)
    for word in said:
        above = 0
        for j, other in enumerate(wanted, 1):
            above, lengths[j] = lengths[j], above + 1 if word == other else max(lengths[j], lengths[j - 1])
    common = lengths[-1]
    return 0.0 if not common else 2 * common / (len(said) + len(wanted))
