r"""How byte-level BPE splits a text first: tokenizer.json's steps by llama.cpp's names
(`tokenizer.ggml.pre`), in both directions.

gpt-2          ByteLevel with GPT-2's own expression
smollm         each digit alone, then as gpt-2 (SmolLM2, StarCoder)
qwen2          Qwen2's expression: each digit alone, a letter takes the sign before it with it
llama-bpe      Llama 3's: up to three digits; words that are in the vocabulary are not merged
smaug-bpe      the same, merged
gpt-4o         o200k's: words begin with a capital, contractions belong to them (Phi-4-mini)
tekken         as gpt-4o without contractions, each digit alone

Names and expressions: llama.cpp, src/llama-vocab.cpp, which rewrites some of them; the comments
there have the originals. `publish/vocabulary_check.py` holds llama.cpp to the tokenizer on texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _by_words(digits: str) -> str:
    return (
        _CONTRACTIONS
        + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        + _SPACES
    )


def _by_case(after: str, digits: str) -> str:
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        f"{before}{_UPPER}*{_LOWER}+{after}|{before}{_UPPER}+{_LOWER}*{after}|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
    )


QWEN2, LLAMA3 = _by_words(r"\p{N}"), _by_words(r"\p{N}{1,3}")
O200K, TEKKEN = _by_case(f"{_CONTRACTIONS}?", r"\p{N}{1,3}"), _by_case("", r"\p{N}")


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A way of splitting: either GPT-2's expression or `pattern`, after `single_digits`.

    `ignore_merges` is tokenizer.json's: a word that is in the vocabulary is one token, whatever the
    merges make of it. `prefix_space` is ByteLevel's `add_prefix_space`, which llama.cpp does not
    have: a text's first space has to be written into it.
    """

    pattern: str | None = None
    single_digits: bool = False
    ignore_merges: bool = False
    prefix_space: bool = False

    def document(self) -> dict[str, Any]:
        """tokenizer.json's `pre_tokenizer`."""
        steps: list[dict[str, Any]] = []
        if self.single_digits:
            steps.append({"type": "Digits", "individual_digits": True})
        if self.pattern is not None:
            steps.append(
                {
                    "type": "Split",
                    "pattern": {"Regex": self.pattern},
                    "behavior": "Isolated",
                    "invert": False,
                }
            )
        steps.append(
            {
                "type": "ByteLevel",
                "add_prefix_space": self.prefix_space,
                "trim_offsets": True,
                "use_regex": self.pattern is None,
            }
        )
        return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


#: By llama.cpp's name.
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(),
    "smollm": PreTokenizer(single_digits=True),
    "qwen2": PreTokenizer(QWEN2),
    "llama-bpe": PreTokenizer(LLAMA3, ignore_merges=True),
    "smaug-bpe": PreTokenizer(LLAMA3),
    "gpt-4o": PreTokenizer(O200K),
    "tekken": PreTokenizer(TEKKEN, ignore_merges=True),
}
#: llama.cpp knows capitals and small letters of ASCII alone in these, and no combining marks, so
#: other letters are split otherwise (its regular expressions in src/llama-vocab.cpp).
APPROXIMATED = ("gpt-4o", "tekken")
#: Other names of llama.cpp's for the same way of splitting.
ALIASES: Mapping[str, str] = {
    "phi-2": "gpt-2",
    "starcoder": "smollm",
    "refact": "smollm",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "dbrx": "smaug-bpe",
    "deepseek-r1-qwen": "qwen2",
}
#: The regular expressions of all of them.
PATTERNS = tuple(dict.fromkeys(one.pattern for one in PRE_TOKENIZERS.values() if one.pattern))


def read_pre_tokenizer(document: Mapping[str, Any]) -> PreTokenizer | None:
    """How tokenizer.json splits a text; None if it is neither with GPT-2's expression nor with one
    other.
    """
    steps = list(_steps(document.get("pre_tokenizer")))
    single_digits = bool(steps) and steps[0] == {"type": "Digits", "individual_digits": True}
    splits = steps[1:-1] if single_digits else steps[:-1]
    last = steps[-1] if steps else {}
    pattern = _pattern(splits[0]) if splits else None
    if (
        last.get("type") != "ByteLevel"
        or len(splits) > 1
        or bool(splits) != (pattern is not None)
        or bool(last.get("use_regex", True)) != (pattern is None)
    ):
        return None
    model = document.get("model")
    return PreTokenizer(
        pattern=pattern,
        single_digits=single_digits,
        ignore_merges=bool(model.get("ignore_merges")) if isinstance(model, Mapping) else False,
        prefix_space=bool(last.get("add_prefix_space")),
    )


def name_of(splitting: PreTokenizer) -> str | None:
    """llama.cpp's name; None if it has none that is known here."""
    wanted = (splitting.pattern, splitting.single_digits, splitting.ignore_merges)
    for name, one in PRE_TOKENIZERS.items():
        if (one.pattern, one.single_digits, one.ignore_merges) == wanted:
            return name
    return None


def _pattern(step: Mapping[str, Any]) -> str | None:
    """The expression of a Split whose matches are the pieces."""
    pattern = step.get("pattern")
    keeps = (str(step.get("behavior")).lower(), bool(step.get("invert")))
    if step.get("type") != "Split" or keeps not in (("isolated", False), ("removed", True)):
        return None
    found = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    return found if isinstance(found, str) else None


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of nested sequences, one after the other."""
    if isinstance(step, Mapping) and step.get("type") == "Sequence":
        for one in step.get("pretokenizers") or ():
            yield from _steps(one)
    elif isinstance(step, Mapping):
        yield step
