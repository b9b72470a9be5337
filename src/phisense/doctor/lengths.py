"""The lengths of a stage's rows, measured if its data exists; else the recipe's maximum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chat_tokenizer import prepare_tokenizer
from ..conversations import Conversation, read_conversations, read_questions
from ..errors import PhisenseError
from ..parts import load_auto
from ..pipeline.records import Record
from ..prompt import IGNORE_INDEX, Prompt, Rendered
from ..recipe import Recipe, Stage
from ..training.objectives import OBJECTIVES
from ..training.packing import PackedRow, Sample, count_scores, pack, single_row
from .shapes import Shapes, config_folder

# groups of conversations about one image that are rendered: evenly spaced ones for the mean length,
# and those with the most characters for the longest
SAMPLED_ROWS = 512
NUM_LONGEST = 64
CHARACTERS_PER_TOKEN = 3.5  # assumed per token if there is no tokenizer
QUESTION_TOKENS = 64  # assumed tokens per question, if there are none
TAGS_PER_MESSAGE = 4  # tokens that the template adds to a message


@dataclass(frozen=True, slots=True)
class Lengths(Record):
    """In tokens: the longest and the mean row, the largest number of supervised tokens, and the
    largest numbers of attention scores (`scores`) and of keys in spans that follow another
    (`behind`).

    A row is one sequence of the batch: a conversation, or with shared images all those about the
    same ones. `rows` and `conversations` are None if the data is missing. `basis` says what the
    figures are based on. `pictures` is the largest number of images in a row, `mean_pictures` the
    mean one.
    """

    longest: int
    supervised: int
    mean: float
    rows: int | None
    conversations: int | None
    basis: str
    scores: int
    behind: int
    pictures: int = 1
    mean_pictures: float = 1.0

    def rows_of(self, conversations: int) -> int:
        """The average number of rows for this many conversations, as packed for training."""
        if self.rows is None or self.conversations is None:
            return conversations
        return max(1, round(conversations * self.rows / self.conversations))


def measure_lengths(recipe: Recipe, stage: str, s: Shapes) -> Lengths:
    """Read the stage's data if all of it exists, and render a sample of it."""
    asked = recipe.train.stages[stage]
    sets = [recipe.path(one.path) for one in recipe.data_of(stage)]
    try:
        found = (
            [one for path in sets for one in read_conversations(path)]
            if sets and all(path.exists() for path in sets)
            else []
        )
    except PhisenseError as error:  # defects are reported by `check`
        return _assume_longest(
            asked.max_length, f"every row as long as {stage}.max_length: {error}"
        )
    if not found:
        return _assume_longest(
            asked.max_length,
            f"every row as long as train.{stage}.max_length: its data is not there",
        )
    prompt = _prompt(recipe, s)
    about: dict[Any, list[Conversation]] = {}
    for i, one in enumerate(found):
        about.setdefault(one.images or i, []).append(one)
    groups = list(about.values())
    longest = sorted(
        groups, key=lambda group: sum(len(m.text) for one in group for m in one.messages)
    )[-NUM_LONGEST:]
    some = groups[:: -(-len(groups) // SAMPLED_ROWS)]

    def rows_of(chosen: Sequence[Sequence[Conversation]]) -> list[PackedRow]:
        samples = [_sample(one, prompt, s.image_tokens, asked) for group in chosen for one in group]
        share = recipe.train.share_pictures and prompt is not None
        return (
            pack(samples, prompt.image_id, asked.max_length)
            if share and prompt
            else [single_row(sample) for sample in samples]
        )

    usual = rows_of(some)
    every = [*rows_of(longest), *usual]
    conversations = sum(len(group) for group in some)
    return Lengths(
        max(len(row.rendered.ids) for row in every),
        max(sum(label != IGNORE_INDEX for label in row.rendered.labels) for row in every),
        sum(len(row.rendered.ids) for row in usual) / len(usual),
        round(len(found) * len(usual) / conversations),
        len(found),
        f"{conversations:,} of {len(found):,} conversations "
        + (
            "rendered"
            if prompt
            else f"counted as {CHARACTERS_PER_TOKEN} characters a token, none sharing its pictures"
        ),
        max(count_scores(row)[0] for row in every),
        max(count_scores(row)[1] for row in every),
        max(len(row.images) for row in every),
        sum(len(row.images) for row in usual) / len(usual),
    )


@dataclass(frozen=True, slots=True)
class QuestionLengths:
    """A batch of held-out questions, in tokens: the longest question, the longest reference answer,
    and the largest sum of the references of a batch; and the largest number of images in one.
    """

    question: int
    reference: int
    references: int
    pictures: int


def measure_questions(recipe: Recipe, s: Shapes, rows: int) -> QuestionLengths:
    """Read the held-out questions, if there are any, as batches of `rows` in their order; else
    assume `QUESTION_TOKENS` for a question, and `evaluate.max_new_tokens` for an answer.
    """
    longest = recipe.evaluate.max_new_tokens
    assumed = QuestionLengths(QUESTION_TOKENS, longest, rows * longest, rows)
    files = [recipe.path(file) for file in recipe.data.held_out]
    try:
        found = [q for file in files if file.exists() for q in read_questions(file)]
    except PhisenseError:  # reported by `check`
        return assumed
    if not found:
        return assumed
    some = found[: max(rows, SAMPLED_ROWS)]
    prompt = _prompt(recipe, s)

    def tokens(texts: Sequence[str]) -> list[int]:
        if prompt is None:
            return [round(len(text) / CHARACTERS_PER_TOKEN) for text in texts]
        return [len(ids) for ids in prompt.tokenizer(list(texts)).input_ids]

    asked = [one + 2 * TAGS_PER_MESSAGE for one in tokens([q.text for q in some])]
    answers = [one + 1 for one in tokens([q.answers[0] for q in some])]
    starts = range(0, len(some), rows)
    return QuestionLengths(
        max(asked),
        max(answers),
        max(sum(answers[start : start + rows]) for start in starts),
        max(len({q.image for q in some[start : start + rows]} - {None}) for start in starts),
    )


def _assume_longest(length: int, basis: str) -> Lengths:
    return Lengths(length, length, length, None, None, basis, length**2, 0)


def _prompt(recipe: Recipe, s: Shapes) -> Prompt | None:
    from transformers import AutoTokenizer

    folder = config_folder(recipe.language.part)
    if folder is None or not (Path(folder) / "tokenizer.json").is_file():
        return None
    tokenizer: Any = load_auto(AutoTokenizer, folder)
    prepare_tokenizer(tokenizer, s.vocabulary)
    return Prompt(tokenizer)


def _sample(
    conversation: Conversation, prompt: Prompt | None, image_tokens: int, stage: Stage
) -> Sample:
    """The conversation as training renders it; without a tokenizer, or if training will reject it
    by name, of the length that its characters tell.
    """
    max_length, images = stage.max_length, conversation.images
    if prompt is not None:
        try:
            objective = OBJECTIVES[stage.objective]
            rendered = objective.render(prompt, conversation, image_tokens, max_length)[0]
            shown = images[: prompt.images_in(rendered, image_tokens)]
            return Sample(conversation.id, rendered, shown)
        except PhisenseError:
            pass
    spoken = {
        role: sum(
            round(len(m.text) / CHARACTERS_PER_TOKEN) + TAGS_PER_MESSAGE
            for m in conversation.messages
            if m.role == role
        )
        for role in ("user", "assistant")
    }
    given = image_tokens * len(images) + spoken["user"]
    whole = [*[IGNORE_INDEX] * given, *[0] * spoken["assistant"]]
    rendered = Rendered([0] * min(len(whole), max_length), whole[:max_length])
    return Sample(conversation.id, rendered, images)
