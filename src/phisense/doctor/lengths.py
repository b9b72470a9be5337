"""How long a stage's rows are, where its data is at hand; else as long as the recipe allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..conversations import Conversation, read_conversations
from ..errors import PhisenseError
from ..parts import open_auto
from ..prompt import IGNORED, Prompt, Rendered, prepare_tokenizer
from ..recipe import Recipe
from ..training.packing import Packed, Sample, alone, pack, scores
from .shapes import Shapes, config_folder

SAMPLE = 512  # pictures whose conversations are rendered for the mean, evenly spaced, and the longest by their characters
LONGEST = 64
CHARACTERS = 3.5  # of a token, where there is no tokenizer
TAGS = 4  # tokens that the template adds to a message


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the longest row and of the mean one, of how many at most a loss is taken, and the most scores and keys in spans.

    A row is what goes through the model as one: a conversation, or with shared pictures all those about one. `rows` and
    `conversations` are None where the data is not there. `basis` says what the figures rest on.
    """

    longest: int
    supervised: int
    mean: float
    rows: int | None
    conversations: int | None
    basis: str
    scores: int
    behind: int

    def rows_of(self, conversations: int) -> int:
        """Rows that hold so many conversations on average, as training has them."""
        if self.rows is None or self.conversations is None:
            return conversations
        return max(1, round(conversations * self.rows / self.conversations))


def lengths(recipe: Recipe, stage: str, s: Shapes) -> Lengths:
    """Reads the stage's data if all of it is there, and renders some of it."""
    asked = recipe.train.stages[stage]
    sets = [recipe.path(one.path) for one in recipe.data_of(stage)]
    try:
        found = [one for path in sets for one in read_conversations(path)] if sets and all(path.exists() for path in sets) else []
    except PhisenseError as error:  # defects are `check`'s business
        return _unknown(asked.length, f"every row as long as {stage}.length: {error}")
    if not found:
        return _unknown(asked.length, f"every row as long as train.{stage}.length: its data is not there")
    prompt = _prompt(recipe, s)
    about: dict[Any, list[Conversation]] = {}
    for i, one in enumerate(found):
        about.setdefault(one.images or i, []).append(one)
    groups = list(about.values())
    longest = sorted(groups, key=lambda group: sum(len(m.text) for one in group for m in one.messages))[-LONGEST:]
    some = groups[:: -(-len(groups) // SAMPLE)]

    def rows_of(chosen: Sequence[Sequence[Conversation]]) -> list[Packed]:
        samples = [Sample(one.id, _render(one, prompt, s.slots, asked.length), one.images) for group in chosen for one in group]
        share = recipe.train.share_pictures and prompt is not None
        return pack(samples, prompt.image_id, asked.length) if share and prompt else [alone(sample) for sample in samples]

    usual = rows_of(some)
    every = [*rows_of(longest), *usual]
    conversations = sum(len(group) for group in some)
    return Lengths(
        max(len(row.rendered.ids) for row in every),
        max(sum(label != IGNORED for label in row.rendered.labels) for row in every),
        sum(len(row.rendered.ids) for row in usual) / len(usual),
        round(len(found) * len(usual) / conversations),
        len(found),
        f"{conversations:,} of {len(found):,} conversations "
        + ("rendered" if prompt else f"counted as {CHARACTERS} characters a token, none sharing its pictures"),
        max(scores(row)[0] for row in every),
        max(scores(row)[1] for row in every),
    )


def _unknown(length: int, basis: str) -> Lengths:
    return Lengths(length, length, length, None, None, basis, length**2, 0)


def _prompt(recipe: Recipe, s: Shapes) -> Prompt | None:
    from transformers import AutoTokenizer

    folder = config_folder(recipe.language.part)
    if folder is None or not (Path(folder) / "tokenizer.json").is_file():
        return None
    tokenizer: Any = open_auto(AutoTokenizer, folder)
    prepare_tokenizer(tokenizer, s.vocabulary)
    return Prompt(tokenizer)


def _render(one: Conversation, prompt: Prompt | None, slots: int, length: int) -> Rendered:
    if prompt is not None:
        try:
            return prompt.fit(one, slots, length)[0]
        except PhisenseError:  # a row that training will refuse by name
            pass
    spoken = {role: sum(round(len(m.text) / CHARACTERS) + TAGS for m in one.messages if m.role == role) for role in ("user", "assistant")}
    whole = [IGNORED] * (slots * len(one.images) + spoken["user"]) + [0] * spoken["assistant"]
    return Rendered([0] * min(len(whole), length), whole[:length])
