"""Conversion of a tokenizer to GGUF: pieces, token types, and scores or merges.

tokenizer.json                       GGUF model    merge order
BPE with byte fallback               `llama`       scores: the earlier the merge, the higher (Phi-3,
                                                   converted from SentencePiece)
byte-level BPE                       `gpt2`        list of merges (the practice tokenizer)

How byte-level BPE splits a text before it merges is a name in the file, which follows from
tokenizer.json (`families/pre_tokenizers.py`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ..errors import PartError
from ..families import Family, family_of_tokenizer
from ..families.pre_tokenizers import PRE_TOKENIZERS, name_of, read_pre_tokenizer
from ..prompt import Prompt

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class GGUFVocabulary:
    """A vocabulary in GGUF terms.

    `pieces`, `kinds` (token types) and `scores` have one entry per row; `merges` are for `gpt2`
    only. `lead` is the space that the tokenizer puts before a text and llama.cpp does not.
    """

    model: str
    pre_tokenizer: str
    pieces: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]
    space_prefix: bool
    lead: str
    stops: list[str]
    family: Family

    @property
    def chat_template(self) -> str:
        """Jinja chat template for llama.cpp."""
        return self.family.chat.llama_cpp_template(self.lead)

    @property
    def ollama_template(self) -> str:
        """Chat template for Ollama, in Go's template language."""
        return self.family.chat.ollama_template(self.lead)

    def write(self, writer: Any, tokenizer: Any) -> None:
        """Write into a `gguf.GGUFWriter`; `tokenizer` provides the special token ids."""
        prompt = Prompt(tokenizer)
        end, turn, end_of_text = prompt.stop_ids
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre_tokenizer)
        writer.add_token_list([piece.encode() for piece in self.pieces])
        writer.add_token_types(self.kinds)
        if self.model == "gpt2":
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)
        writer.add_add_space_prefix(self.space_prefix)
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(False)
        writer.add_bos_token_id(
            tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end_of_text
        )
        # All three end generation wherever the file is loaded: end of sequence, of turn and of
        # message.
        writer.add_eos_token_id(end)
        writer.add_eot_token_id(end_of_text)
        writer.add_eom_token_id(turn)
        writer.add_pad_token_id(end_of_text)
        writer.add_chat_template(self.chat_template)


def read_vocabulary(tokenizer: Any, rows: int) -> GGUFVocabulary:
    """The vocabulary of a fast tokenizer for an embedding of `rows` rows.

    Raises PartError for a tokenizer type that GGUF cannot express.
    """
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    model = told["model"]
    bytes_last = bool(model.get("byte_fallback"))
    over_bytes = "ByteLevel" in json.dumps([told.get("pre_tokenizer"), told.get("decoder")])
    if model["type"] != "BPE" or bytes_last == over_bytes:
        raise PartError(
            "llama.cpp cannot be told of this tokenizer",
            got=f"{model['type']}{' over bytes' if over_bytes else ''}",
            wanted="BPE over bytes, or BPE with bytes as a last resort, as Phi-3's is",
        )
    known: dict[str, int] = tokenizer.get_vocab()
    if max(known.values()) >= rows:
        raise PartError(
            "the tokenizer has more tokens than the model rows",
            got=f"id {max(known.values())}",
            wanted=f"below {rows}",
        )
    added = {int(i): token for i, token in tokenizer.added_tokens_decoder.items()}
    pieces = [f"[PAD{i}]" for i in range(rows)]
    kinds = [UNUSED] * rows
    for piece, i in known.items():
        pieces[i] = piece
        if i in added:
            kinds[i] = CONTROL if added[i].special else USER_DEFINED
        else:
            kinds[i] = BYTE if bytes_last and _BYTE.fullmatch(piece) else NORMAL
    unknown = known.get(model.get("unk_token") or "<unk>")
    if bytes_last and unknown is not None:
        kinds[unknown] = UNKNOWN
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    family = family_of_tokenizer(tokenizer)
    end = family.chat.end
    behind_tag = tokenizer.convert_ids_to_tokens(
        tokenizer(f"{end}a", add_special_tokens=False)["input_ids"]
    )
    if known.get(behind_tag[0]) != known[end]:
        raise PartError(
            f"the model's tokenizer does not keep {end} whole",
            got=f"{behind_tag}",
            wanted=f"{end} first",
            do="Merge again",
        )
    prefixed = behind_tag[1][0] in "▁Ġ"
    return GGUFVocabulary(
        model="llama" if bytes_last else "gpt2",
        pre_tokenizer="default" if bytes_last else _pre_tokenizer(told),
        pieces=pieces,
        kinds=kinds,
        scores=_scores(pieces, kinds, merges),
        merges=[" ".join(merge) for merge in merges],
        space_prefix=prefixed and bytes_last,
        lead=" " if prefixed and not bytes_last else "",  # llama.cpp adds it for `llama` only
        stops=[pieces[i] for i in Prompt(tokenizer).stop_ids],
        family=family,
    )


def _pre_tokenizer(document: dict[str, Any]) -> str:
    """llama.cpp's name for how tokenizer.json splits a text. Raises PartError if it has none."""
    splitting = read_pre_tokenizer(document)
    name = None if splitting is None else name_of(splitting)
    if name is None:
        told = json.dumps(document.get("pre_tokenizer"))
        ignoring = ", with ignore_merges" if document["model"].get("ignore_merges") else ""
        raise PartError(
            "llama.cpp is not known to split texts as this tokenizer does",
            got=f"the pre_tokenizer {told[:200]}{ignoring}",
            wanted=f"that of {', '.join(PRE_TOKENIZERS)}",
            do="Serve the model folder itself, or add it to families/pre_tokenizers.py",
        )
    return name


def _scores(pieces: list[str], kinds: list[int], merges: list[tuple[str, ...]]) -> list[float]:
    """Negative rank of the first merge that produces a piece.

    A piece that no merge produces is never looked up, and ranks last.
    """
    first: dict[str, int] = {}
    for place, merge in enumerate(merges):
        first.setdefault("".join(merge), place)
    last = -float(len(merges))
    return [
        (
            0.0
            if kind in (BYTE, UNKNOWN)
            else (
                -1000.0
                if kind in (CONTROL, USER_DEFINED)
                else -float(first[piece])
                if piece in first
                else last
            )
        )
        for piece, kind in zip(pieces, kinds, strict=True)
    ]
