"""Proof that a model looks: the same questions with the real picture, with none, and with another's; scores; a report."""

from .answers import is_right, normalise
from .run import evaluate
from .scores import CONDITIONS, Prediction, score

__all__ = ["CONDITIONS", "Prediction", "evaluate", "is_right", "normalise", "score"]
