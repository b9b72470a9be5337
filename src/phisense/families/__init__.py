"""Language families: which models can be the language part, and how each is told from the others.

base.py         `Family` and `ChatFormat`, the protocol: plain data
phi3.py         Phi-3 and Phi-3.5
phi4_mini.py    Phi-4-mini
smollm2.py      SmolLM2: Llama's class
qwen2_5.py      Qwen2.5
qwen3.py        Qwen3
pre_tokenizers.py  how byte-level BPE splits a text first, by llama.cpp's names
chatml.py       ChatML, the chat format of the last three
separate.py     layers whose matrices are not fused, for the last three

A family is told by facts of config.json (`family_of_config`) or of the tokenizer
(`family_of_tokenizer`), never by a name. Several families may share a model type, or the names of
their chat tokens: of those the one with the most marks is taken if they all hold, else the one that
has no marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .. import seams
from ..errors import PartError
from ..registry import Registry
from .base import ChatFormat, ConfigDefaults, Family, GGUFFormat

__all__ = [
    "DEFAULT_WINDOW",
    "FAMILIES",
    "LARGEST_WINDOW",
    "WINDOW_KEY",
    "ChatFormat",
    "ConfigDefaults",
    "Family",
    "GGUFFormat",
    "check_same_family",
    "context_window",
    "family_of_config",
    "family_of_tokenizer",
    "family_titles",
    "gguf_formats",
    "known_special_tokens",
    "missing_chat_tokens",
    "text_model_types",
    "token_id",
]

FAMILIES: Registry[Family] = Registry("language family", "FAMILY", seams.FAMILY_MODULES)

#: Tokens: the window of a model whose configuration is not at hand.
DEFAULT_WINDOW = 4096
#: Tokens: no family has a larger one.
LARGEST_WINDOW = max(family.max_window for family in FAMILIES.values())
#: In the configuration of a model folder: its window in tokens, if it is smaller than the family's.
WINDOW_KEY = "context_window"


def text_model_types() -> tuple[str, ...]:
    """Model types of config.json of every family."""
    return tuple(dict.fromkeys(family.model_type for family in FAMILIES.values()))


def family_titles() -> str:
    """The families' names for a message."""
    return " or ".join(family.title for family in FAMILIES.values())


def known_special_tokens() -> tuple[str, ...]:
    """The special tokens of every family, each once."""
    return tuple(
        dict.fromkeys(token for family in FAMILIES.values() for token in family.chat.special_tokens)
    )


def gguf_formats() -> Iterator[GGUFFormat]:
    """What llama.cpp has of the families."""
    return (family.gguf for family in FAMILIES.values() if family.gguf is not None)


def family_of_config(text: Any, *, part: object = "here") -> Family:
    """The family of a language model's configuration: an object of transformers or the dictionary
    in config.json.

    Raises PartError, naming `part`, a folder or hub id, if no family has its model type, or several
    claim it.
    """
    kind = _fact(text, "model_type")
    candidates = [family for family in FAMILIES.values() if family.model_type == kind]
    if not candidates:
        raise PartError(
            f"the language part {part} is no {family_titles()}",
            got=kind,
            wanted=" or ".join(text_model_types()),
            do=f"Use {_models()}",
        )
    return _select(
        candidates,
        lambda family: _held(
            _fact(text, key) == value for key, value in family.config_marks.items()
        ),
        f"config.json of the language part {part}",
    )


def family_of_tokenizer(tokenizer: Any) -> Family:
    """The family whose chat tokens a tokenizer has, with the ids that tell it from the others.

    Raises PartError if the tokens of every family are missing, or several claim it.
    """
    candidates = [family for family in FAMILIES.values() if not _missing(family, tokenizer)]
    if not candidates:
        nearest, missing = missing_chat_tokens(tokenizer)
        raise PartError(
            f"the language part's tokenizer lacks {nearest.title}'s chat tags",
            got=f"no {', '.join(missing)}",
            do=f"Use {_models()}",
        )
    return _select(
        candidates,
        lambda family: _held(
            token_id(tokenizer, token) == i for token, i in family.token_marks.items()
        ),
        "the language part's tokenizer",
    )


def missing_chat_tokens(tokenizer: Any) -> tuple[Family, list[str]]:
    """The family of which a tokenizer lacks the fewest chat tokens, and those."""
    lacking = [(family, _missing(family, tokenizer)) for family in FAMILIES.values()]
    return min(lacking, key=lambda found: len(found[1]))


def token_id(tokenizer: Any, token: str) -> int | None:
    """The id of a token, None if the tokenizer has none such; unlike `get_vocab`, which lists
    200,000 of them, it takes no time.
    """
    found: int | None = tokenizer.backend_tokenizer.token_to_id(token)
    return found


def check_same_family(text: Any, tokenizer: Any, folder: object) -> Family:
    """The family of both. Raises PartError if config.json and tokenizer are of different ones."""
    model, words = family_of_config(text), family_of_tokenizer(tokenizer)
    if model is not words:
        raise PartError(
            f"config.json and the tokenizer of {folder} are of different language families",
            got=f"{model.title} and {words.title}",
            wanted="one",
            do="Take all files from one and the same model",
        )
    return model


def context_window(config: Any) -> int:
    """Tokens that a conversation may have at most, by the configuration of a model or of its
    language part: an object of transformers or the dictionary in config.json.

    It is the least of what the family admits, what the positions were trained for, and the
    `WINDOW_KEY` of a model folder.
    """
    text = _fact(config, "text_config") or config
    most = family_of_config(text).max_window
    limits = (
        _fact(config, WINDOW_KEY),
        _fact(text, "original_max_position_embeddings"),
        _fact(text, "max_position_embeddings"),
    )
    return min(most, *(int(limit) for limit in limits if limit))


def _held(marks: Iterable[bool]) -> int:
    """The number of marks if they all hold, else -1."""
    held = list(marks)
    return len(held) if all(held) else -1


def _select(candidates: Iterable[Family], marks: Callable[[Family], int], what: str) -> Family:
    """The one candidate with the most marks that hold; `marks` is -1 where one does not."""
    found = [(family, marks(family)) for family in candidates]
    most = max(held for _, held in found)
    chosen = [family for family, held in found if held == most] if most >= 0 else []
    if len(chosen) == 1:
        return chosen[0]
    raise PartError(
        f"{what} does not say of which language family it is",
        got=" and ".join(family.title for family in chosen)
        or f"none of {', '.join(family.title for family, _ in found)}",
        wanted="the facts of one",
    )


def _missing(family: Family, tokenizer: Any) -> list[str]:
    return [token for token in family.chat.tokens if token_id(tokenizer, token) is None]


def _models() -> str:
    return " or ".join(family.models for family in FAMILIES.values())


def _fact(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
