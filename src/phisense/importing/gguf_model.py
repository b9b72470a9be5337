"""The language model in a GGUF file, as a model of transformers: configuration and weights.

The names of tensors are the family's, by which `export` writes them, so both directions are one
table. transformers' own reader (`from_pretrained(gguf_file=...)`) is not taken: it drops the rope
factors of a Phi-3, and what it does not know of a file it leaves at the class's defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import PartError
from ..families import FAMILIES, Family, family_of_config
from ..opening.gguf import GGUFSizes
from ..opening.gguf_header import GGUFHeader

Report = Callable[[int, int], None]
_KEY = "tokenizer.ggml."


def family_of_file(path: Path, header: GGUFHeader) -> Family:
    """The family that has the file's architecture, and whose marks its facts have.

    Raises PartError if none has.
    """
    architecture = header.keys["general.architecture"]
    types = {
        one.model_type
        for one in FAMILIES.values()
        if one.gguf is not None and one.gguf.architecture == architecture
    }
    (model_type,) = types  # the architecture was validated, and each is one class
    facts = {"model_type": model_type, "vocab_size": len(header.keys[f"{_KEY}tokens"])}
    return family_of_config(facts, part=path)


def make_config(path: Path, header: GGUFHeader, sizes: GGUFSizes, family: Family) -> Any:
    """The configuration of transformers. Raises PartError for rope factors that it cannot say."""
    from transformers import CONFIG_MAPPING

    keys, prefix = header.keys, f"{header.keys['general.architecture']}."
    context = keys[f"{prefix}context_length"]
    facts: dict[str, Any] = {
        "architectures": [family.model_class],
        "vocab_size": len(keys[f"{_KEY}tokens"]),
        "hidden_size": sizes.width,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.blocks,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_heads,
        "max_position_embeddings": context,
        "rms_norm_eps": _shortest(keys[f"{prefix}attention.layer_norm_rms_epsilon"]),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "rope_parameters": _rope(path, header, sizes, prefix),
        **{
            f"{name}_token_id": keys.get(f"{_KEY}{key}_token_id")
            for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        },
    }
    if family.model_type == "phi3":
        original = keys.get(f"{prefix}rope.scaling.original_context_length", context)
        facts |= {
            "original_max_position_embeddings": int(original),
            "sliding_window": int(keys.get(f"{prefix}attention.sliding_window", 0)) or None,
        }
    else:
        facts["head_dim"] = sizes.head
    return CONFIG_MAPPING[family.model_type](**facts)


def make_model(path: Path, header: GGUFHeader, config: Any, family: Family, report: Report) -> Any:
    """The model of transformers with the file's weights, dequantized by the package `gguf`.

    It has the smallest dtype in which no number of them changes; float32 for quantized ones.
    `report` is called with the number of tensors that are read, and of all.
    """
    with torch.device("meta"):
        model = family.load_class()(config)
    weights: dict[str, torch.Tensor] = {}
    lossless = {torch.float16, torch.bfloat16}
    for done, (name, values) in enumerate(_weights(path, config, family)):
        report(done, len(header.tensors))
        weights[name] = values
        lossless = {one for one in lossless if torch.equal(values.to(one).float(), values)}
    report(len(header.tensors), len(header.tensors))
    dtype = min(lossless, key=str, default=torch.float32)
    wanted = dict(model.state_dict())
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    if set(wanted) != set(weights):
        odd = sorted(set(wanted) ^ set(weights))[0]
        raise PartError(f"{path} does not fill a {family.title}", got=f"{odd} on one side only")
    cast = {name: one.to(dtype) for name, one in weights.items()}
    if config.tie_word_embeddings:
        cast["lm_head.weight"] = cast["model.embed_tokens.weight"]
    model.load_state_dict(cast, strict=True, assign=True)
    model.tie_weights()
    config.dtype = dtype
    return model.eval()


def _weights(path: Path, config: Any, family: Family) -> Iterator[tuple[str, torch.Tensor]]:
    """Each weight by its name in transformers, in float32."""
    import gguf
    from gguf.quants import dequantize

    made_as = family.gguf
    assert made_as is not None  # the file has its architecture
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    back = {there: here for here, there in made_as.layer_names.items()}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name.startswith("rope_"):
            continue  # in the configuration
        values = np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
        read = torch.from_numpy(values)
        if tensor.name in whole:
            yield whole[tensor.name], read
            continue
        _, layer, there, kind = tensor.name.split(".")
        here = back[there]
        if here in made_as.interleaved:
            heads = config.num_attention_heads if ".q_" in here else config.num_key_value_heads
            read = _halve(read, heads)
        yield f"model.layers.{layer}.{here}.{kind}", read


def _halve(values: torch.Tensor, heads: int) -> torch.Tensor:
    """The order of rows that transformers' rotary embedding takes: `export` interleaves them."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _rope(path: Path, header: GGUFHeader, sizes: GGUFSizes, prefix: str) -> dict[str, Any]:
    """The configuration's `rope_parameters`."""
    import gguf

    keys = header.keys
    facts: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": _shortest(keys.get(f"{prefix}rope.freq_base", 10_000.0)),
    }
    if sizes.rope_dimensions != sizes.head:
        facts["partial_rotary_factor"] = sizes.rope_dimensions / sizes.head
    if "rope_freqs.weight" in header.tensors:
        raise PartError(
            f"{path} has rope factors without what they were computed from",
            got="rope_freqs.weight, as Llama 3's files have it",
            do="Take the model's original folder",
        )
    if "rope_factors_long.weight" in header.tensors:
        read = {one.name: one.data for one in gguf.GGUFReader(path).tensors if "rope_f" in one.name}
        facts |= {
            "rope_type": "longrope",
            "original_max_position_embeddings": int(
                keys.get(f"{prefix}rope.scaling.original_context_length", 0)
            )
            or keys[f"{prefix}context_length"],
        }
        for length in ("long", "short"):
            values = read[f"rope_factors_{length}.weight"]
            facts[f"{length}_factor"] = [_shortest(float(one)) for one in values]
        if (scale := keys.get(f"{prefix}rope.scaling.attn_factor")) is not None:
            facts["attention_factor"] = float(scale)
    return facts


def _shortest(value: float) -> float:
    """A float32 as the shortest decimal number that is that float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def stop_ids(keys: Mapping[str, Any]) -> list[int]:
    """The tokens at which generation ends: of a sequence, a turn and a message."""
    found = (keys.get(f"{_KEY}{name}_token_id") for name in ("eos", "eot", "eom"))
    return list(dict.fromkeys(one for one in found if one is not None))
