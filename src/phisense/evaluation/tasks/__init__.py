"""The benchmarks, by the name that `phisense evaluate --task` and `phisense score` know them by."""

from ..task import Task
from .own import OWN

TASKS: dict[str, Task] = {task.name: task for task in (OWN,)}

__all__ = ["TASKS"]
