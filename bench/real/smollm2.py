"""SmolLM2-135M-Instruct out of a GGUF file (4 bits a weight), as a Llama folder of transformers as
HuggingFaceTB publishes it: bfloat16, tied head, its own tokenizer and ChatML template.

llama.cpp keeps the rows of the query and key matrices in the order of its rotary embedding, pairs
side by side; transformers keeps the first halves of all pairs before the second halves.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phisense.errors import PartError

from .packages import write_folder

if TYPE_CHECKING:
    import torch

    Weights = dict[str, torch.Tensor]

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
#: GGUF's name of a layer's tensor -> the name in `LlamaForCausalLM`.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: Largest difference of a logit to llama.cpp's in float32; logits reach 30.
TOLERANCE = 0.005
#: Mean KL divergence in nats that storing the weights in bfloat16 may cost.
MAX_ROUNDING = 0.002
TEXTS = (
    "The quick brown fox jumps over 12 lazy dogs in 1984.",
    "Hello  world\n\nA child in a pink dress is climbing up a set of stairs .",
    "It's naïve — café, 数学 3.14159!",
    "def f(x):\n    return x**2  # ok",
    "<|im_start|>user\nIs there a dog?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n",
)
CONTROL = 3  # llama.cpp's type of a special token


@dataclass(frozen=True, slots=True)
class Check:
    """Largest difference of a logit to llama.cpp's, and mean KL divergence of the stored bfloat16
    weights from the float32 ones, in nats.
    """

    logits: float
    rounding: float


@dataclass(frozen=True, slots=True)
class Source:
    """A GGUF file's metadata, and its weights in float32 by their names in transformers."""

    path: Path
    facts: dict[str, Any]
    weights: Weights


def build(gguf_file: Path, *, folder: Path) -> Check:
    """Write `folder` from `gguf_file`, held to llama.cpp before it is named.

    Raises PartError if the file is no Llama, or tokens or logits are not llama.cpp's.
    """
    source = read_gguf(gguf_file)
    found: list[Check] = []

    def write(aside: Path) -> None:
        write_tokenizer(source.facts, aside)
        write_model(source, aside)
        found.append(check(aside, source))

    write_folder(folder, write)
    return found[0]


def read_gguf(path: Path) -> Source:
    """Read metadata and weights, the rows of queries and keys in transformers' order."""
    import numpy as np
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    if facts["general.architecture"] != "llama":
        raise PartError(
            f"{path.name} is no Llama", got=facts["general.architecture"], wanted="llama"
        )
    heads = {
        "attn_q": facts["llama.attention.head_count"],
        "attn_k": facts["llama.attention.head_count_kv"],
    }
    weights: Weights = {}
    for tensor in reader.tensors:
        values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        layer = tensor.name.split(".")
        matrix = torch.from_numpy(values)
        if layer[0] == "blk" and layer[2] in heads:
            matrix = to_half_rotary(matrix, heads[layer[2]])
        weights[_name(layer)] = matrix.contiguous()
    return Source(path, facts, weights)


def _name(parts: list[str]) -> str:
    match parts:
        case ["token_embd", "weight"]:
            return "model.embed_tokens.weight"
        case ["output_norm", "weight"]:
            return "model.norm.weight"
        case ["blk", number, kind, "weight"] if kind in LAYER_NAMES:
            return f"model.layers.{number}.{LAYER_NAMES[kind]}.weight"
    raise PartError("the GGUF file has a tensor that a Llama has not", got=".".join(parts))


def to_half_rotary(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of a query or key matrix `(heads * size, width)` of llama.cpp: row 2i + j of
    a head becomes row i + j * size / 2.
    """
    rows, width = matrix.shape
    pairs = matrix.reshape(heads, rows // heads // 2, 2, width)
    return pairs.transpose(1, 2).reshape(rows, width)


def write_model(source: Source, folder: Path) -> None:
    """Write the weights in bfloat16, config.json and generation_config.json."""
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    model = LlamaForCausalLM(_config(source.facts))
    report = model.load_state_dict(source.weights, strict=False)
    if report.unexpected_keys or set(report.missing_keys) - {"lm_head.weight"}:
        raise PartError("the GGUF file's weights are not those of its Llama", got=report)
    model.tie_weights()
    ends = {
        "bos_token_id": source.facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": source.facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": source.facts["tokenizer.ggml.padding_token_id"],
    }
    model.generation_config = GenerationConfig(**ends)
    model.to(torch.bfloat16).save_pretrained(folder)


def _config(facts: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=facts["llama.vocab_size"],
        hidden_size=facts["llama.embedding_length"],
        intermediate_size=facts["llama.feed_forward_length"],
        num_hidden_layers=facts["llama.block_count"],
        num_attention_heads=facts["llama.attention.head_count"],
        num_key_value_heads=facts["llama.attention.head_count_kv"],
        max_position_embeddings=facts["llama.context_length"],
        rms_norm_eps=1e-5,  # the file has it in float32
        rope_theta=facts["llama.rope.freq_base"],
        tie_word_embeddings=True,
        bos_token_id=facts["tokenizer.ggml.bos_token_id"],
        eos_token_id=facts["tokenizer.ggml.eos_token_id"],
        pad_token_id=facts["tokenizer.ggml.padding_token_id"],
        dtype="bfloat16",
    )


def write_tokenizer(facts: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json, and tokenizer_config.json with the file's own chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if facts["tokenizer.ggml.pre"] != "smollm":
        raise PartError(
            "the GGUF file splits words otherwise",
            got=facts["tokenizer.ggml.pre"],
            wanted="smollm: each digit alone, the rest as GPT-2",
        )
    pieces = facts["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE({piece: number for number, piece in enumerate(pieces)}, merges)
    )
    digits = pre_tokenizers.Digits(individual_digits=True)
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        piece
        for piece, kind in zip(pieces, facts["tokenizer.ggml.token_type"], strict=True)
        if kind == CONTROL
    ]
    tokenizer.add_special_tokens(
        [AddedToken(one, normalized=False, special=True) for one in special]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        f"{name}_token": pieces[facts[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    described = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": facts["llama.context_length"],
        "chat_template": facts["tokenizer.chat_template"],
        **names,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2))


def check(folder: Path, source: Source) -> Check:
    """Hold tokenizer and logits to llama.cpp's, in float32, and the stored weights to those.

    Raises PartError if a text has other ids, or a figure is above its limit.
    """
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, report = LlamaForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise PartError("the Llama folder does not hold its weights", got=report)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    row = torch.tensor([[token for text in ids for token in text]])
    with torch.no_grad():
        stored = model.eval()(row).logits[0]
        model.load_state_dict(source.weights, strict=False)
        exact = model(row).logits[0]
    theirs_ids, theirs = _run_llama_cpp(source.path, row[0].tolist())
    for text, ours, wanted in zip(TEXTS, ids, theirs_ids, strict=True):
        if ours != wanted:
            raise PartError(f"the tokenizer reads {text!r} otherwise", got=ours, wanted=wanted)
    found = Check(
        float((exact - torch.from_numpy(theirs)).abs().max()),
        float(
            torch.nn.functional.kl_div(
                stored.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="sum"
            )
            / len(stored)
        ),
    )
    if not (found.logits <= TOLERANCE and found.rounding <= MAX_ROUNDING):
        raise PartError(
            "the Llama folder does not compute what llama.cpp computes",
            got=f"logits that differ by {found.logits:.2g}, rounding of {found.rounding:.2g} nats",
            wanted=f"at most {TOLERANCE:g} and {MAX_ROUNDING:g}",
        )
    return found


def _run_llama_cpp(path: Path, row: list[int]) -> tuple[list[list[int]], Any]:
    """llama.cpp's ids of `TEXTS`, and its logits `(tokens, vocabulary)` with float32 weights: with
    the file's own it would round activations, too.
    """
    import llama_cpp

    with tempfile.TemporaryDirectory() as scratch:
        wide = Path(scratch) / "float32.gguf"
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, True
        if llama_cpp.llama_model_quantize(str(path).encode(), str(wide).encode(), options):
            raise PartError(f"llama.cpp cannot write {path.name} in float32")
        engine = llama_cpp.Llama(
            str(wide), n_ctx=512, logits_all=True, verbose=False, type_k=0, type_v=0
        )
        ids = [engine.tokenize(text.encode(), add_bos=False, special=True) for text in TEXTS]
        engine.eval(row)
        logits = engine.scores[: len(row)].copy()
        engine.close()
    return ids, logits
