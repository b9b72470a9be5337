"""Training objectives by name: what a stage learns from a conversation, each one file with an
`OBJECTIVE`, registered in `seams.OBJECTIVE_MODULES`. A recipe chooses by a stage's key `objective`.
"""

from ... import seams
from ...registry import Registry
from .base import Batch, BatchLayout, Objective

OBJECTIVES: Registry[Objective] = Registry(
    "training objective", "OBJECTIVE", seams.OBJECTIVE_MODULES
)

__all__ = ["OBJECTIVES", "Batch", "BatchLayout", "Objective"]
