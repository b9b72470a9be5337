"""Trains the practice language part: a small Phi-3, on text of the practice world only (`reading`). It never sees a picture.

There are several rounds. In the first a cell does not say where it is, and the model has to find columns in its position code,
which it learns slowly; from the second on the bag also holds the words of its corner ("top", "left"), as the features of a CLIP
know their place. "Which colour does the ring have?" needs one cell to be found among many, which nothing but such questions
teaches: a round of them alone does in minutes what the mixture did not in an hour. The next brings back the rest. A part that
had only ever read of those pairs of colour and shape of which there are pictures had learned that the others do not exist: with
the words "red star" in a cell it said that there was no star. So the last four rounds read of all pairs, as a real language model
has. In the last two a thing mostly fills its whole corner: so does what the vision part's patches have been taught to know. The very
last asks what is in a named corner of scenes half full of digits: where there is mostly one digit, it can be found without its corner.
"""

from __future__ import annotations

import math
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import torch
from transformers import Phi3Config, Phi3ForCausalLM

from ...model.arithmetic import choose
from ...prompt import IGNORED, Prompt, prepare_tokenizer
from ..world import Split
from .reading import ROWS, Sample, make_samples, mix_cells, single_questions, tokenizer

SPLITS: tuple[Split, ...] = ("heldout", "combinations")
COMPUTE = choose("train", "cpu").dtype


@dataclass(frozen=True)
class Round:
    """`steps` are those of the learning rate's schedule; `until` ends the round earlier.

    `placed`: cells also hold the words of their corner. `together`: how often all of a thing's words share a cell.
    `finding`: the share of conversations that have cells, and only questions of `kinds`: those that need a thing found by its name.
    `split`: of the scenes; "read" has the colour-shape pairs too of which there are no pictures to learn from.
    `whole`: how often a thing's words are in all cells of its corner, not in a part of it.
    `corners`: the finding is of what is in a named corner.
    """

    conversations: int
    steps: int
    learning_rate: float
    placed: bool
    together: float
    seed: int
    batch: int = 64
    finding: float = 0.0
    kinds: tuple[str, ...] = ("colour", "place", "size", "relation", "comparison")
    until: int | None = None
    split: Split = "train"
    whole: float = 0.0
    corners: bool = False


ROUNDS = (
    Round(conversations=50_000, steps=1_100, learning_rate=1.5e-3, placed=False, together=0.65, seed=12),
    Round(conversations=40_000, steps=1_400, learning_rate=1.2e-3, placed=True, together=0.9, seed=14),
    Round(conversations=60_000, steps=4_000, until=2_100, learning_rate=1e-3, placed=True, together=1.0, seed=15, batch=32),
    Round(conversations=50_000, steps=1_700, until=900, learning_rate=1e-3, placed=True, together=1.0, seed=16, batch=32, finding=1.0),
    Round(conversations=26_000, steps=800, learning_rate=7e-4, placed=True, together=1.0, seed=17, batch=32),
    Round(conversations=58_000, steps=900, learning_rate=8e-4, placed=True, together=1.0, seed=18, finding=0.3, split="read"),
    Round(
        conversations=58_000,
        steps=900,
        learning_rate=7e-4,
        placed=True,
        together=1.0,
        seed=19,
        finding=0.5,
        kinds=("colour", "relation", "comparison", "count", "exists"),
        split="read",
    ),
    Round(
        conversations=24_000,
        steps=700,
        learning_rate=7e-4,
        placed=True,
        together=1.0,
        seed=20,
        batch=32,
        finding=0.5,
        kinds=("comparison", "count", "exists", "shape", "digit"),
        split="read",
        whole=0.75,
    ),
    Round(
        conversations=15_000,
        steps=400,
        learning_rate=7e-4,
        placed=True,
        together=1.0,
        seed=21,
        finding=0.4,
        kinds=("digit", "shape", "colour"),
        split="read",
        whole=0.75,
        corners=True,
        batch=32,
    ),
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

    @staticmethod
    def autocast() -> torch.autocast:
        """bfloat16 where this machine multiplies in it."""
        return torch.autocast("cpu", torch.bfloat16, enabled=COMPUTE is torch.bfloat16)

    def step(self, samples: list[Sample]) -> float:
        with self.autocast():
            vectors, labels = self.inputs(samples)
            loss = self.model(inputs_embeds=vectors, labels=labels).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.item())

    def inputs(self, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model reads, `(B, T, D)`, cells filled in, and its labels `(B, T)`."""
        longest = -(-max(len(s.ids) for s in samples) // 32) * 32  # few distinct lengths: kernels are cached for each
        ids = torch.full((len(samples), longest), self.prompt.end_of_text_id)
        labels = torch.full((len(samples), longest), IGNORED)
        for row, sample in enumerate(samples):
            ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
            labels[row, : len(sample.labels)] = torch.tensor(sample.labels)
        table = self.model.get_input_embeddings().weight
        vectors = table[ids]
        slots = ids == self.prompt.image_id
        plan = self.plan
        weights = mix_cells(samples, self.word_ids, self.rng, plan.placed, plan.together, plan.whole)[slots.any(1)]
        cells = (weights / weights.sum(-1, keepdim=True)).flatten(0, 1).to(COMPUTE) @ table.to(COMPUTE)
        cells = cells * torch.empty(len(cells), 1).uniform_(0.8, 2.5)
        cells = cells + torch.randn_like(cells) * table.detach().std() * 0.3
        return vectors.masked_scatter(slots[..., None], cells.to(vectors.dtype)), labels

    @torch.no_grad()
    def report(self, split: Split, count: int = 640) -> dict[str, float]:
        """How many single questions about true cells are answered word for word, by kind: the best a projector could make of it."""
        hits: dict[str, list[bool]] = {}
        self.model.eval()
        asked = single_questions(seed=977, count=count, split=split)
        for start in range(0, count, 64):
            some = asked[start : start + 64]
            with self.autocast():
                vectors, labels = self.inputs([sample for _, sample in some])
                # Greedy decoding is right exactly if every token is the likeliest after the true ones.
                told = self.model(inputs_embeds=vectors).logits[:, :-1].argmax(-1)
            right = ((told == labels[:, 1:]) | (labels[:, 1:] == IGNORED)).all(1)
            for (question, _), hit in zip(some, right.tolist(), strict=True):
                hits.setdefault(question.kind, []).append(hit)
                hits.setdefault("all", []).append(hit)
        self.model.train()
        return {kind: sum(values) / len(values) for kind, values in sorted(hits.items())}


def main(out: Path, log_every: int = 100) -> None:
    """Every round. Writes the part to `out` in hub layout: config, half-precision safetensors, tokenizer."""
    model: Phi3ForCausalLM | None = None
    for plan in ROUNDS:
        model = run_round(plan, out, model, log_every)


def run_round(plan: Round, out: Path, model: Phi3ForCausalLM | None, log_every: int) -> Phi3ForCausalLM:
    chunk = 1000
    with ProcessPoolExecutor() as pool:
        seeds = [plan.seed * 1_000_003 + i for i in range(plan.conversations // chunk)]
        parts = pool.map(
            make_samples, seeds, repeat(chunk), repeat(plan.finding), repeat(plan.kinds), repeat(plan.split), repeat(plan.corners)
        )
        samples = [sample for part in parts for sample in part]
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
            for split in SPLITS:
                print(split, " ".join(f"{kind} {value:.3f}" for kind, value in run.report(split).items()), flush=True)
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
