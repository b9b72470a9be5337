"""Batched generation and reference loss for questions, with one prefill per image however many
questions are about it.

prefixes   tag image image ...    one row per image, prefilled into a KV cache
tails      question tags          one row per question, on a copy of its image's cache
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
from ..malloc import release_free_memory
from ..prompt import IGNORE_INDEX, Rendered
from .assembly import Phi3WithProjector
from .inputs import ModelInputs, pad_prompts, pad_rows


@dataclass(frozen=True, slots=True)
class Query:
    """A conversation that ends with a question, its reference answer, and the embeddings `(P', H)`
    of its images.
    """

    messages: tuple[Message, ...]
    reference: Message
    image_embeds: tuple[torch.Tensor, ...]


def query_for(question: Question, image_embeds: torch.Tensor | None) -> Query:
    """A question with its first reference answer, and the embeddings of its image, if it has
    one.
    """
    text = question.text if image_embeds is None else f"{IMAGE}\n{question.text}"
    return Query(
        (Message("user", text),),
        Message("assistant", question.answers[0]),
        () if image_embeds is None else (image_embeds,),
    )


@dataclass(frozen=True, slots=True)
class Completion:
    """A greedy answer, as text and as ids up to the stop token; the summed loss of the reference
    answer, and its number of tokens.
    """

    text: str
    ids: tuple[int, ...]
    loss: float
    tokens: int


@torch.inference_mode()
def batch_generate(
    built: Phi3WithProjector, queries: Sequence[Query], *, max_new_tokens: int, losses: bool = True
) -> list[Completion]:
    """Answer one batch of queries. Queries about the same image share its prefill if they hold the
    same tensor objects.

    Without `losses` the reference losses are not computed, and are 0 over 0 tokens.
    """
    found: dict[int, Completion] = {}
    for seeing in (True, False):
        some = [i for i, one in enumerate(queries) if bool(one.image_embeds) is seeing]
        if some:
            found.update(
                zip(
                    some,
                    _generate_group([queries[i] for i in some], built, max_new_tokens, losses),
                    strict=True,
                )
            )
    release_free_memory()  # key-value caches grow token by token, and leave as many holes
    return [found[i] for i in range(len(queries))]


def _generate_group(
    queries: Sequence[Query], built: Phi3WithProjector, max_new_tokens: int, with_losses: bool
) -> list[Completion]:
    prompts, with_reference = [], []
    for one in queries:
        counts = [len(vectors) for vectors in one.image_embeds]
        prompts.append(built.prompt.render_for_completion(one.messages, counts))
        with_reference.append(
            built.prompt.render_conversation(
                [*one.messages, one.reference], counts, sample="the question"
            )
        )
    prefix = SharedPrefix(built, queries, prompts)
    tails = [
        # the prefix ends within the question, so no label is lost
        Rendered(row.ids[prefix.length(i) :], row.labels[prefix.length(i) :])
        for i, row in enumerate(with_reference)
    ]
    losses = prefix.losses(tails) if with_losses else [(0.0, 0)] * len(queries)
    answers = prefix.generate(
        [question[prefix.length(i) :] for i, question in enumerate(prompts)], max_new_tokens
    )
    return [
        Completion(built.prompt.decode(ids), tuple(ids), loss, tokens)
        for ids, (loss, tokens) in zip(answers, losses, strict=True)
    ]


class SharedPrefix:
    """The distinct prompt prefixes of some queries, up to the end of the last image, and their KV
    cache.
    """

    def __init__(
        self, built: Phi3WithProjector, queries: Sequence[Query], prompts: Sequence[list[int]]
    ) -> None:
        self.built = built
        image = built.prompt.image_id
        rows: dict[tuple[Any, ...], int] = {}
        prefixes: list[list[int]] = []
        image_embeds: list[torch.Tensor] = []
        self.prefix_of: list[int] = []
        for one, question in zip(queries, prompts, strict=True):
            prefix = (
                question[: len(question) - question[::-1].index(image)] if one.image_embeds else []
            )
            key = (tuple(prefix), *(id(vectors) for vectors in one.image_embeds))
            if key not in rows:
                rows[key] = len(prefixes)
                prefixes.append(prefix)
                image_embeds += one.image_embeds
            self.prefix_of.append(rows[key])
        self.lengths = [len(head) for head in prefixes]
        self.prefilled = self._prefill(prefixes, image_embeds) if image_embeds else None

    def length(self, index: int) -> int:
        """Tokens of the prefix that query `index` shares."""
        return self.lengths[self.prefix_of[index]]

    def _prefill(
        self, prefixes: Sequence[list[int]], image_embeds: Sequence[torch.Tensor]
    ) -> tuple[ModelInputs, DynamicCache]:
        built = self.built
        heads = pad_prompts(prefixes, built.prompt.end_of_text_id).to(built.device)
        made = built.model(
            inputs_embeds=built.embed(heads.input_ids, image_embeds),
            attention_mask=heads.attention_mask,
            position_ids=heads.position_ids,
            use_cache=True,
            logits_to_keep=1,
        )
        return heads, made.past_key_values

    def _after_prefix(self, tails: ModelInputs) -> tuple[ModelInputs, DynamicCache | None]:
        """The ids and mask of each tail's prefix and of the tail itself, and a copy of the prefix's
        cache, since the model writes into it; no cache if there is no prefix.
        """
        if self.prefilled is None:
            return tails, None
        heads, read = self.prefilled
        cache = copy.deepcopy(read)
        cache.batch_select_indices(torch.tensor(self.prefix_of, device=tails.input_ids.device))
        whole = ModelInputs(
            torch.cat([heads.input_ids[self.prefix_of], tails.input_ids], 1),
            torch.cat([heads.attention_mask[self.prefix_of], tails.attention_mask], 1),
        )
        return whole, cache

    def losses(self, tails: Sequence[Rendered]) -> list[tuple[float, int]]:
        """For each tail after its prefix: the summed cross-entropy of its supervised tokens, and
        their number.
        """
        built = self.built
        batch = pad_rows(tails, built.prompt.end_of_text_id).to(built.device)
        whole, cache = self._after_prefix(batch)
        assert batch.labels is not None
        labels = batch.labels[:, 1:]
        supervised = labels != IGNORE_INDEX
        with logits_at(built.model, nn.functional.pad(supervised, (0, 1))):
            logits = built.model(
                input_ids=batch.input_ids,
                attention_mask=whole.attention_mask,
                position_ids=whole.position_ids[:, -batch.input_ids.shape[1] :],
                past_key_values=cache,
            ).logits.float()
        losses = torch.zeros(labels.shape, device=logits.device)
        losses[supervised] = nn.functional.cross_entropy(
            logits, labels[supervised], reduction="none"
        )
        return list(zip(losses.sum(1).tolist(), supervised.sum(1).tolist(), strict=True))

    def generate(self, tails: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy continuation of each tail after its prefix, as ids without the stop token."""
        built = self.built
        whole, cache = self._after_prefix(
            pad_prompts(tails, built.prompt.end_of_text_id).to(built.device)
        )
        made = built.model.generate(
            **whole.to_kwargs(),
            past_key_values=cache,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        return [
            built.prompt.truncate_at_stop(row.tolist())
            for row in made[:, whole.input_ids.shape[1] :]
        ]


@contextmanager
def logits_at(model: Any, mask: torch.Tensor) -> Iterator[None]:
    """Inside the context `model` returns logits `(N, V)` of the N positions that are true in `mask`
    `(B, T)`, not `(B, T, V)`.

    Most positions are neither supervised nor scored, and Phi-3's vocabulary has 32,064 rows.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, hidden: hidden[0][mask]
    )
    try:
        yield
    finally:
        hook.remove()
