"""Export a model folder as GGUF files for llama.cpp, and measure their agreement with torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from .progress import OnEvent, ignore
from .results import ExportResult


def export(
    model: str | Path,
    *,
    quant: str = "q4_k_m",
    out: str | Path | None = None,
    overwrite: bool = False,
    data: Sequence[str | Path] = (),
    images: Sequence[str | Path] = (),
    limit: int = 100,
    on_event: OnEvent = ignore,
) -> ExportResult:
    """Write the model folder `model` as GGUF files, and measure how far they agree with it.

    quant    q4_k_m, q5_k_m, q6_k, q8_0 or f16; or auto, the smallest that leaves at least 85 % of
             the answers the same (q8_0: 95 %)
    out      the folder to write; `MODEL-QUANT` beside the model if None (`MODEL-gguf` with auto)
    data     files of held-out questions whose answers are compared, at most `limit` of them, evenly
             spaced, with `images`, the folders of their images; if empty, 24 questions about drawn
             images. The importance matrix of the quantization is made on others of them

    Raises UsageError for an unknown quantization or questions without images. Raises ExportError,
    with nothing written, if the float16 file does not reproduce the model's logits, or llama.cpp
    does not read texts as the model's tokenizer does.
    """
    from .. import artifacts
    from ..conversations import read_questions

    if bool(data) != bool(images):
        raise UsageError(
            "questions need both their rows and their pictures",
            wanted="--data FILE --images DIR, or neither",
        )
    model = Path(model)
    artifacts.check_is_model(model)
    questions = [q for file in data for q in read_questions(Path(file))]
    from ..publish.candidates import AUTO
    from ..publish.export import export as export_gguf
    from ..publish.gguf_agreement import drawn_set, sample_questions

    asked = sample_questions(questions, list(map(Path, images)), limit) if data else drawn_set()
    place = model.resolve()
    ending = "gguf" if quant == AUTO else quant
    folder = place.with_name(f"{place.name}-{ending}") if out is None else Path(out)
    return export_gguf(model, folder, quant, asked, on_event, overwrite=overwrite)
