"""Progress events: the only channel from a step to its caller.

A step calls `on_event` with one of the frozen types below, in the thread that called the step. An
exception raised by `on_event` stops the step as an interrupt does. A terminal draws bars from the
events (`cli`), a notebook prints them (`on_event=print`), and a test appends them to a list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` items of `task` are finished; `total` is None while it is unknown.

    `unit` names what is counted ("images", "rows", "bytes", "questions").
    """

    task: str
    done: int
    total: int | None
    unit: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """A message for the user that is not a result: a choice with its reason, or a warning."""

    text: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """An optimizer step of a stage. `loss` and `learning_rate` are None on rows without them;
    `memory` is the peak in bytes, 0 where it is not measured.
    """

    stage: str
    step: int
    steps: int
    loss: float | None
    learning_rate: float | None
    tokens_per_second: float
    memory: int


@dataclass(frozen=True, slots=True)
class StepSkipped:
    """An optimizer step that was skipped because of its gradient, and why."""

    stage: str
    step: int
    why: str


@dataclass(frozen=True, slots=True)
class HeldOutAnswer:
    """One held-out question with the model's answer and the reference."""

    question: str
    said: str
    right: str


@dataclass(frozen=True, slots=True)
class HeldOutEval:
    """Held-out questions evaluated during training: shares of `questions` answered correctly with
    the image (`accuracy`) and without (`blind`, None if it was not evaluated), and some `answers`.
    """

    stage: str
    step: int
    steps: int
    accuracy: float
    blind: float | None
    questions: int
    answers: tuple[HeldOutAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """The start of a part of a longer procedure, such as one variant of a comparison."""

    title: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A step of a longer procedure has finished: `result` is the return value of its function, such
    as a `TrainResult`.
    """

    result: object


Event = Progress | Notice | TrainingStep | StepSkipped | HeldOutEval | Section | Finished
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The default `on_event`: does nothing."""
