"""The benchmarks, by the name that `phisense evaluate --task` and `phisense score` know them by."""

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

__all__ = ["TASKS"]
