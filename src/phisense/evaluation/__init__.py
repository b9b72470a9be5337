"""Proof that a model looks: the same questions with the real picture, with none, and with another's; benchmarks; scores; a report.

task.py, tasks/        what a benchmark is, and each of them        reading.py         their official files
answers.py, yes_no.py  when an answer is right                      texts.py           how near a text is to others
scores.py, intervals.py  figures and their intervals                run.py, report.py  asking, and what is shown of it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .answers import is_right, normalise
from .scores import CONDITIONS, Prediction, score

if TYPE_CHECKING:
    from .run import evaluate

__all__ = ["CONDITIONS", "Prediction", "evaluate", "is_right", "normalise", "score"]


def __getattr__(name: str) -> Any:
    """`evaluate` needs torch, scoring does not: it is imported when it is asked for."""
    if name == "evaluate":
        from .run import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
