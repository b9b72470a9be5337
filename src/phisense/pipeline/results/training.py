"""The result of training: `train.json` of a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ...intervals import Interval
from ..json_fields import JsonObject
from ..records import Record, key, omitted, rest
from .base import SavedResult

RUN_KIND = "run"  # of the manifest of a run folder


@dataclass(frozen=True, slots=True, kw_only=True)
class StageData(Record):
    """A data set of a stage: its file name, its rows, and its weight in the mixture."""

    name: str
    rows: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientComparison(Record):
    """The gradient of one part of the model with `weights` parameters: its norm, its cosine to the
    float32 gradient and the ratio of their norms; `error` and `numeric_ratio` compare the float32
    gradient with finite differences of the loss. None where one of the two is zero or was not
    measured.
    """

    part: str
    weights: int
    norm: float
    cosine: float | None
    norm_ratio: float | None
    numeric_ratio: float | None
    error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientCheckResult(Record):
    """A check of training's gradient at optimizer step `step`, on `rows` rows.

    It agreed in the last of `draws` draws of rows and labels; those before were rounded too much.
    """

    when: str
    step: int
    rows: int
    seconds: float
    parts: tuple[GradientComparison, ...]
    draws: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult(Record):
    """A finished stage of training.

    samples              conversations, packed into `rows`, of which `shortened` were truncated
    loss, last_loss      mean over all steps, and of the last logged step
    held_out_accuracy    share of held-out questions answered correctly at the stage's end, with the
    blind_accuracy       image and without it; None if not evaluated
    not_asked            reasons why held-out questions were not evaluated, one sentence each
    tokens_per_second    without padding
    projector_change     relative change of the projector, in the align stage only
    """

    samples: int
    data: tuple[StageData, ...] = ()
    rows: int
    shortened: int
    steps: int
    loss: float
    last_loss: float | None
    held_out_accuracy: float | None = key("held_out")
    blind_accuracy: float | None = key("blind")
    not_asked: tuple[str, ...] = key("unasked", default=())
    gradient_checks: tuple[GradientCheckResult, ...] = key("gradient_check", default=())
    tokens: int
    tokens_per_second: float
    seconds: float
    projector_change: float | None = omitted()
    extra: JsonObject = rest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingVerdict(Record):
    """Whether the trained model uses its images, by the last evaluation on held-out questions.

    `verdict` is "looks", "blind" (not better with the image than by one of the others), or "too
    few" (too few questions to tell, and no differences). `real`, `blind` and `shuffled` are the
    shares of `questions` about `pictures` different images that were answered correctly with the
    image, without it and with another question's; `constant` is the share that the commonest answer
    to each question gets, by the counts of `constant_source`. `difference` is real minus blind,
    `difference_shuffled` real minus shuffled, `difference_constant` real minus constant, each with
    its 95 % interval. Of the answers under blind and shuffled, `by_content` fell out of the
    answer's form and were replaced by the likeliest of the question's answers. Runs of earlier
    versions have no constant.
    """

    verdict: Literal["looks", "blind", "too few"] = "too few"
    questions: int = 0
    pictures: int = 0
    real: float | None = None
    blind: float | None = None
    shuffled: float | None = None
    difference: Interval | None = None
    difference_shuffled: Interval | None = None
    constant: float | None = None
    difference_constant: Interval | None = None
    constant_source: str | None = None
    by_content: int = 0

    @property
    def over(self) -> Mapping[str, Interval]:
        """The differences by what they are over; empty with too few questions."""
        found = {
            "blind": self.difference,
            "shuffled": self.difference_shuffled,
            "constant": self.difference_constant,
        }
        return {name: one for name, one in found.items() if one is not None}

    @property
    def hardest(self) -> str | None:
        """The largest of blind, shuffled and constant; None with too few questions."""
        over = self.over
        return min(over, key=lambda name: over[name].value) if over else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult(SavedResult):
    """A finished run: `train.json` of the run folder.

    arithmetic           number format, kernels, machine and library versions
    four_bit_codes       digest of the frozen 4-bit weights, None without quantization
    plain_weights        digest of the other frozen weights, None after full fine-tuning
    calibration          standard deviations of the text embeddings, and of a new projector's image
                         tokens before and after its calibration
    trainable            trained parameters; equals `trainable_expected`, computed from the shapes
    modules              names of the modules with LoRA, or of those that were trained without it
    projector_change     norm of the projector's change, relative to its norm before
    """

    FILE: ClassVar[str] = "train.json"
    PLACE: ClassVar[str] = "run"

    arithmetic: JsonObject = field(default_factory=dict)
    four_bit_codes: str | None
    plain_weights: str | None
    calibration: Mapping[str, float] | None = omitted()
    stages: Mapping[str, StageResult]
    trainable: int
    trainable_expected: int
    modules: tuple[str, ...]
    verdict: TrainingVerdict = key("looks")
    projector_change: float
    seconds: float
    extra: JsonObject = rest()
