"""Batched generation and reference loss for questions, with one prefill per image however many
questions are about it.

prefixes   tag image image ...    one row per image, prefilled into a KV cache
tails      question tags          one row per question, on a copy of its image's cache

Where the reference's loss is computed anyway, the reference is a draft of the greedy answer, as in
speculative decoding (Leviathan et al. 2023, arXiv:2211.17192): the pass that scores it tells the
likeliest token at each of its positions. As far as these agree nothing is left to generate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from ..conversations import IMAGE, Message, Question
from ..malloc import release_free_memory
from ..prompt import IGNORE_INDEX, Rendered
from .assembly import Phi3WithProjector
from .inputs import ModelInputs, pad_prompts, pad_rows
from .sharding import is_sharded


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
    prompts, with_reference = _render(queries, built)
    prefix = SharedPrefix(built, queries, prompts)
    scored = [ScoredReference(0.0, (), ())] * len(queries)
    if with_losses:
        scored = prefix.score(prefix.tails(with_reference))
    drafts = [one.greedy(built.prompt.stop_ids, max_new_tokens) for one in scored]
    unfinished = [i for i, (_, finished) in enumerate(drafts) if not finished]
    tails = [prompts[i][prefix.length(i) :] + drafts[i][0] for i in unfinished]
    most = max((max_new_tokens - len(drafts[i][0]) for i in unfinished), default=0)
    ids = [draft for draft, _ in drafts]
    for i, rest in zip(unfinished, prefix.generate(unfinished, tails, most), strict=True):
        ids[i] = (ids[i] + rest)[:max_new_tokens]
    answers = [built.prompt.truncate_at_stop(one) for one in ids]
    return [
        Completion(built.prompt.decode(answer), tuple(answer), one.loss, len(one.ids))
        for answer, one in zip(answers, scored, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class ScoredReference:
    """A reference answer with its end, `ids`: its loss in nats, summed, and at each of its
    positions the likeliest token after those before.
    """

    loss: float
    ids: tuple[int, ...]
    likeliest: tuple[int, ...]

    def greedy(self, stop_ids: Collection[int], max_new_tokens: int) -> tuple[list[int], bool]:
        """The greedy answer as far as it is known, and whether that is all of it: the likeliest
        tokens up to the first that is not the reference's, after which the others say nothing.
        """
        known: list[int] = []
        for likeliest, own in zip(self.likeliest, self.ids, strict=True):
            known.append(likeliest)
            if likeliest in stop_ids or len(known) == max_new_tokens:
                return known, True
            if likeliest != own:
                break
        return known, False


@torch.inference_mode()
def reference_losses(built: Phi3WithProjector, queries: Sequence[Query]) -> list[tuple[float, int]]:
    """For each query of one batch the loss of its reference in nats, summed over its tokens, and
    their number. Queries that differ in nothing but their reference share one prefill, however long
    their question.
    """
    found: dict[int, tuple[float, int]] = {}
    for seeing in (True, False):
        some = [i for i, one in enumerate(queries) if bool(one.image_embeds) is seeing]
        if some:
            group = [queries[i] for i in some]
            prompts, with_reference = _render(group, built)
            prefix = SharedPrefix(built, group, prompts, with_question=True)
            tails = prefix.tails(with_reference)
            scored = prefix.score(tails)
            found.update((i, (one.loss, len(one.ids))) for i, one in zip(some, scored, strict=True))
    return [found[i] for i in range(len(queries))]


def likeliest_answers(
    built: Phi3WithProjector,
    queries: Sequence[Query],
    candidates: Sequence[Sequence[str]],
    *,
    batch_size: int,
) -> list[str]:
    """For each query the one of its candidates that the model finds likeliest as the whole answer:
    the smallest summed loss, its end included. Queries alike are measured once.
    """
    wanted: dict[tuple[object, ...], Query] = {}
    keys = []
    for one, texts in zip(queries, candidates, strict=True):
        asked = (one.messages, *map(id, one.image_embeds))
        keys.append([(*asked, text) for text in texts])
        wanted |= {
            (*asked, text): replace(one, reference=Message("assistant", text)) for text in texts
        }
    rows = list(wanted.items())
    losses: dict[tuple[object, ...], float] = {}
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        measured = reference_losses(built, [query for _, query in batch])
        losses |= {key: loss for (key, _), (loss, _) in zip(batch, measured, strict=True)}
    return [
        min(zip(its, texts, strict=True), key=lambda pair: losses[pair[0]])[1]
        for its, texts in zip(keys, candidates, strict=True)
    ]


def _render(
    queries: Sequence[Query], built: Phi3WithProjector
) -> tuple[list[list[int]], list[Rendered]]:
    """The prompts, and the same conversations with their reference answers."""
    prompts, with_reference = [], []
    for one in queries:
        counts = [len(vectors) for vectors in one.image_embeds]
        prompts.append(built.prompt.render_for_completion(one.messages, counts))
        with_reference.append(
            built.prompt.render_conversation(
                [*one.messages, one.reference], counts, sample="the question"
            )
        )
    return prompts, with_reference


class SharedPrefix:
    """The distinct prompt prefixes of some queries, up to the end of the last image, or
    `with_question`, all but the last token of each prompt, and their KV cache.
    """

    def __init__(
        self,
        built: Phi3WithProjector,
        queries: Sequence[Query],
        prompts: Sequence[list[int]],
        *,
        with_question: bool = False,
    ) -> None:
        self.built = built
        image = built.prompt.image_id
        rows: dict[tuple[Any, ...], int] = {}
        prefixes: list[list[int]] = []
        image_embeds: list[torch.Tensor] = []
        self.prefix_of: list[int] = []
        for one, question in zip(queries, prompts, strict=True):
            prefix = question[:-1] if with_question else _until_image(question, image)
            key = (tuple(prefix), *(id(vectors) for vectors in one.image_embeds))
            if key not in rows:
                rows[key] = len(prefixes)
                prefixes.append(prefix)
                image_embeds += one.image_embeds
            self.prefix_of.append(rows[key])
        self.lengths = [len(head) for head in prefixes]
        self.prefilled = self._prefill(prefixes, image_embeds) if any(prefixes) else None

    def length(self, index: int) -> int:
        """Tokens of the prefix that query `index` shares."""
        return self.lengths[self.prefix_of[index]]

    def tails(self, rows: Sequence[Rendered]) -> list[Rendered]:
        """Each query's conversation after its prefix, which ends before the first label."""
        return [
            Rendered(row.ids[self.length(i) :], row.labels[self.length(i) :])
            for i, row in enumerate(rows)
        ]

    def _prefill(
        self, prefixes: Sequence[list[int]], image_embeds: Sequence[torch.Tensor]
    ) -> tuple[ModelInputs, DynamicCache]:
        built = self.built
        heads = pad_prompts(prefixes, built.prompt.end_of_text_id).to(built.device)
        nothing = torch.zeros_like(heads.input_ids, dtype=torch.bool)  # is predicted yet
        with logits_at(built.model, nothing):
            made = built.model(
                inputs_embeds=built.embed(heads.input_ids, image_embeds),
                attention_mask=heads.attention_mask,
                position_ids=heads.position_ids,
                use_cache=True,
            )
        return heads, made.past_key_values

    def _after_prefix(
        self, rows: Sequence[int], tails: ModelInputs
    ) -> tuple[ModelInputs, DynamicCache | None]:
        """The ids and mask of the prefix and of the tail of each of some queries, and a copy of the
        prefixes' cache, since the model writes into it; no cache if there is no prefix.
        """
        if self.prefilled is None:
            return tails, None
        heads, read = self.prefilled
        of = [self.prefix_of[row] for row in rows]
        cache = copy.deepcopy(read)
        cache.batch_select_indices(torch.tensor(of, device=tails.input_ids.device))
        whole = ModelInputs(
            torch.cat([heads.input_ids[of], tails.input_ids], 1),
            torch.cat([heads.attention_mask[of], tails.attention_mask], 1),
        )
        return whole, cache

    def score(self, tails: Sequence[Rendered]) -> list[ScoredReference]:
        """The supervised tokens of each query's tail, after its prefix."""
        built = self.built
        batch = pad_rows(tails, built.prompt.end_of_text_id).to(built.device)
        whole, cache = self._after_prefix(range(len(tails)), batch)
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
        counts = supervised.sum(1).tolist()
        found = zip(
            nn.functional.cross_entropy(logits, labels[supervised], reduction="none").split(counts),
            labels[supervised].split(counts),
            logits.argmax(1).split(counts),
            strict=True,
        )
        return [
            ScoredReference(float(losses.sum()), tuple(ids.tolist()), tuple(best.tolist()))
            for losses, ids, best in found
        ]

    def generate(
        self, rows: Sequence[int], tails: Sequence[list[int]], max_new_tokens: int
    ) -> list[list[int]]:
        """Greedy continuation of some queries' tails after their prefixes, as ids without the stop
        token.
        """
        if not rows:
            return []
        built = self.built
        whole, cache = self._after_prefix(
            rows, pad_prompts(tails, built.prompt.end_of_text_id).to(built.device)
        )
        with contiguous_head(built.model):
            made = built.model.generate(
                **whole.to_kwargs(),
                past_key_values=cache,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                # processes that share a sharded model go on until all have answered
                synced_gpus=is_sharded(built.model.lm_head.weight),
            )
        return [
            built.prompt.truncate_at_stop(row.tolist())
            for row in made[:, whole.input_ids.shape[1] :]
        ]


def _until_image(prompt: list[int], image_id: int) -> list[int]:
    """The prompt up to its last image token; empty without an image."""
    return prompt[: len(prompt) - prompt[::-1].index(image_id)] if image_id in prompt else []


@contextmanager
def logits_at(model: Any, mask: torch.Tensor) -> Iterator[None]:
    """Inside the context `model` returns logits `(N, V)` of the N positions that are true in `mask`
    `(B, T)`, not `(B, T, V)`.

    Most positions are neither supervised nor scored, and Phi-3's vocabulary has 32,064 rows.
    """
    with _changed_head_input(model, lambda hidden: hidden[mask]):
        yield


@contextmanager
def contiguous_head(model: Any) -> Iterator[None]:
    """Inside the context the input of the output matrix is contiguous.

    `generate` passes the last position of each row, and these are not adjacent in memory. For such
    an input and a frozen weight torch repeats the weight for each row of the batch; in bfloat16 on
    a CPU as a copy, 1.8 GB for 32 rows and 49,152 x 576 numbers.
    """
    with _changed_head_input(model, torch.Tensor.contiguous):
        yield


@contextmanager
def _changed_head_input(
    model: Any, change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, given: change(given[0])
    )
    try:
        yield
    finally:
        hook.remove()
