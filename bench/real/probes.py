"""What stands beside a model's accuracy: always giving a question's commonest training answer, and
a ridge regression from the same image features to each question's answers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phisense.conversations import (
    CAPTION_KINDS,
    Question,
    read_conversations,
    read_questions,
)
from phisense.evaluation.answer_metrics import is_correct

ALPHAS = tuple(10.0**power for power in range(-2, 7))
#: Questions with fewer training rows are answered by their commonest answer.
FEWEST = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about an image, and its answer."""

    text: str
    image: str
    answer: str


@dataclass(frozen=True, slots=True)
class ProbeScores:
    """Share of the questions that the commonest answers and the ridge regressions get right."""

    constant: float
    ridge: float
    questions: int


def training_questions(paths: Iterable[Path]) -> list[Asked]:
    """The exchanges of the training conversations that have an image."""
    found = []
    for path in paths:
        for talk in read_conversations(path):
            for question, answer in pairwise(talk.messages):
                if (question.role, answer.role) == ("user", "assistant") and talk.images:
                    text = question.text.replace("<image>", "").strip()
                    found.append(Asked(text, talk.images[0], answer.text.strip()))
    return found


def short_questions(path: Path) -> list[Question]:
    """The held-out questions that have an image and a short answer."""
    return [
        one
        for one in read_questions(path)
        if one.image is not None and one.kind not in CAPTION_KINDS
    ]


def usual_answers(trained: Sequence[Asked]) -> dict[str, str]:
    """Each question's commonest answer in training; of equally common ones the first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one in trained:
        counts[one.text][one.answer] += 1
    return {text: answers.most_common(1)[0][0] for text, answers in counts.items()}


def constant_credits(trained: Sequence[Asked], asked: Sequence[Question]) -> dict[str, float]:
    """Credit of the commonest training answer to each question, by question id."""
    usual = usual_answers(trained)
    return {one.id: float(is_correct(usual.get(one.text, ""), one.answers)) for one in asked}


def score(
    trained: Sequence[Asked],
    asked: Sequence[Question],
    features: Callable[[Sequence[str]], npt.NDArray[np.float32]],
) -> ProbeScores:
    """Score both on `asked`. `features` returns `(images, width)` for image names."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    by_question: dict[str, list[Asked]] = defaultdict(list)
    for row in trained:
        by_question[row.text].append(row)
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in asked:
        groups[question.text].append(question)
    constant = constant_credits(trained, asked)
    ridge = 0.0
    for text, questions in groups.items():
        rows = by_question.get(text, [])
        if len(rows) < FEWEST or len({row.answer for row in rows}) < 2:
            ridge += sum(constant[one.id] for one in questions)
            continue
        probe = make_pipeline(StandardScaler(), RidgeClassifierCV(ALPHAS))
        probe.fit(features([row.image for row in rows]), [row.answer for row in rows])
        said = probe.predict(features([str(one.image) for one in questions]))
        ridge += sum(
            is_correct(str(answer), one.answers)
            for answer, one in zip(said, questions, strict=True)
        )
    return ProbeScores(sum(constant.values()) / len(asked), ridge / len(asked), len(asked))


def pooled_features(
    folder: Path,
) -> Callable[[Sequence[str]], npt.NDArray[np.float32]]:
    """Mean and largest value of each channel over an image's patches, from a feature store: what
    the projector is given, without where it is.
    """
    from phisense.vision.store import FeatureStore

    store = FeatureStore(folder)
    known: dict[str, npt.NDArray[np.float32]] = {}

    def features(names: Sequence[str]) -> npt.NDArray[np.float32]:
        for name in names:
            if name not in known:
                patches = store.features(name).float()
                known[name] = np.concatenate([patches.mean(0), patches.amax(0)])
        return np.stack([known[name] for name in names])

    return features
