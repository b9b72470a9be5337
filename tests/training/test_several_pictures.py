"""Rows with `images: [...]`: from the file through `check`, `features`, packing and collation to
loss and logits, which are those of plain transformers given the pictures themselves, to 1e-5.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from phisense import Phi3WithProjector, encode_features, load_recipe
from phisense.conversations import (
    IMAGE,
    Conversation,
    Message,
    read_conversations,
    read_questions,
)
from phisense.conversations.check import check
from phisense.errors import ConversationError
from phisense.model.arithmetic import choose_arithmetic
from phisense.model.folder import save_model
from phisense.prompt import IGNORE_INDEX, Prompt
from phisense.recipe import Recipe
from phisense.showing import render_rows
from phisense.training import packing
from phisense.training.data import Collator, Samples
from phisense.training.gradient_check import sample_rows
from phisense.training.objectives import OBJECTIVES, BatchLayout
from phisense.training.objectives.supervised import supervised_loss
from phisense.training.packing import PackedRow
from phisense.training.run_context import open_store
from phisense.vision.image_checks import check_image

from ..several import MOST_PICTURES, drawn_conversation, drawn_pictures, to_row
from ..tiny import make_root

NAMES = tuple(f"{letter}.png" for letter in "abcdef")
ROWS = 24
LOOK = partial(check_image, decode=True)
CHANGES = ("features.dtype=float32", "data.held_out=[held-out.json]")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated rows about several pictures, each thrice so that rows are shared, and their
    features.
    """
    folder = tmp_path_factory.mktemp("several")
    make_root(folder)
    for name, picture in zip(NAMES, drawn_pictures(len(NAMES)), strict=True):
        picture.save(folder / "images" / name)
    rng = random.Random("rows")
    drawn = [drawn_conversation(rng, NAMES, f"row {i}") for i in range(ROWS)]
    last = Message("user", "So?"), Message("assistant", "Yes.")
    more = [replace(one, id=f"{one.id}+", messages=(*one.messages, *last)) for one in drawn]
    rows = [to_row(one) for one in (*drawn, *more, *drawn[: ROWS // 2])]
    (folder / "rows.json").rename(folder / "held-out.json")  # about one picture each
    (folder / "rows.json").write_text(json.dumps(rows))
    encode_features(load_recipe(str(folder / "tiny.yaml"), CHANGES))
    return folder


@pytest.fixture(scope="module")
def recipe(root: Path) -> Recipe:
    return load_recipe(str(root / "tiny.yaml"), CHANGES)


@pytest.fixture(scope="module")
def built(root: Path) -> Phi3WithProjector:
    return Phi3WithProjector.assemble(
        str(root / "parts/language"), str(root / "parts/vision"), device="cpu", dtype=torch.float32
    )


@pytest.fixture(scope="module")
def plain(built: Phi3WithProjector, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The same weights, opened by transformers alone, and its processor."""
    folder = tmp_path_factory.mktemp("plain")
    save_model(built, folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def pictures_of(root: Path, one: Conversation) -> list[Image.Image]:
    return [Image.open(root / "images" / name).convert("RGB") for name in one.images]


@torch.inference_mode()
def plain_logits(plain: tuple[Any, Any], one: Conversation, seen: list[Image.Image]) -> Any:
    """Ids `(T,)` and logits `(T, V)` of plain transformers: its own template, its own processor."""
    model, processor = plain
    chat = [{"role": message.role, "content": message.text} for message in one.messages]
    text = processor.apply_chat_template(chat, tokenize=False)
    given = processor(text=text, images=seen or None, return_tensors="pt", add_special_tokens=False)
    return given["input_ids"][0], model(**given).logits[0]


def conversations(root: Path) -> list[Conversation]:
    return read_conversations(root / "rows.json")


def test_the_generated_rows_are_of_every_kind(root: Path) -> None:
    rows = conversations(root)
    assert {len(one.images) for one in rows} == set(range(MOST_PICTURES + 1))
    starts = {
        text.startswith(IMAGE) for one in rows for m in one.messages if IMAGE in (text := m.text)
    }
    assert starts == {True, False}
    assert any(IMAGE in m.text for one in rows for m in one.messages[2:]), "in later turns, too"
    assert any(f"{IMAGE}{IMAGE}" in m.text for one in rows for m in one.messages)
    assert any(max(Counter(one.images).values(), default=0) > 1 for one in rows), "one twice"


def test_logits_are_those_of_plain_transformers(
    root: Path, built: Phi3WithProjector, plain: tuple[Any, Any]
) -> None:
    """All rows in one batch here, one by one there; ids as its own template has them."""
    rows = conversations(root)
    seen = [pictures_of(root, one) for one in rows]
    batch = built.inputs([one.messages for one in rows], seen)
    with torch.inference_mode():
        logits = built.model(**batch.to_kwargs()).logits
    swapped = 0
    for i, (one, pictures) in enumerate(zip(rows, seen, strict=True)):
        ids, wanted = plain_logits(plain, one, pictures)
        length = int(batch.attention_mask[i].sum())
        assert batch.input_ids[i, :length].tolist() == ids.tolist()
        assert (logits[i, :length] - wanted).abs().max() < 1e-5
        if len(set(one.images)) > 1:
            turned = [*pictures[1:], pictures[0]]
            if one.images[1:] + one.images[:1] != one.images:
                _, other = plain_logits(plain, one, turned)
                assert (other - wanted).abs().max() > 1e-3, "the control: the order matters"
                swapped += 1
    assert swapped >= 5


def samples_of(root: Path, built: Phi3WithProjector, *, share: bool, length: int = 512) -> Samples:
    return Samples(
        [(root / "rows.json", 1.0)],
        built.prompt,
        {1: built.image_tokens},
        length,
        objective=OBJECTIVES["supervised"],
        share=share,
    )


def collated(recipe: Recipe, rows: list[PackedRow], attention: str, prompt: Prompt) -> Any:
    store = open_store(recipe, choose_arithmetic("train", "cpu"))
    layout = BatchLayout(prompt.end_of_text_id, attention)
    batch = Collator(store.batch, OBJECTIVES["supervised"], layout)(rows)
    del batch["ids"]
    return batch


def trained_loss(
    recipe: Recipe, root: Path, rows: list[PackedRow], attention: str, prompt: Prompt
) -> float:
    """The mean loss of a batch as training computes it, from stored features."""
    model = Phi3WithProjector.assemble(
        str(root / "parts/language"),
        str(root / "parts/vision"),
        stored_features=True,
        device="cpu",
        dtype=torch.float32,
    ).model
    model.set_attn_implementation({"text_config": attention})
    batch = collated(recipe, rows, attention, prompt)
    labels = batch.pop("labels")
    supervised = torch.nn.functional.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1))
    with torch.inference_mode():
        out = model(**batch)
    out.logits = out.logits[supervised]
    return float(supervised_loss(out, labels, int(supervised.sum())))


@pytest.mark.parametrize("together", [256, 0])
@pytest.mark.parametrize("attention", ["spans", "sdpa"])
@pytest.mark.parametrize("share", [True, False])
def test_the_loss_of_packed_rows_is_that_of_plain_transformers(
    root: Path,
    recipe: Recipe,
    built: Phi3WithProjector,
    plain: tuple[Any, Any],
    attention: str,
    share: bool,
    together: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "MERGE_BELOW", together)
    samples = samples_of(root, built, share=share)
    if share:
        shared = [row for row in samples.rows if len(row.ends) > 1]
        assert {min(len(row.images), 2) for row in shared} == {1, 2}, (
            "rows of several pictures, too"
        )
    losses, tokens = 0.0, 0
    for one in conversations(root):
        labels = torch.tensor(
            built.prompt.render_conversation(
                one.messages, [built.image_tokens] * len(one.images)
            ).labels
        )
        _, logits = plain_logits(plain, one, pictures_of(root, one))
        losses += float(torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum"))
        tokens += int((labels[1:] != IGNORE_INDEX).sum())
    wanted = losses / tokens
    found = trained_loss(recipe, root, list(samples.rows), attention, built.prompt)
    assert found == pytest.approx(wanted, abs=1e-5)
    turned = [replace(row, images=row.images[1:] + row.images[:1]) for row in samples.rows]
    other = trained_loss(recipe, root, turned, attention, built.prompt)
    assert abs(other - wanted) > 1e-4, "the control: pictures in another order"


def test_only_conversations_with_all_pictures_in_common_share_a_row(
    root: Path, built: Phi3WithProjector
) -> None:
    samples = samples_of(root, built, share=True)
    by_id = {one.id: one for one in conversations(root)}
    found = Counter(one for row in samples.rows for one in row.ids)
    assert sum(found.values()) == samples.conversations
    for row in samples.rows:
        for name in row.ids:
            assert by_id[name].images == row.images
        image_tokens = row.rendered.ids.count(built.prompt.image_id)
        assert image_tokens == len(row.images) * built.image_tokens
        if len(row.ends) > 1:  # every picture lies in what is shared, no answer does
            assert built.prompt.image_id not in row.rendered.ids[row.shared :]
            assert set(row.rendered.labels[: row.shared]) == {IGNORE_INDEX}


def test_a_row_cut_short_loses_the_pictures_of_what_it_lost(
    root: Path, recipe: Recipe, built: Phi3WithProjector
) -> None:
    whole = {one.id: one for one in conversations(root)}
    shortened = 0
    for length in range(60, 200, 20):
        fitting = [
            one for one in conversations(root) if rendered_length(built, one.messages[:2]) <= length
        ]
        (root / "cut.json").write_text(json.dumps([to_row(one) for one in fitting]))
        samples = Samples(
            [(root / "cut.json", 1.0)],
            built.prompt,
            {1: built.image_tokens},
            length,
            objective=OBJECTIVES["supervised"],
        )
        for row in samples.rows:
            every = whole[row.ids[0]].images
            assert row.images == every[: len(row.images)]
            count = row.rendered.ids.count(built.prompt.image_id)
            assert count == len(row.images) * built.image_tokens
            assert len(row.rendered.ids) <= length
            shortened += len(row.images) < len(every)
        collated(recipe, list(samples.rows), "sdpa", built.prompt)
    assert shortened > 5, "the control: some lost pictures"


def rendered_length(built: Phi3WithProjector, messages: tuple[Message, ...]) -> int:
    count = sum(message.text.count(IMAGE) for message in messages)
    return len(built.prompt.render_conversation(messages, [built.image_tokens] * count).ids)


def test_the_gradient_check_draws_rows_of_several_pictures(
    root: Path, built: Phi3WithProjector
) -> None:
    samples = samples_of(root, built, share=True)
    drawn = [samples.rows[i] for i in sample_rows(samples, 0, 10_000)]
    assert {min(len(row.images), 2) for row in drawn} == {0, 1, 2}


def test_check_takes_them_and_refuses_a_wrong_number(root: Path, tmp_path: Path) -> None:
    """One `<image>` too many or too few is a defect of its row, with both numbers."""
    rows = [to_row(one) for one in conversations(root)]
    clean = check(root / "rows.json", [root / "images"], check_image=LOOK)
    assert not [one for one in clean.rejects if one.code != "duplicate-row"]
    assert clean.pictures == len(NAMES)

    def marked_twice(row: Any) -> None:
        first = row["conversations"][0]
        first["value"] = f"{IMAGE} {first['value']}"

    for change in (
        marked_twice,
        lambda row: row["images"].append("a.png"),
        lambda row: row["images"].pop(),
    ):
        broken = json.loads(json.dumps([row for row in rows if row["images"]]))
        for row in broken:
            change(row)
        path = tmp_path / "broken.json"
        path.write_text(json.dumps(broken))
        found = check(path, [root / "images"], check_image=LOOK)
        assert len(found.rejected) == len(broken)
        for row, defect in zip(
            broken, (one for one in found.rejects if one.code == "image-count"), strict=True
        ):
            marks = sum(turn["value"].count(IMAGE) for turn in row["conversations"])
            assert f"{marks} {IMAGE} for {len(row['images'])} pictures" in defect.what
        with pytest.raises(ConversationError, match=f"{IMAGE} for"):
            read_conversations(path)


def test_questions_about_several_pictures_are_refused_by_name(root: Path) -> None:
    several = next(i for i, one in enumerate(conversations(root), 1) if len(one.images) > 1)
    count = len(conversations(root)[several - 1].images)
    with pytest.raises(
        ConversationError,
        match=f"row {several} has several pictures; got {count}; wanted at most one",
    ):
        read_questions(root / "rows.json")


def test_show_tells_one_picture_from_the_next(root: Path, recipe: Recipe) -> None:
    for row, one in zip(
        render_rows(root / "rows.json", recipe, 99), conversations(root), strict=True
    ):
        assert sum(token.startswith("<image>x") for token in row.tokens) == len(one.images)
