"""The metrics of a demo: the content of `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..pipeline.records import Record, local


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoAccuracy(Record):
    """Accuracy by data set, and the number of `questions` in each.

    real                   held-out scenes with their image
    blind, shuffled        the same without an image, and with another question's image
    unseen_combinations    color-shape pairs that no training image shows
    digits                 handwriting that no training image shows
    """

    real: float
    unseen_combinations: float
    digits: float
    blind: float
    shuffled: float
    questions: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoMerge(Record):
    """What the merge changed; see `MergeResult`."""

    delta_loss: float
    same_answers: float
    projector_change: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoTraining(Record):
    """What was trained, and the verdict of training; see `TrainResult`."""

    projector_change: float
    trainable: int
    trainable_expected: int
    looks: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSpeech(Record):
    """Word error rate over `recordings` of held-out voices; accuracy on their `asked` questions."""

    wer: float
    recordings: int
    asked: int
    answer_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorResult(Record):
    """A metric, its threshold, and whether it is met; None where it does not apply."""

    got: object
    wanted: str
    met: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSummary(Record):
    """Summary of a demo.

    `seconds` are per step; `looks` is the verdict of the evaluation; `folder` is the demo's.
    """

    folder: Path = local(default=Path())
    seconds: Mapping[str, float]
    seed: int
    scenes: int
    cores: int | None
    accuracy: DemoAccuracy
    looks: str
    merge: DemoMerge
    train: DemoTraining
    speech: DemoSpeech
    floors: Mapping[str, FloorResult] = field(default_factory=dict)
