"""Measures a float16 file beside torch, and quantized files beside it, until one leaves enough
answers the same.

A quantization is chosen by what it does to answers. Of one that the user named, the figure is told,
with the smallest one that keeps enough of them; `auto` takes that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..chat.llama_context import LlamaContext, Logits
from ..chat.llama_quantize import Importance
from ..cpu_limits import physical_cores
from ..families import GGUFFormat
from ..pipeline.progress import OnEvent, Progress
from ..pipeline.results import FileAgreement
from . import gguf_agreement
from .gguf_agreement import Asked, EncodedQuestion, TorchReference
from .importance import ImportanceMeter
from .quantization import QUANTIZATIONS, quantize

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The file to keep, and the agreement of every file that was measured, by quantization.

    `holds` is the smallest measured quantization that leaves enough answers the same; None if none
    did. `calibration` is how many questions made the importance matrix, 0 without one.
    """

    quant: str
    holds: str | None
    calibration: int
    agreements: dict[str, FileAgreement]


def choose(
    model: Path, folder: Path, quant: str, made_as: GGUFFormat, asked: Asked, on_event: OnEvent
) -> Chosen:
    """Measure `model-f16.gguf` of the folder beside the model and write the quantization beside it.

    With `auto` the smallest one is kept that leaves enough answers the same. Raises ExportError if
    the float16 file disagrees with the model.
    """
    wanted = quant == AUTO or QUANTIZATIONS[quant].takes_importance
    comparison = _Comparison.of_f16(model, folder, made_as if wanted else None, asked, on_event)
    found = {"f16": comparison.f16}
    names = list(QUANTIZATIONS)
    start = 0 if quant == AUTO else names.index(quant)
    holds = None
    for name in names[start:]:
        if name != "f16":
            found[name] = comparison.quantized(name, on_event)
        if found[name].same_answers >= QUANTIZATIONS[name].min_same_answers:
            holds = name
            break
    kept = quant if quant != AUTO else holds or "f16"
    for name in found:
        if name != kept:
            (folder / f"model-{name}.gguf").unlink()  # in the staging folder
    return Chosen(kept, holds, comparison.calibration, found)


@dataclass(slots=True)
class _Comparison:
    """What torch computes for each question, and the answers of the float16 file."""

    folder: Path
    window: int
    read: Sequence[EncodedQuestion]
    right: Sequence[Logits]
    f16: FileAgreement
    importance: Importance = field(default_factory=dict)
    calibration: int = 0

    @classmethod
    def of_f16(
        cls,
        model: Path,
        folder: Path,
        made_as: GGUFFormat | None,
        asked: Asked,
        on_event: OnEvent,
    ) -> _Comparison:
        """Compare the float16 file with torch; with `made_as` measure the importance matrix, too.

        Torch's model is released afterwards.
        """
        reference = TorchReference(model)
        ends, window = reference.built.prompt.stop_ids, reference.built.window
        whole = open_context(folder / "model-f16.gguf", window)
        read = reference.encode(*asked.compared)
        said, right = [], []
        for one in _told("comparing f16 with torch", read, on_event):
            gguf_agreement.generate_answer(whole, one, ends)
            said.append(gguf_agreement.answer_logits(whole, one))
            right.append(reference.logits(one))
        f16 = gguf_agreement.measure_agreement(right, said, read)
        gguf_agreement.check_f16_agreement(f16)
        made = cls(folder, window, read, right, f16)
        if made_as is not None:
            meter = ImportanceMeter(reference.layers, made_as.layer_names)
            calibrating = reference.encode(*asked.calibrating)
            for one in _told("measuring what matters", calibrating, on_event):
                gguf_agreement.generate_answer(whole, one, ends)
                with meter.measuring():
                    reference.logits(one)
            made.importance, made.calibration = meter.matrix(), len(calibrating)
        whole.close()
        return made

    def quantized(self, quant: str, on_event: OnEvent) -> FileAgreement:
        """Write the quantized file and compare it."""
        path = self.folder / f"model-{quant}.gguf"
        on_event(Progress(f"quantizing to {quant}", 0, 1, "files"))
        quantize(self.folder / "model-f16.gguf", path, quant, physical_cores(), self.importance)
        on_event(Progress(f"quantizing to {quant}", 1, 1, "files"))
        small = open_context(path, self.window)
        said = [
            gguf_agreement.answer_logits(small, one)
            for one in _told(f"comparing {quant}", self.read, on_event)
        ]
        small.close()
        found = gguf_agreement.measure_agreement(self.right, said, self.read)
        gguf_agreement.check_finite_agreement(found, quant)
        return found


def open_context(path: Path, window: int) -> LlamaContext:
    """One conversation's context of a file."""
    return LlamaContext(path, window=window, sequences=1, threads=physical_cores())


def _told(what: str, questions: Sequence[Any], on_event: OnEvent) -> Iterator[Any]:
    """The questions, each reported as it is begun."""
    for done, one in enumerate(questions):
        on_event(Progress(what, done, len(questions), "questions"))
        yield one
    on_event(Progress(what, len(questions), len(questions), "questions"))
