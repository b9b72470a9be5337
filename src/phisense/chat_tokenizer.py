"""Prepares a published tokenizer for a model that sees: `<image>`, the stop token, the chat
template; and compares what the template gives with what `Prompt` gives.

`<image>` takes the first free row of the vocabulary. Where none is free it takes the place of a
special token that the family's chat format never writes (`Family.image_tokens`): the id stays, and
nothing is resized.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from .conversations import IMAGE, Message
from .errors import PartError
from .families import family_of_tokenizer, token_id
from .families.base import ROLES
from .prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from .families import Family

_log = logging.getLogger(__name__)
_NAMED_TOKENS = 6
#: Conversations of every role, with and without a system message, with several turns, with line
#: breaks and spaces inside texts: whatever a tag may strip, or merge with, stands beside one.
_PROBES = (
    (Message("user", "What is this?"), Message("assistant", "A cat.")),
    (Message("system", "Be brief."), Message("user", f"{IMAGE}\nSeen?"), Message("assistant", "1")),
    (
        Message("system", "Zwei\n\nZeilen"),
        Message("user", f'"Quoted" {IMAGE}\n\n  and indented'),
        Message("assistant", "(12 + 3)\n\n- née, 数学 🙂"),
        Message("user", ". a\tb"),
        Message("assistant", "Yes.\n"),
    ),
    (Message("assistant", "Hello."), Message("user", "  Hi  "), Message("assistant", "How?")),
)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> int:
    """Add `<image>` below `vocab_size`, set the stop token and the chat template; returns the id.

    Phi-3.5 has 32,064 embedding rows for 32,011 tokens, so `<image>` becomes 32011; SmolLM2's
    vocabulary is full, so it becomes `<empty_output>`'s 16. Raises PartError if the tokenizer lacks
    the chat tags of a known family, the vocabulary has no place for `<image>`, or the template
    would give other ids than training.
    """
    family = family_of_tokenizer(tokenizer)
    chat = family.chat
    if token_id(tokenizer, IMAGE) is None:
        _add_image_token(tokenizer, vocab_size, family)
    tokenizer.eos_token = chat.end
    tokenizer.pad_token = chat.end_of_text
    tokenizer.padding_side = "left"
    tokenizer.chat_template = chat.template(IMAGE)
    tags = map(chat.tag_token, ROLES)
    tokenizer.chat_control_tokens = [IMAGE, chat.end, chat.end_of_text, *dict.fromkeys(tags)]
    prompt = Prompt(tokenizer)
    check_template(prompt)
    return prompt.image_id


def check_template(prompt: Prompt) -> None:
    """Raise PartError unless the tokenizer's chat template gives the ids that `prompt` gives, for
    every role: a tag that strips white space, or does not, against what its family's do, would
    part training from every other program that reads the folder.
    """
    for what, ours, theirs in chain(_tags(prompt), _renderings(prompt)):
        if ours == theirs:
            continue
        family, tokenizer = prompt.family, prompt.tokenizer
        at = next(
            (i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
            min(len(ours), len(theirs)),
        )
        strips = "strip" if family.chat.stripped else "do not strip"
        raise PartError(
            f"the tokenizer reads {family.title}'s template otherwise than training does",
            got=f"{_names(tokenizer, theirs, at)} at token {at + 1} of {what}",
            wanted=f"{_names(tokenizer, ours, at)}, as tags that {strips} white space after them"
            " give",
            do=(
                f"Set rstrip of the chat tags in tokenizer.json, as {family.title}'s own has it:"
                f" {'true' if family.chat.stripped else 'false'}"
            ),
        )


def _tags(prompt: Prompt) -> Iterator[tuple[str, list[int], list[int]]]:
    """Each tag and the end: the ids of it alone, and of it before white space that it strips."""
    tokenizer, chat = prompt.tokenizer, prompt.family.chat
    for text in dict.fromkeys((*map(chat.tag_of, ROLES), chat.end)):
        alone, followed = (
            tokenizer(text + behind, add_special_tokens=False)["input_ids"]
            for behind in ("", chat.stripped)
        )
        yield f"{text!r} before a line break", alone, followed


def _renderings(prompt: Prompt) -> Iterator[tuple[str, list[int], list[int]]]:
    """The ids of each probe by `prompt` and by the template: whole, and as a question."""
    tokenizer, chat = prompt.tokenizer, prompt.family.chat
    for messages in _PROBES:
        seen = [1] * sum(message.text.count(IMAGE) for message in messages)
        for asked in (False, True):
            said = messages[:-1] if asked else messages
            ours = (
                prompt.render_for_completion(said, seen)
                if asked
                else prompt.render_conversation(said, seen).ids
            )
            contents = (m.text if chat.trims else m.text.strip() for m in said)
            text = tokenizer.apply_chat_template(
                [
                    {"role": message.role, "content": content}
                    for message, content in zip(said, contents, strict=True)
                ],
                add_generation_prompt=asked,
                tokenize=False,
            )
            roles = ", ".join(message.role for message in said)
            yield (
                f"a conversation of {roles}",
                ours,
                tokenizer(text, add_special_tokens=False)["input_ids"],
            )


def _names(tokenizer: Any, ids: Sequence[int], at: int) -> str:
    return " ".join(map(repr, tokenizer.convert_ids_to_tokens(ids[at : at + 3]))) or "the end"


def _add_image_token(tokenizer: PreTrainedTokenizerFast, vocab_size: int, family: Family) -> None:
    """As a new token, or in the place of one that is never written.

    Raises PartError if there is no place.
    """
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    if max(len(tokenizer), *(i + 1 for i in known.values())) < vocab_size:
        tokenizer.add_tokens(
            [AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True
        )
        return
    special = {
        token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    named = set(map(str, tokenizer.special_tokens_map.values()))
    taken = next(
        (token for token in family.image_tokens if token in special and token not in named), None
    )
    if taken is None:
        unused = [token for token in special if token not in family.chat.tokens]
        raise PartError(
            f"the vocabulary has no free row for {IMAGE}",
            got=f"{len(tokenizer)} tokens in {vocab_size} rows",
            wanted=(
                "one row more, or a special token that no conversation has: "
                + (", ".join(family.image_tokens) or "its family knows of none")
            ),
            do=(
                f"Rename a special token that the model never reads or writes to {IMAGE} in"
                f" tokenizer.json, everywhere{_such_as(unused)}"
            ),
        )
    _log.info("the vocabulary is full: %s takes the place of %s", IMAGE, taken)
    _rename_token(tokenizer, taken, IMAGE)


def _such_as(unused: Sequence[str]) -> str:
    if not unused:
        return ""
    return (
        f"; special tokens that the chat format does not write: {', '.join(unused[:_NAMED_TOKENS])}"
    )


def _rename_token(tokenizer: PreTrainedTokenizerFast, old: str, new: str) -> None:
    """Give the special token `old` the name `new`; its id stays."""
    from tokenizers import Tokenizer

    document: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in document["added_tokens"]:
        if token["content"] == old:
            token.update(content=new, lstrip=False, rstrip=False, normalized=False)
    vocab = document["model"]["vocab"]
    if old in vocab:
        vocab[new] = vocab.pop(old)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(document))
    kept = [token for token in tokenizer.extra_special_tokens if str(token) != old]
    tokenizer.extra_special_tokens = kept
