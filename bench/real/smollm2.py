"""SmolLM2-135M-Instruct out of a GGUF file (4 bits a weight), by phisense's own import: Llama's
class, a tied head, its own tokenizer and ChatML template, held to llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from phisense.errors import PartError
from phisense.importing.gguf_part import import_gguf

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class Check:
    """Mean KL divergence in nats from llama.cpp with the file in float32, and with the file as it
    is; how many texts have llama.cpp's ids.
    """

    kl: float
    kl_as_stored: float
    texts: int


def build(gguf_file: Path, *, folder: Path) -> Check:
    """Write `folder` from `gguf_file`. Raises PartError if llama.cpp computes something else, or
    if the file is not SmolLM2 with a tied head.
    """
    report = import_gguf(gguf_file, folder)
    if (report.family, report.tied) != ("SmolLM2", True):
        raise PartError(
            f"{gguf_file.name} is not SmolLM2",
            got=f"{report.family}, its head {'tied' if report.tied else 'not tied'}",
            wanted="SmolLM2, its head tied to the embedding",
        )
    return Check(report.widened.kl, report.as_stored.kl, report.texts)
