"""The tokenizer in a GGUF file, as tokenizer.json.

tokenizer.ggml.model      tokenizer.json
gpt2                      byte-level BPE: the merges in the file; `tokenizer.ggml.pre` names how a
                          text is split first
llama                     BPE with bytes as a last resort: merges from the order of the scores

transformers reads GGUF files, too, but splits as GPT-2 whatever it has no entry for, `smollm` among
them, and gives no token its `rstrip`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import PartError
from ..families import Family
from ..families.pre_tokenizers import ALIASES, PRE_TOKENIZERS

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # llama.cpp's token types
_KEY = "tokenizer.ggml."
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
#: Of an SPM vocabulary whose tags take the white space behind them, these do not.
_NEVER_STRIPPING = ("<unk>", "<s>")


def build_tokenizer(path: Path, keys: Mapping[str, Any], family: Family) -> Any:
    """The fast tokenizer that the keys of a validated GGUF file describe.

    Raises PartError for a vocabulary that is none, or a way of splitting that is not known.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    pieces: list[str] = keys[f"{_KEY}tokens"]
    kinds: list[int] = keys[f"{_KEY}token_type"]
    if len(set(pieces)) < len(pieces):
        raise PartError(f"the vocabulary of {path} has a piece twice", do="Download it again")
    vocab = {
        piece: i
        for i, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
        if kind != UNUSED
    }
    document = (
        _byte_level(path, keys, vocab)
        if keys[f"{_KEY}model"] == "gpt2"
        else _with_byte_fallback(keys, vocab)
    )
    document["added_tokens"] = [
        _added(i, pieces[i], kind == CONTROL, keys, family)
        for i, kind in enumerate(kinds)
        if kind in (CONTROL, USER_DEFINED)
    ]
    bos = keys.get(f"{_KEY}bos_token_id")
    if keys.get(f"{_KEY}add_bos_token") and bos is not None:
        document["post_processor"] = _prepending(pieces[bos], bos)
    try:
        inner = Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # tokenizers raises bare Exception
        raise PartError(
            f"the vocabulary of {path} makes no tokenizer",
            got=" ".join(str(error).split())[:200],
            do="Download it again",
        ) from error
    named = {name: pieces[keys[_KEY + key]] for name, key in _SPECIAL.items() if _KEY + key in keys}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    template = keys.get("tokenizer.chat_template")
    if isinstance(template, str):
        made.chat_template = template
    return made


def _byte_level(path: Path, keys: Mapping[str, Any], vocab: dict[str, int]) -> dict[str, Any]:
    name = keys.get(f"{_KEY}pre")
    splitting = PRE_TOKENIZERS.get(ALIASES.get(str(name), str(name)))
    if splitting is None:
        raise PartError(
            f"{path} splits texts in a way that is not known here",
            got=f"{_KEY}pre {str(name)[:40]}",
            wanted=" or ".join((*PRE_TOKENIZERS, *ALIASES)),
            do="Take the model's original folder with its tokenizer.json",
        )
    merges = [one.split(" ", 1) for one in keys[f"{_KEY}merges"]]
    return {
        "version": "1.0",
        "pre_tokenizer": splitting.document(),
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": merges,
            "ignore_merges": splitting.ignore_merges,
        },
    }


def _with_byte_fallback(keys: Mapping[str, Any], vocab: dict[str, int]) -> dict[str, Any]:
    from transformers.tokenization_utils_base import generate_merges

    scores = keys[f"{_KEY}scores"]
    merges = keys.get(f"{_KEY}merges")
    pairs = (
        [one.split(" ", 1) for one in merges]
        if isinstance(merges, list)
        else generate_merges(vocab, {piece: scores[i] for piece, i in vocab.items()})
    )
    space = "\u2581"
    normalizers = [{"type": "Replace", "pattern": {"String": " "}, "content": space}]
    if keys.get(f"{_KEY}add_space_prefix", True):
        normalizers.insert(0, {"type": "Prepend", "prepend": space})
    unknown = keys.get(f"{_KEY}unknown_token_id")
    pieces = keys[f"{_KEY}tokens"]
    return {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": space}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [list(pair) for pair in pairs],
            "unk_token": pieces[unknown] if unknown is not None else "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def _added(
    i: int, piece: str, special: bool, keys: Mapping[str, Any], family: Family
) -> dict[str, Any]:
    """An entry of `added_tokens`. Whether a tag takes the white space behind it is not in the file,
    so it is the family's.
    """
    strips = bool(family.chat.stripped) and piece not in (
        *_NEVER_STRIPPING,
        family.chat.end_of_text,
    )
    return {
        "id": i,
        "content": piece,
        "special": special,
        "single_word": False,
        "lstrip": False,
        "rstrip": strips,
        "normalized": False,
    }


def _prepending(piece: str, i: int) -> dict[str, Any]:
    """A post-processor that begins a text with one token."""
    first = {"SpecialToken": {"id": piece, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    other = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, other],
        "special_tokens": {piece: {"id": piece, "ids": [i], "tokens": [piece]}},
    }
