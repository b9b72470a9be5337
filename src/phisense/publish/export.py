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
from pathlib import Path
from typing import Any

import torch

from .. import artifacts, safe_replace
from ..chat.llama_engine import EXPORT_KIND, VISION_FOLDER
from ..chat.llama_probe import can_repack, require_llama_cpp
from ..chat.llama_vocabulary import LlamaVocabulary
from ..chat.tokenizer_probes import find_differences
from ..errors import ExportError, UsageError
from ..families import context_window
from ..families.separate import head_width
from ..model.arithmetic import choose_arithmetic
from ..opening.files import load_manifest
from ..pipeline.progress import OnEvent
from ..pipeline.results import ExportResult
from .candidates import AUTO, choose
from .gguf_agreement import Asked
from .gguf_projector import projector_caveat, write_projector
from .gguf_text import format_of, write_text_model, write_vocabulary
from .quantization import QUANTIZATIONS
from .vocabulary import GGUFVocabulary, read_vocabulary
from .weights import WeightReader


def export(
    model: Path, out: Path, quant: str, asked: Asked, on_event: OnEvent, *, overwrite: bool = False
) -> ExportResult:
    """Write `out` and return how far its files agree with the model.

    The float16 file is always written and measured; it is kept if `quant` is f16, or `auto` and no
    smaller file leaves enough answers the same. Raises ExportError, with nothing written, if
    llama.cpp tokenizes otherwise than the model's tokenizer, or the float16 file disagrees with the
    model.
    """
    from ..model.folder import check_weights, open_model_config, open_processor

    if quant not in (*QUANTIZATIONS, AUTO):
        raise UsageError("unknown --quant", got=quant, wanted=" or ".join((*QUANTIZATIONS, AUTO)))
    config = open_model_config(model)
    made_as = format_of(config.text_config)
    require_llama_cpp()
    # Fails early if this machine cannot load the file.
    for name in QUANTIZATIONS if quant == AUTO else (quant,):
        can_repack(QUANTIZATIONS[name].tensor_types)
    safe_replace.check_can_write(out, kind=EXPORT_KIND, overwrite=overwrite)
    check_weights(model, config)
    processor, weights = open_processor(model, config), WeightReader(model)
    words = read_vocabulary(processor.tokenizer, config.text_config.vocab_size)
    about = _manifest_facts(model, config.text_config)
    with artifacts.staged_artifact(
        out, kind=EXPORT_KIND, about=about, overwrite=overwrite
    ) as folder:
        text, tokenizer, name = config.text_config, processor.tokenizer, str(about["name"])
        caution = check_vocabulary(text, words, tokenizer, folder / "vocabulary.gguf", name)
        whole = folder / "model-f16.gguf"
        write_text_model(weights, text, words, tokenizer, whole, name, on_event)
        why_not = write_projector(
            weights, config, processor.image_processor, folder / "mmproj-f16.gguf", on_event
        )
        write_vision(weights, config, model, folder / VISION_FOLDER)
        chosen = choose(model, folder, quant, made_as, asked, on_event)
        about |= {"quant": chosen.quant, "file": f"model-{chosen.quant}.gguf"}
        result = ExportResult(
            folder=out,
            quant=chosen.quant,
            holds=chosen.holds,
            min_same_answers=QUANTIZATIONS[chosen.quant].min_same_answers,
            calibration_questions=chosen.calibration,
            calibrated_on=asked.calibrated_on if chosen.calibration else None,
            questions=len(asked.compared[0]),
            mmproj=why_not is None,
            mmproj_why_not=why_not,
            arithmetic=choose_arithmetic("export", "cpu").to_dict(),
            mmproj_caution=projector_caveat(config) if why_not is None else None,
            tokenizer_caution=caution,
            f16=chosen.agreements["f16"],
            bytes={path.name: path.stat().st_size for path in sorted(folder.glob("*.gguf"))},
            extra={name: one.to_dict() for name, one in chosen.agreements.items() if name != "f16"},
        )
        artifacts.write_json(folder / ExportResult.FILE, result.to_dict())
        (folder / "Modelfile").write_text(
            _modelfile(
                f"model-{chosen.quant}.gguf",
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


def _manifest_facts(model: Path, text: Any) -> dict[str, object]:
    """The manifest's description of the exported files, without the quantization; `text` is the
    language model's configuration.
    """
    keys = text.num_key_value_heads * head_width(text)
    facts: dict[str, object] = {
        "name": model.resolve().name,
        "bytes_per_position": 4 * text.num_hidden_layers * keys,
    }
    if (model / artifacts.MANIFEST).is_file():  # the app loads the speech part with it
        facts["speech"] = load_manifest(model).about.get("speech")
    return facts


def check_vocabulary(
    config: Any, words: GGUFVocabulary, tokenizer: Any, path: Path, name: str
) -> str | None:
    """Write the vocabulary alone to `path`, let llama.cpp read it, and remove it.

    Returns a warning for other programs, or None. Raises ExportError, naming a text, if llama.cpp
    gives other ids than the tokenizer, beyond what is known of it.
    """
    write_vocabulary(config, words, tokenizer, path, name)
    with LlamaVocabulary(path) as vocabulary:
        found = find_differences(
            vocabulary,
            tokenizer,
            behind=words.family.chat.end_of_text,
            prefix_space=bool(words.lead),
        )
    path.unlink()
    odd = [one for one in found if not one.is_known(words.pre_tokenizer)]
    if odd:
        raise ExportError(
            f"llama.cpp splits texts otherwise than the model's tokenizer ({words.pre_tokenizer})",
            got=f"{odd[0]}, and {len(odd) - 1} other texts",
            wanted="the same tokens",
            do="Nothing was written; please report it with the model's tokenizer.json",
        )
    if not found:
        return None
    return (
        f"llama.cpp's {words.pre_tokenizer} knows cases and marks of ASCII letters alone, so it"
        f" splits {len(found)} of the texts otherwise, such as {found[0].text!r}; our engine reads"
        " texts with the model's own tokenizer"
    )


def write_vision(weights: WeightReader, config: Any, model: Path, folder: Path) -> None:
    """Write a native model folder that encodes and projects images; no language model layers."""
    from safetensors.torch import save_file

    folder.mkdir()
    own = type(config)(**config.to_dict())
    own.text_config.num_hidden_layers = 0
    if getattr(own.text_config, "layer_types", None):
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
