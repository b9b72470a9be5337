"""Questions in a batch get what each would get by itself, though a picture is read once for all of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from phisense import Phi3WithProjector
from phisense.conversations import IMAGE, Message
from phisense.families import FAMILIES
from phisense.model import batch_generate as generation
from phisense.model.batch_generate import (
    Query,
    batch_generate,
    likeliest_answers,
    reference_losses,
)
from phisense.prompt import IGNORE_INDEX, Rendered

#: How far the loss of a whole answer may be from that of the question asked by itself. In bfloat16
#: a question's neighbours change in which order a kernel sums what it rounds; with random weights
#: the likeliest words lie that close, so answers are compared in float32 alone.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.3}
#: Every family in float32, where answers are compared, too.
KINDS = [("phi3", torch.bfloat16), *((family, torch.float32) for family in FAMILIES)]


@pytest.fixture(params=KINDS, ids=str)
def built(
    request: pytest.FixtureRequest, parts_of: Callable[[str], tuple[str, str]]
) -> Phi3WithProjector:
    family, dtype = request.param
    return Phi3WithProjector.assemble(*parts_of(family), device="cpu", dtype=dtype)


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the frozen weights that torch repeats for each row of a batch: the batch's rows
    have gaps between them, so it does not make one matrix of them.
    """
    found: list[tuple[int, ...]] = []
    real = nn.functional.linear

    def watched(given: torch.Tensor, weight: torch.Tensor, *bias: Any) -> torch.Tensor:
        if not weight.requires_grad and given.dim() > 2:
            strides, shape = given.stride(), given.shape
            if any(
                shape[i] > 1 and strides[i] != strides[i + 1] * shape[i + 1]
                for i in range(given.dim() - 2)
            ):
                found.append(tuple(weight.shape))
        return real(given, weight, *bias)

    monkeypatch.setattr(nn.functional, "linear", watched)
    return found


def slots_of(built: Phi3WithProjector, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 255, (32, 32, 3), generator=generator, dtype=torch.uint8)
    return built.project([Image.fromarray(pixels.numpy())])[0]


def some_questions(built: Phi3WithProjector) -> list[Query]:
    """Two about one picture, one about another, one with two pictures, one whose picture comes
    last, and one without.
    """
    one, other = slots_of(built, 1), slots_of(built, 2)
    asked = [
        (f"{IMAGE}\nWhat colour is the circle?", "Red.", (one,)),
        (f"{IMAGE}\nHow many things are there in the picture?", "There are 2 things.", (one,)),
        (f"{IMAGE}\nWhat colour is the circle?", "Blue.", (other,)),
        (f"{IMAGE}\n{IMAGE}\nAre they alike?", "No.", (one, other)),
        (f"What is it?\n{IMAGE}", "A star.", (other,)),
        ("Hello.", "Hello! Show me a picture.", ()),
    ]
    return [
        Query((Message("user", text),), Message("assistant", right), slots)
        for text, right, slots in asked
    ]


def by_itself(built: Phi3WithProjector, one: Query) -> tuple[list[int], float]:
    """The plain way: no cache but generate's own, no padding, the model's own loss."""
    counts = [len(vectors) for vectors in one.image_embeds]
    asked = torch.tensor([built.prompt.render_for_completion(one.messages, counts)])
    whole = built.prompt.render_conversation([*one.messages, one.reference], counts)
    labels = torch.tensor([whole.labels])
    with torch.inference_mode():
        made = built.model.generate(
            inputs_embeds=built.embed(asked, one.image_embeds), max_new_tokens=8, do_sample=False
        )
        loss = built.model(
            inputs_embeds=built.embed(torch.tensor([whole.ids]), one.image_embeds), labels=labels
        ).loss
        tokens = int((labels[:, 1:] != -100).sum())
        return built.prompt.truncate_at_stop(made[0].tolist()), float(loss) * tokens


@pytest.mark.slow
def test_together_as_alone(built: Phi3WithProjector) -> None:
    asked = some_questions(built)
    for one, answered in zip(asked, batch_generate(built, asked, max_new_tokens=8), strict=True):
        ids, loss = by_itself(built, one)
        dtype = built.model.lm_head.weight.dtype
        assert answered.loss == pytest.approx(loss, abs=BOUNDS[dtype])
        if dtype is torch.float32:
            assert list(answered.ids) == ids
            assert answered.text == built.prompt.decode(ids)


@pytest.mark.slow
def test_no_weights_are_repeated_for_the_rows_of_a_batch(
    built: Phi3WithProjector, repeated: list[tuple[int, ...]]
) -> None:
    """The looks of training, whose output matrix is frozen: 1.8 GB for 32 questions."""
    built.model.requires_grad_(False)
    asked = some_questions(built)
    batch_generate(built, asked, max_new_tokens=4)
    reference_losses(built, asked)
    assert repeated == []
    # The control: transformers by itself.
    ids = torch.randint(20, 30, (2, 7))
    built.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2)
    assert tuple(built.model.lm_head.weight.shape) in repeated


@pytest.mark.slow
def test_references_behind_one_question_as_alone(
    built: Phi3WithProjector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of several references to a question, which is read once, with and without images; the
    likeliest is that of the smallest.
    """
    bound = BOUNDS[built.model.lm_head.weight.dtype]
    asked = some_questions(built)
    texts = ("Red.", "A long answer of several words.", "No.")
    rows = [replace(one, reference=Message("assistant", text)) for one in asked for text in texts]
    alone = [by_itself(built, one)[1] for one in rows]
    read: list[int] = []
    real = generation.SharedPrefix._prefill

    def counted(
        self: generation.SharedPrefix, heads: list[list[int]], slots: list[torch.Tensor]
    ) -> object:
        read.append(len(heads))
        return real(self, heads, slots)

    monkeypatch.setattr(generation.SharedPrefix, "_prefill", counted)
    found = [loss for loss, _ in reference_losses(built, rows)]
    assert read == [5, 1], "each question once"
    assert found == pytest.approx(alone, abs=bound)
    chosen = likeliest_answers(built, [*asked, asked[0]], [texts] * 7, batch_size=5)
    for at, text in enumerate(chosen[:6]):
        its = alone[3 * at : 3 * at + 3]
        assert its[texts.index(text)] == pytest.approx(min(its), abs=2 * bound)
    assert chosen[6] == chosen[0]


@pytest.mark.slow
def test_a_picture_is_read_once(built: Phi3WithProjector, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = generation.SharedPrefix._prefill

    def counted(
        self: generation.SharedPrefix, heads: list[list[int]], slots: list[torch.Tensor]
    ) -> object:
        read.append(len(heads))
        return real(self, heads, slots)

    monkeypatch.setattr(generation.SharedPrefix, "_prefill", counted)
    batch_generate(built, some_questions(built)[:3], max_new_tokens=2)
    assert read == [2]


def test_the_picture_matters(built: Phi3WithProjector) -> None:
    """The control: behind another picture's cache the loss is another."""
    first, second, other, *_ = some_questions(built)
    swapped = Query(second.messages, second.reference, other.image_embeds)
    before, after = (
        batch_generate(built, [first, one], max_new_tokens=2)[1].loss for one in (second, swapped)
    )
    assert abs(before - after) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("max_new_tokens", [1, 3, 8])
def test_a_reference_is_but_a_draft(
    built: Phi3WithProjector, monkeypatch: pytest.MonkeyPatch, max_new_tokens: int
) -> None:
    """Whatever the reference, the answer is the greedy one, though less is generated where it
    agrees. The control: references taken as they are change answers.
    """
    if built.model.lm_head.weight.dtype is not torch.float32:
        pytest.skip("in bfloat16 the likeliest of random weights depends on a batch's shape")
    asked = some_questions(built)
    plain = batch_generate(built, asked, max_new_tokens=max_new_tokens, losses=False)
    agree = [range(len(one.ids) + 1) for one in plain]
    queries = [one for one, counts in zip(asked, agree, strict=True) for _ in counts]
    greedy = [one.ids for one, counts in zip(plain, agree, strict=True) for _ in counts]
    drafts = [
        [*one.ids[:count], *reversed(one.ids[count:])]  # of its first `count` tokens and others
        for one, counts in zip(plain, agree, strict=True)
        for count in counts
    ]
    # those with images come first
    order = sorted(range(len(queries)), key=lambda i: not queries[i].image_embeds)
    left = iter([drafts[i] for i in order])
    real_render, real_generate = generation._render, generation.SharedPrefix.generate
    generated: list[int] = []

    def rendered(some: Any, model: Any) -> tuple[list[list[int]], list[Rendered]]:
        prompts, _ = real_render(some, model)
        ends = [[*next(left), model.prompt.stop_ids[0]] for _ in prompts]
        rows = zip(prompts, ends, strict=True)
        return prompts, [Rendered([*p, *e], [IGNORE_INDEX] * len(p) + e) for p, e in rows]

    def counted(self: Any, rows: list[int], tails: Any, most: int) -> list[list[int]]:
        generated.extend(rows)
        return real_generate(self, rows, tails, most)

    monkeypatch.setattr(generation, "_render", rendered)
    monkeypatch.setattr(generation.SharedPrefix, "generate", counted)
    found = batch_generate(built, queries, max_new_tokens=max_new_tokens)
    assert [one.ids for one in found] == greedy
    assert len(generated) <= len(queries) - len(asked), "the last drafts of each are the answer"

    def believed(self: Any, stop_ids: Any, most: int) -> tuple[list[int], bool]:
        return list(self.ids[:most]), True

    left = iter([drafts[i] for i in order])
    monkeypatch.setattr(generation.ScoredReference, "greedy", believed)
    trusting = batch_generate(built, queries, max_new_tokens=max_new_tokens)
    assert ([one.ids for one in trusting] != greedy) is (max_new_tokens > 1)


@pytest.mark.parametrize(
    ("likeliest", "most", "known"),
    [
        ([5, 6, 7, 2], 8, ([5, 6, 7, 2], True)),  # all of it, with its end
        ([5, 6, 7, 9], 8, ([5, 6, 7, 9], False)),  # it goes on where the reference ends
        ([5, 9, 7, 2], 8, ([5, 9], False)),  # what follows another token is not known
        ([2, 6, 7, 2], 8, ([2], True)),  # no answer
        ([5, 6, 2, 9], 8, ([5, 6, 2], True)),  # a shorter one
        ([5, 6, 7, 2], 2, ([5, 6], True)),
        ([9, 6, 7, 2], 1, ([9], True)),
    ],
)
def test_what_a_draft_tells(likeliest: list[int], most: int, known: tuple[list[int], bool]) -> None:
    one = generation.ScoredReference(0.0, (5, 6, 7, 2), tuple(likeliest))
    assert one.greedy({2, 3}, most) == known
