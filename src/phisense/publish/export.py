"""`phisense export`: a model folder -> GGUF files for llama.cpp, with their agreement measured.

model-q4_k_m.gguf       the text model, for llama.cpp, Ollama and our engine
mmproj-f16.gguf         tower and projector, for llama.cpp and Ollama; only for projectors that
                        llama.cpp supports
Modelfile               for `ollama create NAME -f Modelfile`
vision/                 tower and projector, for our engine: a native model whose language model has
                        no layers, with tokenizer and processor
export.json             how far the GGUF files agree with the model
manifest.json           written last
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from .. import artifacts, safe_replace
from ..chat.llama_context import LlamaContext
from ..chat.llama_engine import EXPORT_KIND, VISION_FOLDER
from ..chat.llama_probe import can_repack, require_llama_cpp
from ..conversations import Question
from ..cpu_limits import physical_cores
from ..errors import UsageError
from ..families import context_window
from ..model.arithmetic import choose_arithmetic
from ..opening.files import load_manifest
from ..pipeline.progress import OnEvent, Progress
from ..pipeline.results import ExportResult, FileAgreement
from . import gguf_agreement
from .gguf import (
    QUANTIZATIONS,
    TENSOR_TYPES,
    format_of,
    projector_caveat,
    quantize,
    write_projector,
    write_text_model,
)
from .vocabulary import GGUFVocabulary, read_vocabulary
from .weights import WeightReader


def export(
    model: Path,
    out: Path,
    quant: str,
    questions: Sequence[Question],
    pictures: Sequence[Image],
    on_event: OnEvent,
    *,
    overwrite: bool = False,
) -> ExportResult:
    """Write `out` and return how far its files agree with the model.

    The float16 file is always written and measured; it is kept if `quant` is f16. `questions[i]` is
    about `pictures[i]`. Raises ExportError, with nothing written, if the float16 file disagrees
    with the model.
    """
    from ..model.folder import check_weights, open_model_config, open_processor

    if quant not in QUANTIZATIONS:
        raise UsageError("unknown --quant", got=quant, wanted=" or ".join(QUANTIZATIONS))
    config = open_model_config(model)
    format_of(config.text_config)
    require_llama_cpp()
    # Fails early if this machine cannot load the file.
    can_repack(TENSOR_TYPES[quant])
    safe_replace.check_can_write(out, kind=EXPORT_KIND, overwrite=overwrite)
    check_weights(model, config)
    processor, weights = open_processor(model, config), WeightReader(model)
    words = read_vocabulary(processor.tokenizer, config.text_config.vocab_size)
    about = _manifest_facts(model, config.text_config, quant)
    with artifacts.staged_artifact(
        out, kind=EXPORT_KIND, about=about, overwrite=overwrite
    ) as folder:
        whole = folder / "model-f16.gguf"
        write_text_model(
            weights,
            config.text_config,
            words,
            processor.tokenizer,
            whole,
            str(about["name"]),
            on_event,
        )
        why_not = write_projector(
            weights, config, processor.image_processor, folder / "mmproj-f16.gguf", on_event
        )
        write_vision(weights, config, model, folder / VISION_FOLDER)
        agreements = _measure(model, folder, quant, questions, pictures, on_event)
        if quant != "f16":
            whole.unlink()  # in the staging folder
        result = ExportResult(
            folder=out,
            quant=quant,
            questions=len(questions),
            mmproj=why_not is None,
            mmproj_why_not=why_not,
            arithmetic=choose_arithmetic("export", "cpu").to_dict(),
            mmproj_caution=projector_caveat(config) if why_not is None else None,
            f16=agreements["f16"],
            bytes={path.name: path.stat().st_size for path in sorted(folder.glob("*.gguf"))},
            extra={name: one.to_dict() for name, one in agreements.items() if name != "f16"},
        )
        artifacts.write_json(folder / ExportResult.FILE, result.to_dict())
        (folder / "Modelfile").write_text(
            _modelfile(
                f"model-{quant}.gguf",
                words,
                has_projector=why_not is None,
                window=context_window(config),
            )
        )
        # Provenance for reports about the exported model.
        for told in ("training.json", "merge_report.json"):
            if (model / told).is_file():
                shutil.copy(model / told, folder)
    return result


def _manifest_facts(model: Path, text: Any, quant: str) -> dict[str, object]:
    """The manifest's description of the exported files; `text` is the language model's
    configuration.
    """
    head = text.hidden_size // text.num_attention_heads
    facts: dict[str, object] = {
        "name": model.resolve().name,
        "quant": quant,
        "file": f"model-{quant}.gguf",
        "bytes_per_position": 4 * text.num_hidden_layers * text.num_key_value_heads * head,
    }
    if (model / artifacts.MANIFEST).is_file():  # the app loads the speech part with it
        facts["speech"] = load_manifest(model).about.get("speech")
    return facts


def _measure(
    model: Path,
    folder: Path,
    quant: str,
    questions: Sequence[Question],
    pictures: Sequence[Image],
    on_event: OnEvent,
) -> dict[str, FileAgreement]:
    """Generate answers with the float16 file; score them with it, torch and the quantized file.

    Returns the agreement of each file with torch, by its quantization.
    """
    reference = gguf_agreement.TorchReference(model)
    read = reference.encode(questions, pictures)
    ends = reference.built.prompt.stop_ids
    window = reference.built.window
    whole = _open_context(folder / "model-f16.gguf", window)
    said, right = [], []
    for done, one in enumerate(read):
        on_event(Progress("comparing f16 with torch", done, len(read), "questions"))
        gguf_agreement.generate_answer(whole, one, ends)
        said.append(gguf_agreement.answer_logits(whole, one))
        right.append(reference.logits(one))
    on_event(Progress("comparing f16 with torch", len(read), len(read), "questions"))
    whole.close()
    del reference
    found = {"f16": gguf_agreement.measure_agreement(right, said, read)}
    gguf_agreement.check_f16_agreement(found["f16"])
    if quant == "f16":
        return found
    on_event(Progress(f"quantising to {quant}", 0, 1, "files"))
    quantize(folder / "model-f16.gguf", folder / f"model-{quant}.gguf", quant, physical_cores())
    on_event(Progress(f"quantising to {quant}", 1, 1, "files"))
    small = _open_context(folder / f"model-{quant}.gguf", window)
    said = []
    for done, one in enumerate(read):
        on_event(Progress(f"comparing {quant}", done, len(read), "questions"))
        said.append(gguf_agreement.answer_logits(small, one))
    on_event(Progress(f"comparing {quant}", len(read), len(read), "questions"))
    small.close()
    found[quant] = gguf_agreement.measure_agreement(right, said, read)
    gguf_agreement.check_finite_agreement(found[quant], quant)
    return found


def _open_context(path: Path, window: int) -> LlamaContext:
    return LlamaContext(path, window=window, sequences=1, threads=physical_cores())


def write_vision(weights: WeightReader, config: Any, model: Path, folder: Path) -> None:
    """Write a native model folder that encodes and projects images; no language model layers."""
    from safetensors.torch import save_file

    folder.mkdir()
    own = type(config)(**config.to_dict())
    own.text_config.num_hidden_layers = 0
    own.text_config.layer_types = []
    own.text_config.vocab_size = 1
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(own.text_config, key, None)
    own.save_pretrained(folder)
    tensors = dict(weights.read_vision())
    like = next(iter(tensors.values()))
    for name, shape in (
        ("embed_tokens", (1, own.text_config.hidden_size)),
        ("norm", (own.text_config.hidden_size,)),
        ("lm_head", (1, own.text_config.hidden_size)),
    ):
        if f"{name}.weight" in weights.language:  # no lm_head if it is the embedding
            tensors[weights.language[f"{name}.weight"][1]] = torch.zeros(shape, dtype=like.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for path in model.iterdir():
        if path.name.startswith("tokenizer") or path.name in (
            "processor_config.json",
            "preprocessor_config.json",
            "chat_template.jinja",
        ):
            shutil.copy(path, folder)


def _modelfile(file: str, vocabulary: GGUFVocabulary, *, has_projector: bool, window: int) -> str:
    lines = [f"FROM ./{file}", *(["FROM ./mmproj-f16.gguf"] if has_projector else [])]
    lines.append(f'TEMPLATE """{vocabulary.ollama_template}"""')
    lines += [f'PARAMETER stop "{piece}"' for piece in vocabulary.stops]
    lines += [f"PARAMETER num_ctx {window}", "PARAMETER temperature 0"]
    return "\n".join(lines) + "\n"
