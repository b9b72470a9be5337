"""The benchmarks by the names that `phisense evaluate --task` and `phisense score` use."""

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

TASKS: dict[str, Task] = {
    task.name: task
    for task in (VQAV2, GQA, TEXTVQA, TEXTVQA_OCR, SCIENCEQA, POPE, MMBENCH, MME, CAPTIONS, OWN)
}

__all__ = ["TASKS", "find_task", "image_cache_folder"]


def find_task(name: str) -> Task:
    """The task of that name. Raises UsageError if there is none."""
    if name not in TASKS:
        raise UsageError("unknown task", got=name, wanted=", ".join(TASKS))
    return TASKS[name]


def image_cache_folder(name: str) -> Path:
    """The folder into which a task's embedded images are unpacked."""
    return cache_folder() / "pictures" / name
