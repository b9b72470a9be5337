"""Optuna over whole trainings, judged by held-out questions."""

from .study import Tuning, parse_range, usual_ranges

__all__ = ["Tuning", "parse_range", "usual_ranges"]
