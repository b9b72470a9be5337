"""Trains the practice language part: a small Phi-3, on text of the practice world only. It never sees a picture.

What it reads about a scene comes in two forms. *Sentences*, as in a caption. *Cells*: where a picture will later have its
8x8 slots, each slot reads the words for what lies there, mixed by random weights into one input vector (a bag of words:
"small", "red", "circle" at once), with noise. A projector will later have to put the same content into the same places, and
the closer that lies to something the language part can already read, the faster it learns to see.

There are several rounds. In the first a cell does not say where it is, and the model has to find columns in its position code,
which it learns slowly; from the second on the bag also holds the words of its corner ("top", "left"), as the features of a CLIP
know their place. "Which colour does the ring have?" needs one cell to be found among many, which nothing but such questions
teaches: a round of them alone does in minutes what the mixture did not in an hour. The last round brings back the rest.
"""

from __future__ import annotations

import math
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from ...conversations import IMAGE, Message
from ...prompt import CONTROL_TOKENS, END_OF_TEXT, IGNORED, Prompt, prepare_tokenizer
from ..talk import DESCRIBE_REQUESTS, SMALL_TALK, balanced_questions, caption, describe, noun_phrase
from ..world import CORNERS, Scene, sample_scene

ROWS = 768  # of the vocabulary, some of them free as in Phi-3.5
GRID = 8
CELLS = GRID * GRID
NOTHING = " nothing"
FINDING = ("colour", "place", "size", "relation", "comparison")


@dataclass(frozen=True)
class Round:
    """`steps` are those of the learning rate's schedule; `until` ends the round earlier.

    `placed`: cells also hold the words of their corner. `together`: how often all of a thing's words share a cell.
    `finding`: only cells, and only questions for which one thing must be found by its name.
    """

    conversations: int
    steps: int
    learning_rate: float
    placed: bool
    together: float
    seed: int
    batch: int = 64
    finding: bool = False
    until: int | None = None


ROUNDS = (
    Round(conversations=50_000, steps=1_100, learning_rate=1.5e-3, placed=False, together=0.65, seed=12),
    Round(conversations=40_000, steps=1_400, learning_rate=1.2e-3, placed=True, together=0.9, seed=14),
    Round(conversations=60_000, steps=4_000, until=2_100, learning_rate=1e-3, placed=True, together=1.0, seed=15, batch=32),
    Round(conversations=50_000, steps=1_700, until=900, learning_rate=1e-3, placed=True, together=1.0, seed=16, batch=32, finding=True),
    Round(conversations=26_000, steps=800, learning_rate=7e-4, placed=True, together=1.0, seed=17, batch=32),
)


def config() -> Phi3Config:
    return Phi3Config(
        vocab_size=ROWS,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        original_max_position_embeddings=1024,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the world's sentences, so any text can be read; Phi-3's control tokens, which swallow space to the right."""
    rng = random.Random(0)
    lines = [text for pair in SMALL_TALK for text in pair] + list(DESCRIBE_REQUESTS)
    for split in ("train", "combinations"):
        for _ in range(1500):
            scene = sample_scene(rng, split)
            lines += [describe(scene), caption(scene), *(text for q in balanced_questions(scene, rng, 6) for text in (q.text, q.answer))]
    lines += [line.lower().replace("colour", "color") for line in lines] + ["nothing"] * 100
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 64, special_tokens=["<unk>", "<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(lines, trainer)
    inner.add_special_tokens([AddedToken(tag, special=True, normalized=False, rstrip=tag != END_OF_TEXT) for tag in CONTROL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, model_max_length=1024
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """`bags` is None where there are no cells, else one list of words for each of the four corners (empty: nothing there)."""

    ids: list[int]
    labels: list[int]
    bags: list[list[str]] | None


def make_samples(seed: int, count: int, finding: bool) -> list[Sample]:
    words = tokenizer()
    prepare_tokenizer(words, ROWS)
    prompt = Prompt(words)
    rng = random.Random(seed)
    return [_sample(prompt, rng, finding) for _ in range(count)]


def _sample(prompt: Prompt, rng: random.Random, finding: bool) -> Sample:
    form = 0.5 if finding else rng.random()
    if form < 0.04:
        rendered = prompt.render(_small_talk(rng), [])
        return Sample(rendered.ids, rendered.labels, None)
    scene = sample_scene(rng)
    cells = form < 0.8
    head = f"{IMAGE}\n" if cells else f"{rng.choice([describe, caption])(scene, rng)}\n"
    rendered = prompt.render(_dialogue(scene, rng, head, finding), [CELLS] if cells else [])
    bags: list[list[str]] | None = None
    if cells:
        bags = [[] for _ in range(4)]
        for thing in scene.things:
            bags[thing.corner] = [f" {word}" for word in noun_phrase(thing).split()]
    return Sample(rendered.ids, rendered.labels, bags)


def _small_talk(rng: random.Random) -> list[Message]:
    pairs = [rng.choice(SMALL_TALK) for _ in range(rng.randint(1, 4))]
    return [m for asked, told in pairs for m in (Message("user", loosen(asked, rng)), Message("assistant", told))]


def _dialogue(scene: Scene, rng: random.Random, head: str, finding: bool) -> list[Message]:
    """A conversation of 3 to 9 turns about the scene, now and then beginning with a description."""
    pool = balanced_questions(scene, rng, 12 if finding else rng.randint(3, 9))
    asked = [q for q in pool if q.kind in FINDING] if finding else pool
    pairs = [(q.text, q.answer) for q in asked or pool]
    if not finding and rng.random() < 0.25:
        pairs.insert(rng.randrange(2), (rng.choice(DESCRIBE_REQUESTS), describe(scene)))
    if not finding and rng.random() < 0.1:
        pairs.append(rng.choice(SMALL_TALK))
    messages = [m for asked, told in pairs for m in (Message("user", loosen(asked, rng)), Message("assistant", told))]
    messages[0] = Message("user", head + messages[0].text)
    return messages


def loosen(text: str, rng: random.Random) -> str:
    """Typed as people type: now and then in lower case, without the question mark, or with American spelling."""
    if rng.random() < 0.15:
        text = text.lower()
    if rng.random() < 0.15:
        text = text.rstrip("?.")
    if rng.random() < 0.15:
        text = text.replace("colour", "color")
    return text


def mix_cells(samples: list[Sample], word_ids: dict[str, int], rng: random.Random, plan: Round) -> torch.Tensor:
    """Weights `(B, CELLS, ROWS)`: what each cell reads. A thing's words fill a patch of its corner's 4x4 cells."""
    weights = torch.zeros(len(samples), CELLS, ROWS)
    weights[:, :, word_ids[NOTHING]] = 1
    for row, sample in enumerate(samples):
        for corner, bag in enumerate(sample.bags or []):
            where = [f" {word}" for word in CORNERS[corner].split()] if plan.placed else []
            for cell, words in _spread(bag, corner, rng, plan.together):
                weights[row, cell, word_ids[NOTHING]] = 0
                for word in words:
                    weights[row, cell, word_ids[word]] = rng.uniform(0.5, 1.5)
                for word in where:
                    weights[row, cell, word_ids[word]] = rng.uniform(0.3, 1.0)
    return weights


def _spread(bag: list[str], corner: int, rng: random.Random, together: float) -> list[tuple[int, list[str]]]:
    """The cells that read something: a rectangle within the corner, its words all together in each cell, or one word a cell."""
    if not bag:
        return []
    half = GRID // 2
    height, width = (rng.randint(2, 3), rng.randint(2, 3)) if bag[0] == " small" else (rng.randint(3, 4), rng.randint(3, 4))
    top = corner // 2 * half + rng.randint(0, half - height)
    left = corner % 2 * half + rng.randint(0, half - width)
    cells = [(top + r) * GRID + left + c for r in range(height) for c in range(width)]
    if rng.random() < together:  # together, in all of them or some
        kept = rng.sample(cells, rng.randint(1, len(cells)))
        return [(cell, bag) for cell in kept]
    rng.shuffle(cells)  # apart; four cells or more, so that every word occurs
    return [(cell, [bag[i % len(bag)]]) for i, cell in enumerate(cells)]


class Trainer:
    def __init__(self, plan: Round, model: Phi3ForCausalLM | None = None) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.words = tokenizer()
        prepare_tokenizer(self.words, ROWS)
        self.prompt = Prompt(self.words)
        vocabulary = [
            "top bottom left right small large red orange yellow green blue purple white black nothing",
            "circle square triangle star cross ring diamond heart",
        ]
        self.word_ids = {f" {w}": self._one_id(w) for w in [*" ".join(vocabulary).split(), *"0123456789"]}
        self.model = model or Phi3ForCausalLM._from_config(config(), attn_implementation="eager")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.03)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)

    def _one_id(self, word: str) -> int:
        ids = self.words(word, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1, f"{word!r} is not one token but {ids}"
        return int(ids[0])

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / 200)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.plan.steps))))

    def step(self, samples: list[Sample]) -> float:
        longest = -(-max(len(s.ids) for s in samples) // 32) * 32  # few distinct lengths: kernels are cached for each
        ids = torch.full((len(samples), longest), self.prompt.end_of_text_id)
        labels = torch.full((len(samples), longest), IGNORED)
        for row, sample in enumerate(samples):
            ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
            labels[row, : len(sample.ids)] = torch.tensor(sample.labels)
        with torch.autocast("cpu", torch.bfloat16):
            table = self.model.get_input_embeddings().weight
            vectors = table[ids]
            slots = ids == self.prompt.image_id
            weights = mix_cells(samples, self.word_ids, self.rng, self.plan)[slots.any(1)]
            cells = (weights / weights.sum(-1, keepdim=True)).flatten(0, 1).to(torch.bfloat16) @ table.to(torch.bfloat16)
            cells = cells * torch.empty(len(cells), 1).uniform_(0.8, 2.5)
            cells = cells + torch.randn_like(cells) * table.detach().std() * 0.3
            vectors = vectors.masked_scatter(slots[..., None], cells.to(vectors.dtype))
            loss = self.model(inputs_embeds=vectors, labels=labels).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.item())


def main(out: Path, log_every: int = 100) -> None:
    """Both rounds. Writes the part to `out` in hub layout: config, half-precision safetensors, tokenizer."""
    model: Phi3ForCausalLM | None = None
    for plan in ROUNDS:
        model = run_round(plan, out, model, log_every)


def run_round(plan: Round, out: Path, model: Phi3ForCausalLM | None, log_every: int) -> Phi3ForCausalLM:
    chunk = 1000
    with ProcessPoolExecutor() as pool:
        seeds = [plan.seed * 1_000_003 + i for i in range(plan.conversations // chunk)]
        samples = [sample for part in pool.map(make_samples, seeds, [chunk] * len(seeds), [plan.finding] * len(seeds)) for sample in part]
    run = Trainer(plan, model)
    started = time.monotonic()
    losses: list[float] = []
    order: list[list[Sample]] = []
    last = plan.until or plan.steps
    for step in range(last):
        order = order or batches(samples, plan.batch, run.rng)
        losses.append(run.step(order.pop()))
        if (step + 1) % log_every == 0:
            left = (time.monotonic() - started) / (step + 1) * (last - step - 1)
            print(f"step {step + 1}/{last} loss {sum(losses[-log_every:]) / log_every:.4f} {left / 60:.0f} min left", flush=True)
        if (step + 1) % (log_every * 3) == 0 or step + 1 == last:
            save(run.model, out)
    return run.model


def batches(samples: list[Sample], size: int, rng: random.Random) -> list[list[Sample]]:
    """Batches of about one length, in random order."""
    ordered = sorted(samples, key=lambda s: len(s.ids) + rng.random() * 20)
    grouped = [ordered[i : i + size] for i in range(0, len(ordered) - size + 1, size)]
    rng.shuffle(grouped)
    return grouped


def save(model: Phi3ForCausalLM, out: Path) -> None:
    copy = Phi3ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(out, max_shard_size="3MB")
    tokenizer().save_pretrained(out)
