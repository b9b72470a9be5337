"""`phisense show`: a conversation as the model reads it, token by token, supervised tokens in
color.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.text import Text

from .chat_tokenizer import prepare_tokenizer
from .console import escape_controls
from .conversations import Conversation
from .conversations.read import read_rows, require_conversation
from .errors import ConversationError
from .parts import load_auto, resolve_part
from .prompt import IGNORE_INDEX, Prompt, Rendered
from .recipe import Recipe


@dataclass(frozen=True)
class RenderedRow:
    """`tokens` and `supervised` have one entry per token; the tokens of an image are folded into
    one entry `<image>xN`.
    """

    id: str
    images: tuple[str, ...]
    rendered: Rendered
    tokens: list[str]
    supervised: list[bool]

    def to_dict(self) -> dict[str, object]:
        """The JSON object of a rendered row: its token ids and labels."""
        counts = {"tokens": len(self.rendered.ids), "supervised": self.rendered.supervised}
        return {
            "id": self.id,
            "images": list(self.images),
            **counts,
            "ids": self.rendered.ids,
            "labels": self.rendered.labels,
        }

    def as_text(self) -> Text:
        """The row for a terminal: supervised tokens on green, others dim."""
        text = Text()
        counts = f"{len(self.rendered.ids)} tokens, {self.rendered.supervised} supervised"
        head = escape_controls(
            f"{self.id}  {', '.join(self.images) or 'no picture'}  {counts}", lines=False
        )
        text.append(f"{head}\n", style="bold")
        for token, taught in zip(self.tokens, self.supervised, strict=True):
            text.append(escape_controls(token), style="black on green" if taught else "dim")
        text.append("\n")
        return text


def render_rows(data: Path, recipe: Recipe, count: int) -> list[RenderedRow]:
    """The first `count` conversations, rendered with the recipe's tokenizer and number of image
    tokens.
    """
    prompt, image_tokens = _prompt_of(recipe)
    rows = []
    for conversation in (require_conversation(row, data) for row in islice(read_rows(data), count)):
        rendered = prompt.render_conversation(
            conversation.messages,
            [image_tokens] * len(conversation.images),
            sample=f"conversation {conversation.id}",
        )
        tokens, supervised = _fold_image_tokens(prompt, rendered, image_tokens)
        rows.append(RenderedRow(conversation.id, conversation.images, rendered, tokens, supervised))
    return rows


def length_checker(recipe: Recipe) -> Callable[[Conversation], list[tuple[str, str]]]:
    """For `check`: the faults of a conversation that exceeds the recipe's smallest `max_length`,
    with codes of `conversations.defects`.
    """
    prompt, image_tokens = _prompt_of(recipe)
    length = min(stage.max_length for stage in recipe.train.stages.values())

    def faults(conversation: Conversation) -> list[tuple[str, str]]:
        try:
            _, left_out = prompt.render_truncated(conversation, image_tokens, length)
        except ConversationError as error:
            return [
                (
                    "too-long",
                    str(error).split(". ")[0].replace(f"conversation {conversation.id} ", ""),
                )
            ]
        if left_out:
            return [("shortened", f"has {left_out} exchanges more than {length} tokens hold")]
        return []

    return faults


def _prompt_of(recipe: Recipe) -> tuple[Prompt, int]:
    """The recipe's prompt, and its number of tokens per image."""
    from transformers import AutoConfig, AutoTokenizer

    from .vision.encoders.loading import num_patches, vision_config

    folder = resolve_part(recipe.language.part)
    tokenizer = load_auto(AutoTokenizer, folder)
    prepare_tokenizer(tokenizer, load_auto(AutoConfig, folder).get_text_config().vocab_size)
    vision = recipe.vision
    seen = vision_config(resolve_part(vision.part), vision.encoder, vision.size)
    image_tokens = num_patches(seen) // recipe.projector.pool**2
    return Prompt(tokenizer), image_tokens


def _fold_image_tokens(
    prompt: Prompt, rendered: Rendered, image_tokens: int
) -> tuple[list[str], list[bool]]:
    """The text of each token; the tokens of an image become one entry."""
    tokens: list[str] = []
    supervised: list[bool] = []
    run = 0
    for token, label in zip(rendered.ids, rendered.labels, strict=True):
        run = run % image_tokens + 1 if token == prompt.image_id else 0
        if 0 < run < image_tokens:
            continue
        name = f"<image>x{run}" if run else str(prompt.tokenizer.convert_ids_to_tokens(token))
        tokens.append(_readable(name, prompt))
        supervised.append(label != IGNORE_INDEX)
    return tokens, supervised


def _readable(token: str, prompt: Prompt) -> str:
    """Replace the markers of SentencePiece and byte-level BPE for space and line break by the
    characters.
    """
    plain = token.replace("▁", " ").replace("Ġ", " ").replace("<0x0A>", "\n").replace("Ċ", "\n")
    chat = prompt.family.chat
    ends = (chat.end, chat.end_of_text) if not chat.after_end else (chat.end_of_text,)
    return f"{plain}\n" if plain in ends else plain
