"""How long a stage's rows are, where its data is at hand; else as long as the recipe allows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..conversations import Conversation, read_conversations
from ..errors import PhisenseError
from ..prompt import Prompt, prepare_tokenizer
from ..recipe import Recipe
from .shapes import Shapes, config_folder

SAMPLE = 512  # rows rendered for the mean, evenly spaced, and the longest by their characters for the longest
LONGEST = 64
CHARACTERS = 3.5  # of a token, where there is no tokenizer
TAGS = 4  # tokens that the template adds to a message


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the longest row and of the mean one; `rows` is None where the data is not there. `basis` says what they rest on."""

    longest: int
    mean: float
    rows: int | None
    basis: str


def lengths(recipe: Recipe, stage: str, s: Shapes) -> Lengths:
    """Reads the stage's data if all of it is there, and renders some of it."""
    asked = recipe.train.align if stage == "align" else recipe.train.instruct
    assert asked is not None
    files = [recipe.path(file) for file in (recipe.data.align if stage == "align" else recipe.data.instruct)]
    try:
        rows = [row for file in files for row in read_conversations(file)] if files and all(f.is_file() for f in files) else []
    except PhisenseError as error:  # defects are `check`'s business
        return Lengths(asked.length, asked.length, None, f"every row as long as {stage}.length: {error}")
    if not rows:
        return Lengths(asked.length, asked.length, None, f"every row as long as train.{stage}.length: its data is not there")
    prompt = _prompt(recipe, s)
    some = rows[:: -(-len(rows) // SAMPLE)]
    longest = sorted(rows, key=lambda row: sum(len(m.text) for m in row.messages))[-LONGEST:]
    counted = [_count(row, prompt, s.slots) for row in some]
    most = max(_count(row, prompt, s.slots) for row in (*longest, *some))
    how = "rendered" if prompt else f"counted as {CHARACTERS} characters a token"
    mean = sum(min(count, asked.length) for count in counted) / len(counted)
    return Lengths(min(most, asked.length), mean, len(rows), f"{len(some)} of {len(rows):,} rows {how}")


def _prompt(recipe: Recipe, s: Shapes) -> Prompt | None:
    from transformers import AutoTokenizer

    folder = config_folder(recipe.language.part)
    if folder is None or not (Path(folder) / "tokenizer.json").is_file():
        return None
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prepare_tokenizer(tokenizer, s.vocabulary)
    return Prompt(tokenizer)


def _count(row: Conversation, prompt: Prompt | None, slots: int) -> int:
    if prompt is not None:
        try:
            return len(prompt.render(list(row.messages), [slots] * len(row.images)).ids)
        except PhisenseError:  # a row that training will refuse by name
            pass
    return round(sum(len(m.text) / CHARACTERS + TAGS for m in row.messages)) + slots * len(row.images)
