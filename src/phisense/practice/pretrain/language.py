"""Trains the practice language part: a small Phi-3, on text of the practice world only
(`text_corpus`), never on images, in the rounds of `language_rounds`.
"""

from __future__ import annotations

import math
import random
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import torch
from transformers import Phi3Config, Phi3ForCausalLM

from ...chat_tokenizer import prepare_tokenizer
from ...model.arithmetic import choose_arithmetic
from ...model.inputs import pad_rows, splice_images
from ...prompt import IGNORE_INDEX, Prompt
from ..world import Split
from .language_rounds import LANGUAGE_ROUNDS, LanguageRound
from .text_corpus import (
    ROWS,
    TextSample,
    build_language_tokenizer,
    make_samples,
    mix_cells,
    single_questions,
)

SPLITS: tuple[Split, ...] = ("heldout", "combinations")
COMPUTE = choose_arithmetic("train", "cpu").dtype


def practice_language_config() -> Phi3Config:
    """Configuration of the practice language model."""
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


class LanguageTrainer:
    """One round of training; `step` takes one optimizer step and returns the loss."""

    def __init__(self, plan: LanguageRound, model: Phi3ForCausalLM | None = None) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.words = build_language_tokenizer()
        prepare_tokenizer(self.words, ROWS)
        self.prompt = Prompt(self.words)
        vocabulary = [
            (
                "top bottom left right small large red orange yellow green blue purple white black"
                " nothing"
            ),
            "circle square triangle star cross ring diamond heart",
        ]
        self.word_ids = {
            f" {w}": self._one_id(w) for w in [*" ".join(vocabulary).split(), *"0123456789"]
        }
        self.model = model or Phi3ForCausalLM._from_config(
            practice_language_config(), attn_implementation="eager"
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.03
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)

    def _one_id(self, word: str) -> int:
        ids = self.words(word, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1, f"{word!r} is not one token but {ids}"
        return int(ids[0])

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / 200)
        return warm * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.plan.steps)))
        )

    @staticmethod
    def autocast() -> torch.autocast:
        """bfloat16 where this machine has fast matrix multiplication in it."""
        return torch.autocast("cpu", torch.bfloat16, enabled=COMPUTE is torch.bfloat16)

    def step(self, samples: list[TextSample]) -> float:
        """Take one optimizer step on a batch; returns its loss."""
        with self.autocast():
            vectors, labels = self.inputs(samples)
            loss = self.model(inputs_embeds=vectors, labels=labels).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.item())

    def inputs(self, samples: list[TextSample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Input embeddings `(B, T, D)` with the cells filled in, and labels `(B, T)`."""
        # Few distinct lengths, since kernels are cached per length.
        batch = pad_rows(samples, self.prompt.end_of_text_id, multiple_of=32)
        ids, labels = batch.input_ids, batch.labels
        assert labels is not None
        table = self.model.get_input_embeddings().weight
        vectors = table[ids]
        slots = ids == self.prompt.image_id
        plan = self.plan
        weights = mix_cells(
            samples, self.word_ids, self.rng, plan.placed, plan.together, plan.whole
        )[slots.any(1)]
        cells = (weights / weights.sum(-1, keepdim=True)).flatten(0, 1).to(COMPUTE) @ table.to(
            COMPUTE
        )
        cells = cells * torch.empty(len(cells), 1).uniform_(0.8, 2.5)
        cells = cells + torch.randn_like(cells) * table.detach().std() * 0.3
        return splice_images(vectors, ids, self.prompt.image_id, [cells]), labels

    @torch.no_grad()
    def report(self, split: Split, count: int = 640) -> dict[str, float]:
        """Exact-match accuracy of single questions about true cells, by kind.

        This is the upper bound for a projector.
        """
        hits: dict[str, list[bool]] = {}
        self.model.eval()
        asked = single_questions(seed=977, count=count, split=split)
        for start in range(0, count, 64):
            some = asked[start : start + 64]
            with self.autocast():
                vectors, labels = self.inputs([sample for _, sample in some])
                # Greedy decoding is right exactly if every token is the argmax after the true
                # prefix.
                told = self.model(inputs_embeds=vectors).logits[:, :-1].argmax(-1)
            right = ((told == labels[:, 1:]) | (labels[:, 1:] == IGNORE_INDEX)).all(1)
            for (question, _), hit in zip(some, right.tolist(), strict=True):
                hits.setdefault(question.kind, []).append(hit)
                hits.setdefault("all", []).append(hit)
        self.model.train()
        return {kind: sum(values) / len(values) for kind, values in sorted(hits.items())}


def main(out: Path, log_every: int = 100) -> None:
    """Train every round and save the part to `out` in hub layout.

    That is config, half-precision safetensors and tokenizer.
    """
    model: Phi3ForCausalLM | None = None
    for plan in LANGUAGE_ROUNDS:
        model = run_language_round(plan, out, model, log_every)


def run_language_round(
    plan: LanguageRound, out: Path, model: Phi3ForCausalLM | None, log_every: int
) -> Phi3ForCausalLM:
    """Train one round and save its model to `out`.

    `model` is the previous round's, None in the first.
    """
    chunk = 1000
    with ProcessPoolExecutor() as pool:
        seeds = [plan.seed * 1_000_003 + i for i in range(plan.conversations // chunk)]
        parts = pool.map(
            make_samples,
            seeds,
            repeat(chunk),
            repeat(plan.finding),
            repeat(plan.kinds),
            repeat(plan.split),
            repeat(plan.corners),
        )
        samples = [sample for part in parts for sample in part]
    run = LanguageTrainer(plan, model)
    started = time.monotonic()
    losses: list[float] = []
    order: list[list[TextSample]] = []
    last = plan.until or plan.steps
    for step in range(last):
        order = order or batches_by_length(samples, plan.batch, run.rng)
        losses.append(run.step(order.pop()))
        if (step + 1) % log_every == 0:
            left = (time.monotonic() - started) / (step + 1) * (last - step - 1)
            print(
                f"step {step + 1}/{last} loss {sum(losses[-log_every:]) / log_every:.4f}"
                f" {left / 60:.0f} min left",
                flush=True,
            )
        if (step + 1) % (log_every * 3) == 0 or step + 1 == last:
            save_language_part(run.model, out)
            for split in SPLITS:
                print(
                    split,
                    " ".join(f"{kind} {value:.3f}" for kind, value in run.report(split).items()),
                    flush=True,
                )
    return run.model


def batches_by_length(
    samples: list[TextSample], size: int, rng: random.Random
) -> list[list[TextSample]]:
    """Batches of similar length, in random order."""
    ordered = sorted(samples, key=lambda s: len(s.ids) + rng.random() * 20)
    grouped = [ordered[i : i + size] for i in range(0, len(ordered) - size + 1, size)]
    rng.shuffle(grouped)
    return grouped


def save_language_part(model: Phi3ForCausalLM, out: Path) -> None:
    """Save the model in half precision, with its tokenizer, in hub layout."""
    copy = Phi3ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(out, max_shard_size="3MB")
    build_language_tokenizer().save_pretrained(out)
