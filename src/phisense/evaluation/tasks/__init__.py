"""The benchmarks by the names that `phisense evaluate --task` and `phisense score` use; each is one
file with a `TASK`, registered in `seams.TASK_MODULES`.
"""

from pathlib import Path

from ... import seams
from ...parts import cache_folder
from ...registry import Registry
from ..task import Task

TASKS: Registry[Task] = Registry("task", "TASK", seams.TASK_MODULES)

__all__ = ["TASKS", "image_cache_folder"]


def image_cache_folder(name: str) -> Path:
    """The folder into which a task's embedded images are unpacked."""
    return cache_folder() / "pictures" / name
