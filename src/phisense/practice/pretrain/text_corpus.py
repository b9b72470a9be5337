"""Training text of the practice language part: dialogues about scenes that are described in
sentences or laid out in cells.

*Cells* take the positions of the 8 x 8 image tokens: each is one input vector, a randomly weighted
mix of the embeddings of the words for what lies there (a bag of words: "small", "red", "circle"),
with noise. A projector later has to put the same content into the same positions, and the closer
that is to what the language part can already read, the faster the projector learns.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ...chat_tokenizer import prepare_tokenizer
from ...conversations import IMAGE, Message
from ...families import FAMILIES
from ...prompt import Prompt
from ..dataset import held_out_questions
from ..dialogue import (
    DESCRIBE_REQUESTS,
    SMALL_TALK,
    SceneQuestion,
    balanced_questions,
    caption,
    describe,
    noun_phrase,
    scene_questions,
)
from ..world import CORNERS, Scene, Split, sample_scene

ROWS = 768  # vocabulary size; some rows are unused as in Phi-3.5
GRID = 8
CELLS = GRID * GRID
EMPTY_CELL = " nothing"
# Share of digits among the things; the tokenizer is trained on these texts, so another share would
# change the part.
DIGIT_SHARE = 0.25


def build_language_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the world's sentences, which can encode any text.

    Phi-3's control tokens strip white space to their right.
    """
    rng = random.Random(0)
    lines = [text for pair in SMALL_TALK for text in pair] + list(DESCRIBE_REQUESTS)
    for split in ("train", "combinations"):
        for _ in range(1500):
            scene = sample_scene(rng, split, digit_share=DIGIT_SHARE)
            lines += [
                describe(scene),
                caption(scene),
                *(text for q in balanced_questions(scene, rng, 6) for text in (q.text, q.answer)),
            ]
    lines += [line.lower().replace("colour", "color") for line in lines] + ["nothing"] * 100
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 64,
        special_tokens=["<unk>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(lines, trainer)
    chat = FAMILIES["phi3"].chat
    inner.add_special_tokens(
        [
            AddedToken(tag, special=True, normalized=False, rstrip=tag != chat.end_of_text)
            for tag in chat.special_tokens
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=chat.end_of_text,
        pad_token=chat.end_of_text,
        model_max_length=1024,
    )


@dataclass(frozen=True, slots=True)
class TextSample:
    """A tokenized dialogue.

    `bags` is None without cells, else one list of words for each of the four corners (empty:
    nothing there).
    """

    ids: list[int]
    labels: list[int]
    bags: list[list[str]] | None


def _prompt() -> Prompt:
    words = build_language_tokenizer()
    prepare_tokenizer(words, ROWS)
    return Prompt(words)


def make_samples(
    seed: int,
    count: int,
    finding: float,
    kinds: tuple[str, ...],
    split: Split,
    corners: bool = False,
) -> list[TextSample]:
    """Generate `count` dialogues; `corners`: of the questions of `kinds`, those that name one."""
    prompt = _prompt()
    rng = random.Random(seed)
    return [
        _sample(
            prompt, rng, kinds if finding > 0 and rng.random() < finding else (), split, corners
        )
        for _ in range(count)
    ]


def _sample(
    prompt: Prompt, rng: random.Random, finding: tuple[str, ...], split: Split, corners: bool
) -> TextSample:
    form = 0.5 if finding else rng.random()
    if form < 0.04:
        rendered = prompt.render_conversation(_small_talk(rng), [])
        return TextSample(rendered.ids, rendered.labels, None)
    scene = sample_scene(rng, split, digit_share=0.5 if finding and corners else DIGIT_SHARE)
    cells = form < 0.8
    head = f"{IMAGE}\n" if cells else f"{rng.choice([describe, caption])(scene, rng)}\n"
    rendered = prompt.render_conversation(
        _dialogue(scene, rng, head, finding, corners), [CELLS] if cells else []
    )
    bags: list[list[str]] | None = None
    if cells:
        bags = _bags(scene)
    return TextSample(rendered.ids, rendered.labels, bags)


def _bags(scene: Scene) -> list[list[str]]:
    bags: list[list[str]] = [[] for _ in range(4)]
    for thing in scene.things:
        bags[thing.corner] = [f" {word}" for word in noun_phrase(thing).split()]
    return bags


def single_questions(seed: int, count: int, split: Split) -> list[tuple[SceneQuestion, TextSample]]:
    """One question about each scene's cells, without other text that would give the answer away.

    This is the task that an image will pose to the model.
    """
    prompt = _prompt()
    rng = random.Random(seed)
    asked = []
    for _ in range(count):
        scene = sample_scene(rng, split, digit_share=DIGIT_SHARE)
        question = (held_out_questions if split == "combinations" else balanced_questions)(
            scene, rng, 1
        )[0]
        messages = [
            Message("user", f"{IMAGE}\n{question.text}"),
            Message("assistant", question.answer),
        ]
        rendered = prompt.render_conversation(messages, [CELLS])
        asked.append((question, TextSample(rendered.ids, rendered.labels, _bags(scene))))
    return asked


def _small_talk(rng: random.Random) -> list[Message]:
    pairs = [rng.choice(SMALL_TALK) for _ in range(rng.randint(1, 4))]
    return [
        m
        for asked, told in pairs
        for m in (Message("user", informal_spelling(asked, rng)), Message("assistant", told))
    ]


def _dialogue(
    scene: Scene, rng: random.Random, head: str, finding: tuple[str, ...], corners: bool
) -> list[Message]:
    """A conversation of 3 to 9 turns about the scene, sometimes beginning with a description."""
    pool = balanced_questions(scene, rng, 12 if finding else rng.randint(3, 9))
    if finding and corners:
        pool = [q for q in scene_questions(scene) if q.kind in finding and " at the " in q.text]
        pool = rng.sample(pool, min(len(pool), 9))
    asked = [q for q in pool if q.kind in finding] if finding else pool
    pairs = [(q.text, q.answer) for q in asked or pool]
    if not finding and rng.random() < 0.25:
        pairs.insert(rng.randrange(2), (rng.choice(DESCRIBE_REQUESTS), describe(scene)))
    if not finding and rng.random() < 0.1:
        pairs.append(rng.choice(SMALL_TALK))
    messages = [
        m
        for asked, told in pairs
        for m in (Message("user", informal_spelling(asked, rng)), Message("assistant", told))
    ]
    messages[0] = Message("user", head + messages[0].text)
    return messages


def informal_spelling(text: str, rng: random.Random) -> str:
    """Imitate typing: sometimes lower case, no question mark, or American spelling."""
    if rng.random() < 0.15:
        text = text.lower()
    if rng.random() < 0.15:
        text = text.rstrip("?.")
    if rng.random() < 0.15:
        text = text.replace("colour", "color")
    return text


def mix_cells(
    samples: list[TextSample],
    word_ids: dict[str, int],
    rng: random.Random,
    placed: bool,
    together: float,
    whole: float,
) -> torch.Tensor:
    """Mixing weights `(B, CELLS, ROWS)` of the words in each cell.

    A thing's words fill a patch of its corner's 4 x 4 cells.
    """
    weights = torch.zeros(len(samples), CELLS, ROWS)
    weights[:, :, word_ids[EMPTY_CELL]] = 1
    for row, sample in enumerate(samples):
        for corner, bag in enumerate(sample.bags or []):
            where = [f" {word}" for word in CORNERS[corner].split()] if placed else []
            for cell, words in _spread(bag, corner, rng, together, whole):
                weights[row, cell, word_ids[EMPTY_CELL]] = 0
                for word in words:
                    weights[row, cell, word_ids[word]] = rng.uniform(0.5, 1.5)
                for word in where:
                    weights[row, cell, word_ids[word]] = rng.uniform(0.3, 1.0)
    return weights


def _spread(
    bag: list[str], corner: int, rng: random.Random, together: float, whole: float
) -> list[tuple[int, list[str]]]:
    """The non-empty cells and their words: a rectangle within the corner.

    Either each cell has all words, or each cell has one of them.
    """
    if not bag:
        return []
    half = GRID // 2
    if whole and rng.random() < whole:
        return [
            ((corner // 2 * half + r) * GRID + corner % 2 * half + c, bag)
            for r in range(half)
            for c in range(half)
        ]
    height, width = (
        (rng.randint(2, 3), rng.randint(2, 3))
        if bag[0] == " small"
        else (rng.randint(3, 4), rng.randint(3, 4))
    )
    top = corner // 2 * half + rng.randint(0, half - height)
    left = corner % 2 * half + rng.randint(0, half - width)
    cells = [(top + r) * GRID + left + c for r in range(height) for c in range(width)]
    if rng.random() < together:  # all words in each of some or all cells
        kept = rng.sample(cells, rng.randint(1, len(cells)))
        return [(cell, bag) for cell in kept]
    rng.shuffle(cells)  # one word per cell; there are at least four cells, so every word occurs
    return [(cell, [bag[i % len(bag)]]) for i, cell in enumerate(cells)]
