"""Hyperparameter search with Optuna: each trial is a complete training run, scored on held-out
questions.
"""

from .ranges import default_ranges, parse_range
from .study import Tuning

__all__ = ["Tuning", "default_ranges", "parse_range"]
