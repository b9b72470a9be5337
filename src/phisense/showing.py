"""`phisense show`: a conversation as the model reads it, token by token, supervised ones in colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.text import Text

from .conversations import Conversation
from .conversations.read import read_rows, usable
from .errors import ConversationError
from .parts import open_auto, resolve_part
from .prompt import IGNORED, Prompt, Rendered, prepare_tokenizer
from .recipe import Recipe


@dataclass(frozen=True)
class Row:
    """`tokens` and `supervised` have one entry a token; the slots of a picture are folded into one token `<image>xN`."""

    id: str
    images: tuple[str, ...]
    rendered: Rendered
    tokens: list[str]
    supervised: list[bool]

    def as_dict(self) -> dict[str, Any]:
        counts = {"tokens": len(self.rendered.ids), "supervised": self.rendered.supervised}
        return {"id": self.id, "images": list(self.images), **counts, "ids": self.rendered.ids, "labels": self.rendered.labels}

    def as_text(self) -> Text:
        text = Text()
        counts = f"{len(self.rendered.ids)} tokens, {self.rendered.supervised} supervised"
        text.append(f"{self.id}  {', '.join(self.images) or 'no picture'}  {counts}\n", style="bold")
        for token, taught in zip(self.tokens, self.supervised, strict=True):
            text.append(token, style="black on green" if taught else "dim")
        text.append("\n")
        return text


def rendered_rows(data: Path, recipe: Recipe, count: int) -> list[Row]:
    """The first `count` conversations, rendered by the recipe's tokenizer with its number of slots a picture."""
    prompt, slots = _prompt_of(recipe)
    rows = []
    for conversation in (usable(row, data) for row in islice(read_rows(data), count)):
        rendered = prompt.render(conversation.messages, [slots] * len(conversation.images), sample=f"conversation {conversation.id}")
        tokens, supervised = _fold(prompt, rendered)
        rows.append(Row(conversation.id, conversation.images, rendered, tokens, supervised))
    return rows


def length_faults(recipe: Recipe) -> Callable[[Conversation], list[tuple[str, str]]]:
    """For the check: what the recipe's shortest length does to a conversation, in the classes of `conversations.defects`."""
    prompt, slots = _prompt_of(recipe)
    length = min(stage.length for stage in recipe.train.stages.values())

    def faults(conversation: Conversation) -> list[tuple[str, str]]:
        try:
            _, left_out = prompt.fit(conversation, slots, length)
        except ConversationError as error:
            return [("too-long", str(error).split(". ")[0].replace(f"conversation {conversation.id} ", ""))]
        if left_out:
            return [("shortened", f"has {left_out} exchanges more than {length} tokens hold")]
        return []

    return faults


def _prompt_of(recipe: Recipe) -> tuple[Prompt, int]:
    """The recipe's tokenizer as a prompt, and its slots a picture."""
    from transformers import AutoConfig, AutoTokenizer

    from .vision.encoders import patches, vision_config

    folder = resolve_part(recipe.language.part)
    tokenizer = open_auto(AutoTokenizer, folder)
    prepare_tokenizer(tokenizer, open_auto(AutoConfig, folder).get_text_config().vocab_size)
    slots = patches(vision_config(resolve_part(recipe.vision.part), recipe.vision.encoder)) // recipe.projector.pool**2
    return Prompt(tokenizer), slots


def _fold(prompt: Prompt, rendered: Rendered) -> tuple[list[str], list[bool]]:
    """Each token's text; a run of picture slots becomes one entry."""
    tokens: list[str] = []
    supervised: list[bool] = []
    run = 0
    for i, (token, label) in enumerate(zip(rendered.ids, rendered.labels, strict=True)):
        run = run + 1 if token == prompt.image_id else 0
        if run and i + 1 < len(rendered.ids) and rendered.ids[i + 1] == prompt.image_id:
            continue
        name = f"<image>x{run}" if run else str(prompt.tokenizer.convert_ids_to_tokens(token))
        tokens.append(_readable(name))
        supervised.append(label != IGNORED)
    return tokens, supervised


def _readable(token: str) -> str:
    """SentencePiece's and byte-level BPE's marks for a space and a line break as themselves."""
    plain = token.replace("▁", " ").replace("Ġ", " ").replace("<0x0A>", "\n").replace("Ċ", "\n")
    return f"{plain}\n" if plain in ("<|end|>", "<|endoftext|>") else plain
