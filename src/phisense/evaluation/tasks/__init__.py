"""The benchmarks, by the name that `phisense evaluate --task` and `phisense score` know them by."""

from pathlib import Path

from ...errors import UsageError
from ...parts import cache_folder
from ..task import Task
from .captions import CAPTIONS
from .gqa import GQA
from .mmbench import MMBENCH
from .mme import MME
from .own import OWN
from .pope import POPE
from .scienceqa import SCIENCEQA
from .textvqa import TEXTVQA, TEXTVQA_OCR
from .vqav2 import VQAV2

TASKS: dict[str, Task] = {task.name: task for task in (VQAV2, GQA, TEXTVQA, TEXTVQA_OCR, SCIENCEQA, POPE, MMBENCH, MME, CAPTIONS, OWN)}

__all__ = ["TASKS", "find_task", "unpacked"]


def find_task(name: str) -> Task:
    """Raises UsageError if there is none of that name."""
    if name not in TASKS:
        raise UsageError("unknown task", got=name, wanted=", ".join(TASKS))
    return TASKS[name]


def unpacked(name: str) -> Path:
    """Where pictures go that come inside a task's files."""
    return cache_folder() / "pictures" / name
