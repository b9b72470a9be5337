"""`import FILE.gguf`: a language part for training from a GGUF file, held to llama.cpp.

    FILE.gguf    --header validated, opened by llama.cpp in a process of its own-->
      | names and order of rows as in transformers, numbers dequantized
      v
    language part, staged, opened as any other part
      tokenizer  --same ids as llama.cpp's on some hundreds of texts, and every special token
      logits     --same as llama.cpp's, which widens the file to float32 by its own code-->
                                                                       only then is it kept

llama.cpp rounds what it multiplies with quantized weights, so the file itself gives slightly other
logits than its weights in float32. Both are reported; the gate is on the latter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoTokenizer

from .. import artifacts, safe_replace
from ..chat.llama_context import LlamaContext
from ..chat.llama_probe import can_repack_file, require_llama_cpp
from ..chat.llama_quantize import widen_file
from ..chat.llama_vocabulary import LlamaVocabulary
from ..chat.tokenizer_probes import find_differences, probe_texts
from ..cpu_limits import physical_cores
from ..errors import PartError
from ..families import Family, check_same_family
from ..model.agreement import Agreement, Gate, Outputs, compare_outputs
from ..opening.files import check_regular_file
from ..opening.gguf import validate_foreign_gguf
from ..opening.sandbox import check_llama_opens
from ..parts import load_auto, load_weights
from ..pipeline.progress import OnEvent, Progress, ignore
from ..pipeline.records import Record
from ..pipeline.results import SavedResult
from .gguf_model import family_of_file, make_config, make_model, stop_ids
from .gguf_tokenizer import build_tokenizer

PART_KIND = "language part"
#: Limits of the logits beside llama.cpp's in float32.
MAX_KL, MIN_TOP1 = 1e-4, 0.98
_WINDOW = 256
_TALKS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Describe a dog playing in the snow.", "A brown dog runs through deep snow with a red ball."),
    ("What is 12 times 12?", "12 times 12 is 144."),
    ("Write a line of Python.", "print(sum(x**2 for x in range(10)))  # 285"),
    ("Wie hei\u00dft du?", "Ich hei\u00dfe Anna, und wer bist du?"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitAgreement(Record):
    """Agreement with llama.cpp over `positions`: mean KL divergence in nats, share of the same
    likeliest tokens.
    """

    positions: int
    kl: float
    top1: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFImportReport(SavedResult):
    """A language part from a GGUF file, measured: `import_report.json`.

    family          the language family
    tensor_types    how many tensors the file has of each type
    dtype           of the part's weights, in which none of their numbers changed
    tied            whether the output matrix is the embedding
    texts           how many texts and special tokens have llama.cpp's ids
    widened         agreement with the file as llama.cpp widens it to float32; this is gated
    as_stored       agreement with the file as it is: llama.cpp rounds what it multiplies
    """

    FILE: ClassVar[str] = "import_report.json"
    PLACE: ClassVar[str] = "part"

    family: str
    tensor_types: Mapping[str, int]
    dtype: str
    tied: bool
    texts: int
    widened: LogitAgreement
    as_stored: LogitAgreement


def import_gguf(
    source: Path, out: Path, *, overwrite: bool = False, on_event: OnEvent = ignore
) -> GGUFImportReport:
    """Write the language part `out`, with `import_report.json`, and return the report.

    The weights pass through memory as a whole, dequantized. Raises PartError, writing nothing, for
    a file that is no language model of a known family, or a part that does not compute what
    llama.cpp computes with the file.
    """
    source = source.expanduser().resolve()
    if not source.exists():
        raise PartError(
            f"there is no file {source}", wanted="a GGUF file", do="Check the path, or download it"
        )
    check_regular_file(source, source.parent)
    safe_replace.check_can_write(out, kind=PART_KIND, overwrite=overwrite)
    header, _, sizes = validate_foreign_gguf(source)
    family = family_of_file(source, header)
    require_llama_cpp()
    can_repack_file(source)
    check_llama_opens(source)
    config = make_config(source, header, sizes, family)
    tokenizer = build_tokenizer(source, header.keys, family)
    check_same_family(config, tokenizer, source)
    about = {"imported": True, "made_from": [source.name]}
    with artifacts.staged_artifact(out, kind=PART_KIND, about=about, overwrite=overwrite) as aside:
        tokenizer.save_pretrained(aside)
        texts = _check_tokenizer(
            source,
            family,
            load_auto_tokenizer(aside, config),
            str(header.keys.get("tokenizer.ggml.pre")),
        )
        model = make_model(source, header, config, family, _progress("reading", on_event))
        _set_generation(model, header.keys)
        model.save_pretrained(aside)
        del model
        widened, as_stored = _compare(source, aside, family, on_event)
        report = GGUFImportReport(
            family=family.title,
            tensor_types=dict(Counter(one.type for one in header.tensors.values())),
            dtype=str(config.dtype).removeprefix("torch."),
            tied=config.tie_word_embeddings,
            texts=texts,
            widened=widened,
            as_stored=as_stored,
        )
        _check(report)
        artifacts.write_json(aside / GGUFImportReport.FILE, report.to_dict())
    return replace(report, folder=out)


def load_auto_tokenizer(folder: Path, config: Any) -> Any:
    """The tokenizer that was written, opened as that of a part, whose config.json is needed."""
    config.save_pretrained(folder)
    return load_auto(AutoTokenizer, folder)


def _set_generation(model: Any, keys: Mapping[str, Any]) -> None:
    """Stop tokens, greedy decoding."""
    chosen = model.generation_config
    stops = stop_ids(keys)
    chosen.eos_token_id = stops if len(stops) > 1 else stops[0] if stops else None
    chosen.bos_token_id = keys.get("tokenizer.ggml.bos_token_id")
    chosen.pad_token_id = keys.get("tokenizer.ggml.padding_token_id")


def _check_tokenizer(source: Path, family: Family, tokenizer: Any, splitting: str) -> int:
    """How many texts and special tokens have llama.cpp's ids.

    Raises PartError for one of which llama.cpp gives others, beyond what is known of it.
    """
    special = tokenizer.added_tokens_decoder
    with LlamaVocabulary(source) as vocabulary:
        behind = family.chat.end_of_text
        differences = find_differences(vocabulary, tokenizer, behind=behind, prefix_space=False)
        found = [str(one) for one in differences if not one.is_known(splitting)]
        for i, token in special.items():
            got = vocabulary.tokenize(token.content, special=True)
            ours = tokenizer(token.content, add_special_tokens=False)["input_ids"]
            if not got == ours == [i]:
                found.append(f"{token.content!r} as {got}, which the tokenizer reads as {ours}")
    if found:
        raise PartError(
            f"the tokenizer made of {source.name} differs from llama.cpp's",
            got=f"{found[0]}, and {len(found) - 1} others",
            wanted="the same tokens",
            do="Nothing was written; please report it with the name of the file",
        )
    return sum(1 for _ in probe_texts()) - len(differences) + len(special)


def _compare(
    source: Path, folder: Path, family: Family, on_event: OnEvent
) -> tuple[LogitAgreement, LogitAgreement]:
    """The written part's logits beside llama.cpp's on short conversations: with the file widened to
    float32, and with the file as it is.
    """
    tokenizer = load_auto(AutoTokenizer, folder)
    chat = family.chat
    rows = [
        tokenizer(
            f"{chat.tag_of('user')}{chat.stripped}{question}{chat.end}{chat.after_end}"
            f"{chat.tag_of('assistant')}{chat.stripped}{answer}{chat.end}",
            add_special_tokens=False,
        )["input_ids"]
        for question, answer in _TALKS
    ]
    wide = folder / "widened.gguf"
    on_event(Progress("comparing with llama.cpp", 0, 3, "models"))
    widen_file(source, wide, threads=physical_cores())
    ours = _torch_logits(folder, family, rows)
    on_event(Progress("comparing with llama.cpp", 1, 3, "models"))
    found = []
    for done, path in enumerate((wide, source)):
        compared = compare_outputs(Outputs(logits=_llama_logits(path, rows)), Outputs(logits=ours))
        found.append(
            LogitAgreement(positions=compared.positions, kl=compared.kl, top1=compared.top1)
        )
        on_event(Progress("comparing with llama.cpp", 2 + done, 3, "models"))
    wide.unlink()  # in the staging folder
    return found[0], found[1]


@torch.inference_mode()
def _torch_logits(folder: Path, family: Family, rows: Sequence[list[int]]) -> list[torch.Tensor]:
    model = load_weights(family.load_class(), folder, dtype=torch.float32).eval()
    return [model(input_ids=torch.tensor([ids])).logits[0] for ids in rows]


def _llama_logits(path: Path, rows: Sequence[list[int]]) -> list[torch.Tensor]:
    context = LlamaContext(
        path, window=_WINDOW, sequences=1, threads=physical_cores(), foreign=True
    )
    found = []
    for ids in rows:
        context.truncate_to(0)
        found.append(torch.from_numpy(context.decode(0, 0, ids, all_logits=True)))
    context.close()
    return found


def _check(report: GGUFImportReport) -> None:
    """Raise PartError if the part's logits are not llama.cpp's."""
    one = report.widened
    if not Gate(max_kl=MAX_KL, min_top1=MIN_TOP1).admits(Agreement(kl=one.kl, top1=one.top1)):
        raise PartError(
            "the imported part does not say what llama.cpp says, so it was not written",
            got=f"KL {one.kl:.2g}, the same likeliest token at {one.top1:.1%}",
            wanted=f"at most {MAX_KL:g} and at least {MIN_TOP1:.0%}",
            do="Please report it with the name of the file",
        )


def _progress(what: str, on_event: OnEvent) -> Callable[[int, int], None]:
    return lambda done, of: on_event(Progress(what, done, of, "tensors"))
