"""Figures from predictions: accuracy with its interval, POPE's, captions', and whether the model looks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..conversations import CAPTION_KINDS
from .answers import normalise, yes_or_no

CONDITIONS = ("real", "blind", "shuffled")
#: A model looks if its real score beats both controls at this level.
SIGNIFICANCE = 0.01


@dataclass(frozen=True, slots=True)
class Prediction:
    """One question asked under one condition."""

    id: str
    kind: str
    image: str | None
    shown: str | None
    question: str
    answers: tuple[str, ...]
    condition: str
    answer: str
    right: bool
    loss: float
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def score(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Per condition: accuracy overall and by kind, yes/no figures, caption figures, loss; and the verdict where all three were run."""
    by_condition = {name: [p for p in predictions if p.condition == name] for name in CONDITIONS}
    scores: dict[str, Any] = {name: _figures(members) for name, members in by_condition.items() if members}
    if all(by_condition.values()):
        scores["looks"] = verdict(by_condition["real"], by_condition["blind"], by_condition["shuffled"])
    return scores


def _figures(members: Sequence[Prediction]) -> dict[str, Any]:
    asked = [p for p in members if p.kind not in CAPTION_KINDS]
    told = [p for p in members if p.kind in CAPTION_KINDS]
    tokens = sum(p.tokens for p in members)
    figures: dict[str, Any] = {"accuracy": accuracy(asked), "loss": sum(p.loss for p in members) / max(1, tokens), "kinds": {}}
    for kind in sorted({p.kind for p in asked}):
        figures["kinds"][kind] = accuracy([p for p in asked if p.kind == kind])
    binary = [p for p in asked if {normalise(a) for a in p.answers} <= {"yes", "no"}]
    if binary:
        figures["yes_no"] = pope(binary)
    if told:
        figures["captions"] = {"n": len(told), "rouge_l": sum(rouge_l(p.answer, p.answers) for p in told) / len(told)}
    return figures


def accuracy(members: Sequence[Prediction]) -> dict[str, float]:
    right = sum(p.right for p in members)
    low, high = wilson(right, len(members))
    return {"n": len(members), "right": right, "value": right / max(1, len(members)), "low": low, "high": high}


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def pope(members: Sequence[Prediction]) -> dict[str, float]:
    """POPE's figures (Li et al., 2023), "yes" being the positive class."""
    pairs = [(yes_or_no(p.answer) == "yes", normalise(p.answers[0]) == "yes") for p in members]
    hits = sum(said and true for said, true in pairs)
    said, true = sum(s for s, _ in pairs), sum(t for _, t in pairs)
    precision, recall = hits / max(1, said), hits / max(1, true)
    return {
        "n": len(pairs),
        "accuracy": sum(s == t for s, t in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(1e-12, precision + recall),
        "share_of_yes": said / len(pairs),
    }


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


def verdict(real: Sequence[Prediction], blind: Sequence[Prediction], shuffled: Sequence[Prediction]) -> dict[str, Any]:
    """`looks` if the real pictures are significantly better than none and than others' (McNemar's exact test, one-sided)."""
    own = {p.id: p.right for p in real}
    p_values = {}
    for name, others in (("blind", blind), ("shuffled", shuffled)):
        flips = Counter((own[p.id], p.right) for p in others if p.id in own)
        p_values[name] = mcnemar(flips[True, False], flips[False, True])
    looks = all(value < SIGNIFICANCE for value in p_values.values())
    return {"verdict": "looks" if looks else "blind", "p_values": p_values, "level": SIGNIFICANCE}


def mcnemar(better: int, worse: int) -> float:
    """Probability of at least `better` of `better + worse` differing pairs under chance (exact binomial, one-sided)."""
    n = better + worse
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(better, n + 1)]
    return min(1.0, math.fsum(math.exp(value) for value in logs))
