"""Many questions at once: the answer to each and the loss of the right one, every picture read once however many ask about it.

heads   tag picture picture ...   one row for each picture, read into a cache
tails   question tags             one row for each question, behind a copy of its picture's cache
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from ..conversations import IMAGE, Message, Question
from ..prompt import IGNORED, Rendered
from .assembly import Phi3WithProjector, pad_rows


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation that ends with a question, the answer that is right, and the slots `(P', H)` of its pictures."""

    messages: tuple[Message, ...]
    right: Message
    slots: tuple[torch.Tensor, ...]


def about(question: Question, seen: torch.Tensor | None) -> Asked:
    """A question and its first right answer, about the slots of a picture or about none."""
    text = question.text if seen is None else f"{IMAGE}\n{question.text}"
    return Asked((Message("user", text),), Message("assistant", question.answers[0]), () if seen is None else (seen,))


@dataclass(frozen=True, slots=True)
class Answered:
    """A greedy answer, as text and as ids up to the stop token; the summed loss of the right answer, and its number of tokens."""

    text: str
    ids: tuple[int, ...]
    loss: float
    tokens: int


@torch.inference_mode()
def ask(built: Phi3WithProjector, asked: Sequence[Asked], *, max_new_tokens: int, losses: bool = True) -> list[Answered]:
    """One batch. Questions about the same picture are cheapest together; the slots must be the same tensors for that to be seen.

    Without `losses` that of the right answers is not computed, and is 0 over 0 tokens.
    """
    found: dict[int, Answered] = {}
    for seeing in (True, False):
        some = [i for i, one in enumerate(asked) if bool(one.slots) is seeing]
        if some:
            found.update(zip(some, _ask_alike([asked[i] for i in some], built, max_new_tokens, losses), strict=True))
    return [found[i] for i in range(len(asked))]


def _ask_alike(asked: Sequence[Asked], built: Phi3WithProjector, max_new_tokens: int, with_losses: bool) -> list[Answered]:
    questions, whole = [], []
    for one in asked:
        counts = [len(vectors) for vectors in one.slots]
        questions.append(built.prompt.ask(one.messages, counts))
        whole.append(built.prompt.render([*one.messages, one.right], counts, sample="the question"))
    heads = _Heads(built, asked, questions)
    tails = [
        Rendered(row.ids[heads.end(i) :], row.labels[heads.end(i) :])  # the head is the question's, so no label is lost
        for i, row in enumerate(whole)
    ]
    losses = heads.losses(tails) if with_losses else [(0.0, 0)] * len(asked)
    answers = heads.answers([question[heads.end(i) :] for i, question in enumerate(questions)], max_new_tokens)
    return [Answered(built.prompt.decode(ids), tuple(ids), loss, tokens) for ids, (loss, tokens) in zip(answers, losses, strict=True)]


class _Heads:
    """The distinct beginnings of some questions, up to the end of the last picture, and the cache they leave."""

    def __init__(self, built: Phi3WithProjector, asked: Sequence[Asked], questions: Sequence[list[int]]) -> None:
        self.built = built
        image = built.prompt.image_id
        rows: dict[tuple[Any, ...], int] = {}
        heads: list[list[int]] = []
        slots: list[torch.Tensor] = []
        self.row: list[int] = []
        for one, question in zip(asked, questions, strict=True):
            head = question[: len(question) - question[::-1].index(image)] if one.slots else []
            key = (tuple(head), *(id(vectors) for vectors in one.slots))
            if key not in rows:
                rows[key] = len(heads)
                heads.append(head)
                slots += one.slots
            self.row.append(rows[key])
        self.ends = [len(head) for head in heads]
        self.read = self._read(heads, slots) if slots else None

    def end(self, question: int) -> int:
        return self.ends[self.row[question]]

    def _read(self, heads: Sequence[list[int]], slots: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, DynamicCache]:
        built = self.built
        batch = pad_rows([Rendered(head, [IGNORED] * len(head)) for head in heads], built.prompt.end_of_text_id, left=True)
        ids, mask = batch["input_ids"].to(built.device), batch["attention_mask"].to(built.device)
        seen = built.projected([vectors.to(built.device) for vectors in slots])
        made = built.model(
            input_ids=ids, attention_mask=mask, position_ids=_positions(mask), mm_encoder_outputs=seen, use_cache=True, logits_to_keep=1
        )
        return ids, mask, made.past_key_values

    def _behind(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        """Model inputs for tails `(B, T)`, each behind its head's cache; a copy, since the model writes into it."""
        if self.read is None:
            return {"input_ids": ids, "attention_mask": mask}
        head_ids, head_mask, read = self.read
        cache = copy.deepcopy(read)
        cache.batch_select_indices(torch.tensor(self.row, device=ids.device))
        return {
            "input_ids": torch.cat([head_ids[self.row], ids], 1),
            "attention_mask": torch.cat([head_mask[self.row], mask], 1),
            "past_key_values": cache,
        }

    def losses(self, tails: Sequence[Rendered]) -> list[tuple[float, int]]:
        built = self.built
        batch = {key: value.to(built.device) for key, value in pad_rows(tails, built.prompt.end_of_text_id).items()}
        given = self._behind(batch["input_ids"], batch["attention_mask"])
        given["input_ids"] = batch["input_ids"]
        positions = _positions(given["attention_mask"])[:, -batch["input_ids"].shape[1] :]
        labels = batch["labels"][:, 1:]
        supervised = labels != IGNORED
        with logits_at(built.model, nn.functional.pad(supervised, (0, 1))):
            logits = built.model(**given, position_ids=positions).logits.float()
        losses = torch.zeros(labels.shape, device=logits.device)
        losses[supervised] = nn.functional.cross_entropy(logits, labels[supervised], reduction="none")
        return list(zip(losses.sum(1).tolist(), supervised.sum(1).tolist(), strict=True))

    def answers(self, tails: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        built = self.built
        rows = [Rendered(tail, [IGNORED] * len(tail)) for tail in tails]
        batch = {key: value.to(built.device) for key, value in pad_rows(rows, built.prompt.end_of_text_id, left=True).items()}
        given = self._behind(batch["input_ids"], batch["attention_mask"])
        made = built.model.generate(**given, max_new_tokens=max_new_tokens, do_sample=False)
        return [built.prompt.until_stop(row.tolist()) for row in made[:, given["input_ids"].shape[1] :]]


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions that count real tokens only, wherever the padding is."""
    return (mask.cumsum(1) - 1).clamp(min=0)


@contextmanager
def logits_at(model: Any, where: torch.Tensor) -> Iterator[None]:
    """Inside, `model` gives logits `(N, V)` of the N positions that are true in `where` `(B, T)`, not `(B, T, V)`.

    Most positions have nothing to learn or to score, and Phi-3's vocabulary has 32,064 rows.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, hidden: hidden[0][where])
    try:
        yield
    finally:
        hook.remove()
