"""A model folder -> a folder for llama.cpp, measured: `phisense export`.

model-q4_k_m.gguf       the text model, for llama.cpp, Ollama and our engine
mmproj-f16.gguf         what sees, for llama.cpp and Ollama; only for projectors that llama.cpp knows
Modelfile               for `ollama create NAME -f Modelfile`
vision/                 what sees, for our engine: a native model whose language part has no layers, with tokenizer and processor
export.json             how far the files say what the model says
manifest.json           written last
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from .. import artefact
from ..chat.llama_context import LlamaContext
from ..chat.llama_engine import KIND, PICTURE_PART
from ..chat.llama_probe import repacks, require_llama_cpp
from ..chat.machine import cores
from ..conversations import Question
from ..errors import UsageError
from ..model.arithmetic import choose
from . import agreement
from .gguf import QUANTISATIONS, TENSOR_TYPES, Progress, caution, quantise, write_projector, write_text_model
from .vocabulary import Vocabulary, vocabulary
from .weights import Weights


def export(
    model: Path, out: Path, quant: str, questions: Sequence[Question], pictures: Sequence[Image], progress: Progress
) -> dict[str, Any]:
    """Writes `out` and returns the report. The float16 file is made and measured in any case, and kept if it is what was asked for.

    `questions[i]` is about `pictures[i]`. Raises ExportError, with nothing written, if the float16 file does not say what the model says.
    """
    from transformers import AutoConfig, AutoProcessor

    if quant not in QUANTISATIONS:
        raise UsageError("unknown --quant", got=quant, wanted=" or ".join(QUANTISATIONS))
    artefact.check_is_model(model)
    require_llama_cpp()
    repacks(TENSOR_TYPES[quant])  # raises, before anything is computed, where this machine cannot open the file
    if out.exists() and not _is_ours(out):
        raise UsageError(f"{out} would be overwritten", got="something that phisense export did not write", do="Choose another --out")
    config, processor, weights = (
        AutoConfig.from_pretrained(model, trust_remote_code=False),
        AutoProcessor.from_pretrained(model, trust_remote_code=False),
        Weights(model),
    )
    words = vocabulary(processor.tokenizer, config.text_config.vocab_size)
    text = config.text_config
    about: dict[str, Any] = {
        "name": model.resolve().name,
        "quant": quant,
        "file": f"model-{quant}.gguf",
        "bytes_per_position": 4 * text.num_hidden_layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads),
    }
    if (model / artefact.MANIFEST).is_file():  # the page opens the voice tab with it
        about["speech"] = artefact.read_json(model / artefact.MANIFEST)["about"].get("speech")
    with artefact.staged(out, kind=KIND, about=about) as folder:
        whole = folder / "model-f16.gguf"
        write_text_model(weights, text, words, processor.tokenizer, whole, about["name"], progress)
        why_not = write_projector(weights, config, processor.image_processor, folder / "mmproj-f16.gguf", progress)
        write_vision(weights, config, model, folder / PICTURE_PART)
        report: dict[str, Any] = {"quant": quant, "questions": len(questions), "mmproj": why_not is None, "mmproj_why_not": why_not}
        report["arithmetic"] = choose("export", "cpu").as_dict()
        report["mmproj_caution"] = caution(config) if why_not is None else None
        report |= _measure(model, folder, quant, questions, pictures, progress)
        if quant != "f16":
            whole.unlink()
        report["bytes"] = {path.name: path.stat().st_size for path in sorted(folder.glob("*.gguf"))}
        (folder / "Modelfile").write_text(_modelfile(about["file"], words, seeing=why_not is None, window=_window(config)))
        artefact.write_json(folder / "export.json", report)
        for told in ("training.json", "merge_report.json"):  # what a report of the exported model says of its making
            if (model / told).is_file():
                shutil.copy(model / told, folder)
    return report


def _is_ours(folder: Path) -> bool:
    path = folder / artefact.MANIFEST
    return not any(folder.iterdir()) if not path.is_file() else artefact.read_json(path).get("kind") == KIND


def _measure(
    model: Path, folder: Path, quant: str, questions: Sequence[Question], pictures: Sequence[Image], progress: Progress
) -> dict[str, Any]:
    """Answers by the float16 file; then torch, that file and the quantised one read them."""
    reference = agreement.Reference(model)
    read = reference.read(questions, pictures)
    ends = reference.built.prompt.stop_ids
    window = reference.built.window
    whole = _opened(folder / "model-f16.gguf", window)
    said, right = [], []
    for done, one in enumerate(read):
        progress("comparing f16 with torch", done, len(read))
        agreement.answer(whole, one, ends)
        said.append(agreement.logits(whole, one))
        right.append(reference.logits(one))
    progress("comparing f16 with torch", len(read), len(read))
    whole.close()
    del reference
    found = {"f16": agreement.agreement(right, said, read)}
    agreement.check(found["f16"])
    if quant == "f16":
        return found
    progress(f"quantising to {quant}", 0, 1)
    quantise(folder / "model-f16.gguf", folder / f"model-{quant}.gguf", quant, cores())
    progress(f"quantising to {quant}", 1, 1)
    small = _opened(folder / f"model-{quant}.gguf", window)
    said = []
    for done, one in enumerate(read):
        progress(f"comparing {quant}", done, len(read))
        said.append(agreement.logits(small, one))
    progress(f"comparing {quant}", len(read), len(read))
    small.close()
    found[quant] = agreement.agreement(right, said, read)
    agreement.check_finite(found[quant], quant)
    return found


def _opened(path: Path, window: int) -> LlamaContext:
    return LlamaContext(path, window=window, sequences=1, threads=cores())


def write_vision(weights: Weights, config: Any, model: Path, folder: Path) -> None:
    """A native model folder that encodes and projects pictures, and has no language to speak of."""
    from safetensors.torch import save_file

    folder.mkdir()
    own = type(config)(**config.to_dict())
    own.text_config.num_hidden_layers = 0
    own.text_config.layer_types = []
    own.text_config.vocab_size = 1
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(own.text_config, key, None)
    own.save_pretrained(folder)
    tensors = dict(weights.seeing())
    like = next(iter(tensors.values()))
    for name, shape in (
        ("embed_tokens", (1, own.text_config.hidden_size)),
        ("norm", (own.text_config.hidden_size,)),
        ("lm_head", (1, own.text_config.hidden_size)),
    ):
        tensors[weights.language[f"{name}.weight"][1]] = torch.zeros(shape, dtype=like.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for path in model.iterdir():
        if path.name.startswith("tokenizer") or path.name in ("processor_config.json", "preprocessor_config.json", "chat_template.jinja"):
            shutil.copy(path, folder)


def _window(config: Any) -> int:
    from ..model.folder import window

    return window(config)


def _modelfile(file: str, words: Vocabulary, *, seeing: bool, window: int) -> str:
    lines = [f"FROM ./{file}", *(["FROM ./mmproj-f16.gguf"] if seeing else [])]
    lines.append(f'TEMPLATE """{words.ollama_template}"""')
    lines += [f'PARAMETER stop "{piece}"' for piece in words.stops]
    lines += [f"PARAMETER num_ctx {window}", "PARAMETER temperature 0"]
    return "\n".join(lines) + "\n"
