"""Conversations that share a picture learn what they would learn apart: same loss, same gradients,
to 1e-5 in float32.

In bfloat16 each product rounds to 8 bits, and other rows beside a row change in which order a
kernel sums. There the loss holds to 0.001, which a conversation that sees its neighbour exceeds,
and each gradient to a tenth of its largest number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from phisense import Phi3WithProjector
from phisense.conversations import IMAGE, Conversation, Message
from phisense.families import FAMILIES
from phisense.prompt import IGNORE_INDEX
from phisense.training import packing
from phisense.training.data import Collator
from phisense.training.objectives import OBJECTIVES, BatchLayout
from phisense.training.objectives.supervised import supervised_loss
from phisense.training.packing import PackedRow, Sample, pack, single_row


def talk(about: str, *turns: str, images: tuple[str, ...] = ("a.jpg",)) -> Conversation:
    return Conversation(
        about,
        tuple(Message("user" if i % 2 == 0 else "assistant", turn) for i, turn in enumerate(turns)),
        images,
    )


TALKS = (
    talk(
        "first",
        f"{IMAGE}\nWhat colour is the circle?",
        "Red.",
        "And the square?",
        "Blue. The square is blue.",
    ),
    talk("second", f"{IMAGE}\nHow many things are there?", "2."),
    talk("third", f"{IMAGE}\nWhat is at the top left?", "A large red circle is there."),
    talk("another picture", f"{IMAGE}\nWhat is it?", "A cross.", images=("b.jpg",)),
    talk("picture last", f"What is it?\n{IMAGE}", "A star."),
    talk("no picture", "Hello.", "Hello! Show me a picture.", images=()),
)


class Store:
    """Two pictures' features, as a store hands them out."""

    def __init__(self, patches: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.kept = {
            name: torch.randn(patches, width, generator=generator) for name in ("a.jpg", "b.jpg")
        }

    def batch(self, names: Sequence[str]) -> torch.Tensor:
        return torch.stack([self.kept[name] for name in names])


#: How far the loss, and each gradient over its largest number, may be from those of conversations
#: apart.
BOUNDS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-3, 0.1)}


#: Every family in float32, where the bounds are narrow.
KINDS = [("phi3", torch.bfloat16), *((family, torch.float32) for family in FAMILIES)]


@pytest.fixture(params=KINDS, ids=str)
def built(
    request: pytest.FixtureRequest, parts_of: Callable[[str], tuple[str, str]]
) -> Phi3WithProjector:
    family, dtype = request.param
    made = Phi3WithProjector.assemble(
        *parts_of(family), stored_features=True, device="cpu", dtype=dtype
    )
    made.model.requires_grad_(True)
    return made


def samples_of(built: Phi3WithProjector) -> list[Sample]:
    rendered = [
        built.prompt.render_conversation(one.messages, [built.image_tokens] * len(one.images))
        for one in TALKS
    ]
    return [Sample(one.id, row, one.images) for one, row in zip(TALKS, rendered, strict=True)]


def collator(built: Phi3WithProjector, attention: str) -> Collator:
    store: Any = Store(built.image_tokens, built.model.config.vision_config.hidden_size)
    layout = BatchLayout(built.prompt.end_of_text_id, attention)
    return Collator(store.batch, OBJECTIVES["supervised"], layout)


def learnt(
    built: Phi3WithProjector, rows: list[PackedRow], attention: str
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss over all supervised tokens, and every parameter's gradient."""
    built.model.set_attn_implementation(attention)
    batch = collator(built, attention)(rows)
    del batch["ids"]
    built.model.zero_grad()
    loss = built.model(**batch).loss
    loss.backward()
    return float(loss.detach()), {
        name: p.grad.clone() for name, p in built.model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize(
    ("attention", "together"), [("spans", 256), ("spans", 0), ("spans", 40), ("sdpa", 0)]
)
def test_the_same_loss_and_gradients_as_apart(
    built: Phi3WithProjector, attention: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MERGE_BELOW", together)
    samples = samples_of(built)
    rows = pack(samples, built.prompt.image_id, 512)
    # without a picture; three about a.jpg; its picture last; b.jpg
    assert [len(row.ends) for row in rows] == [1, 3, 1, 1]
    apart, by_itself = learnt(built, [single_row(sample) for sample in samples], "sdpa")
    packed, shared = learnt(built, rows, attention)
    of_loss, of_gradient = BOUNDS[built.model.lm_head.weight.dtype]
    assert packed == pytest.approx(apart, abs=of_loss)
    assert by_itself.keys() == shared.keys()
    largest = max(float(gradient.abs().max()) for gradient in by_itself.values())
    assert (
        max(float((by_itself[name] - shared[name]).abs().max()) for name in shared)
        < of_gradient * largest
    )


def test_a_conversation_that_sees_its_neighbour_is_noticed(
    built: Phi3WithProjector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with a plain causal mask the comparison above fails."""
    samples = samples_of(built)
    apart, _ = learnt(built, [single_row(sample) for sample in samples], "sdpa")
    right = packing.padded_masks

    def leaky(rows: Sequence[PackedRow], width: int) -> tuple[torch.Tensor, torch.Tensor]:
        positions, seen = right(rows, width)
        return positions, torch.ones_like(seen).tril()

    monkeypatch.setattr("phisense.training.objectives.supervised.padded_masks", leaky)
    together, _ = learnt(built, pack(samples, built.prompt.image_id, 512), "sdpa")
    assert abs(together - apart) > BOUNDS[built.model.lm_head.weight.dtype][0]


def test_a_conversation_that_does_not_see_its_picture_is_noticed(
    built: Phi3WithProjector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of spans: behind nothing, the comparison above fails."""
    samples = samples_of(built)
    apart, _ = learnt(built, [single_row(sample) for sample in samples], "sdpa")
    right = packing.concatenate_rows
    monkeypatch.setattr(packing, "MERGE_BELOW", 0)

    def blind(rows: Sequence[PackedRow]) -> dict[str, torch.Tensor]:
        return right(
            [
                replace(row, shared=0, ends=(row.shared, *row.ends) if row.shared else row.ends)
                for row in rows
            ]
        )

    monkeypatch.setattr("phisense.training.objectives.supervised.concatenate_rows", blind)
    together, _ = learnt(built, pack(samples, built.prompt.image_id, 512), "spans")
    assert abs(together - apart) > BOUNDS[built.model.lm_head.weight.dtype][0]


def test_every_token_is_there_once_and_rows_are_not_overfull(built: Phi3WithProjector) -> None:
    samples = samples_of(built)
    longest = max(len(sample.rendered.ids) for sample in samples)
    for length in (longest, longest + 20, 512):
        rows = pack(samples, built.prompt.image_id, length)
        assert all(len(row.rendered.ids) <= length for row in rows)
        assert sum(len(row.ends) for row in rows) == len(samples)
        assert sum(row.tokens for row in rows) == sum(
            len(sample.rendered.ids) for sample in samples
        )
        supervised = [
            sum(label != IGNORE_INDEX for label in one.rendered.labels) for one in (*rows, *samples)
        ]
        assert sum(supervised[: len(rows)]) == sum(supervised[len(rows) :])


def test_an_answer_between_two_pictures_is_not_shared(built: Phi3WithProjector) -> None:
    two = talk(
        "two",
        f"{IMAGE}\nWhat is it?",
        "A cross.",
        f"{IMAGE}\nAnd this?",
        "A star.",
        images=("a.jpg", "b.jpg"),
    )
    row = built.prompt.render_conversation(two.messages, [built.image_tokens] * 2)
    rows = pack(
        [Sample("one", row, two.images), Sample("same", row, two.images)],
        built.prompt.image_id,
        512,
    )
    assert [len(one.ends) for one in rows] == [1, 1]


def test_logits_of_supervised_positions_give_the_models_own_loss(built: Phi3WithProjector) -> None:
    rows = pack(samples_of(built), built.prompt.image_id, 512)
    batch = collator(built, "sdpa")(rows)
    del batch["ids"]
    labels = batch["labels"]
    whole = built.model(**batch)
    supervised = torch.nn.functional.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1))
    whole.logits = whole.logits[supervised]
    assert float(supervised_loss(whole, labels, int(supervised.sum()))) == pytest.approx(
        float(whole.loss), rel=1e-6 if whole.logits.dtype is torch.float32 else 1e-2
    )
