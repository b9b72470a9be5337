"""Merge an adapter into its base: one native model folder, with measured losses.

steps.py      the steps, and what is measured
adding.py     the adapter's changes added to the base, and compared with the adapter's own layers
probes.py     the held-out questions, and a model's outputs on them
gate.py       what a merge may lose, and the report of one that lost more
written.py    the folder that was written, reopened and compared with the merged model
"""

from .steps import merge

__all__ = ["merge"]
