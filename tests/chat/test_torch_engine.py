"""Keys and values that stay between turns: nothing is computed twice, nothing comes out otherwise,
nobody gets another's.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from phisense.chat import ChatSession, Sampling
from phisense.chat.detokenize import StreamingDetokenizer
from phisense.chat.fair_lock import FairLock
from phisense.chat.kv_cache import SessionCache
from phisense.chat.session import ChatImage
from phisense.chat.torch_engine import TorchEngine
from phisense.conversations import IMAGE, Message
from phisense.model import load_model
from phisense.model.decoding import IncrementalDecoder
from phisense.vision.image_io import open_image

#: How far logits may be from those that are computed anew, by the format that the engine computes
#: in: in bfloat16 a token that is computed alone is summed in another order than among others, and
#: each product is rounded to 8 bits.
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 0.25}


@pytest.fixture(scope="module", params=BOUNDS, ids=str)
def engine(request: pytest.FixtureRequest, model: Path) -> TorchEngine:
    return TorchEngine(load_model(model, "cpu", request.param), "practice")


@pytest.fixture
def picture(world: Path) -> Image.Image:
    return open_image(world / "data" / "images" / "heldout-00003.jpg")


def ask(session: ChatSession, question: str) -> str:
    return "".join(session.ask(question)).strip()


def about(engine: TorchEngine, image: torch.Tensor) -> ChatSession:
    return ChatSession(engine, added=[ChatImage(image)])


def bound(engine: TorchEngine) -> float:
    return BOUNDS[engine.built.model.lm_head.weight.dtype]


def all_logits(
    engine: TorchEngine, say: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> list[torch.Tensor]:
    """Every token's logits while `say` runs."""
    found: list[torch.Tensor] = []
    inner = type(engine._decoding)._forward

    def spy(self: Any, *args: Any) -> torch.Tensor:
        logits = inner(self, *args)
        found.extend(logits)
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(type(engine._decoding), "_forward", spy)
        say()
    return found


def test_reused_keys_and_values_give_what_recomputation_gives(
    engine: TorchEngine, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bound of the format, over three turns; and the turn is cheaper. The control: with
    another's keys and values it is not.
    """
    session = ChatSession(engine)
    session.set_image(picture)
    for question in ("How many things are there?", "Which colour does it have?"):
        ask(session, question)
    # an object of its own shares nothing
    first, second = session.turns
    own = ChatImage(first.images[0].encoded.clone())
    twin = ChatSession(engine, turns=[replace(first, images=(own,)), second])
    reused = all_logits(engine, lambda: ask(session, "Describe the picture."), monkeypatch)
    computed = all_logits(engine, lambda: ask(twin, "Describe the picture."), monkeypatch)
    assert session.turns == twin.turns
    answer = len(session.turns[-1].answer.split())
    assert len(reused) < len(computed), "the prompt was computed again"
    for one, other in zip(reused[-answer:], computed[-answer:], strict=True):
        assert float((one - other).abs().max()) <= bound(engine)
    other = ChatSession(engine)
    other.set_image(picture)
    ask(other, "Is there anything green?")
    kept = engine._cache.pop(other)
    assert kept is not None
    decoding = engine._decoding
    decoding.load(kept.keys_and_values * (1.01 if bound(engine) < 0.1 else 2.0), 40)
    wrong = decoding.prefill(decoding.embed([1, 2, 3], []))[0]
    decoding.load(kept.keys_and_values, 40)
    assert float((decoding.prefill(decoding.embed([1, 2, 3], []))[0] - wrong).abs().max()) > bound(
        engine
    )


def test_one_token_at_a_time_is_the_whole_at_once(engine: TorchEngine) -> None:
    ids, decoding = list(range(20, 60)), engine._decoding
    decoding.lengths[0] = 0
    for token in ids:
        last = decoding.step({0: token})[0]
    with torch.inference_mode():
        whole = engine.built.model(torch.tensor([ids])).logits[0, -1]
    assert float((last - whole).abs().max()) <= bound(engine)


def test_another_picture_is_never_taken_for_the_former(engine: TorchEngine, world: Path) -> None:
    """Same ids, other vectors: what was kept is not used."""
    pictures = [open_image(world / "data" / "images" / f"heldout-0000{i}.jpg") for i in (1, 2)]
    session = ChatSession(engine)
    answers = []
    for shown in (*pictures, pictures[0]):
        session.set_image(shown)
        answers.append(ask(session, "Describe the picture."))
    assert answers[0] == answers[2] != answers[1]


def test_a_stopped_reading_is_gone_on_with(engine: TorchEngine, picture: Image.Image) -> None:
    session, stop = ChatSession(engine), threading.Event()
    session.set_image(picture)
    stop.set()
    assert list(session.ask("Describe the picture.", stop)) == []
    assert session.turns == []
    fresh = ChatSession(engine)
    fresh.set_image(picture)
    assert ask(session, "Describe the picture.") == ask(fresh, "Describe the picture.")


def test_where_it_looks_is_a_grid_that_depends_on_the_picture(
    engine: TorchEngine, world: Path
) -> None:
    grids = []
    for i in (3, 4):
        session = ChatSession(engine)
        session.set_image(open_image(world / "data" / "images" / f"heldout-0000{i}.jpg"))
        ask(session, "How many things are there?")
        grids += session.attention_maps()
    side = round(engine.picture_tokens**0.5)
    assert grids[0].shape == (side, side)
    assert float(grids[0].sum()) == pytest.approx(1, abs=1e-4)
    assert float((grids[0] - grids[1]).abs().max()) > 1e-3
    assert engine.built.model.config.text_config._attn_implementation != "gaze"


def test_in_four_bits_the_language_part_alone_is_quantised(
    model: Path, picture: Image.Image
) -> None:
    """The tower, the projector and the head stay as they are; turns and their keys and values work
    the same.
    """
    from bitsandbytes.nn import Linear4bit

    quantised = TorchEngine.open(model, "cpu", quantize=True)
    within = {
        name
        for name, module in quantised.built.model.named_modules()
        if isinstance(module, Linear4bit)
    }
    layers = quantised.built.model.config.text_config.num_hidden_layers
    assert len(within) == 4 * layers
    assert all(name.startswith("model.language_model.layers.") for name in within)
    session = ChatSession(quantised)
    session.set_image(picture)
    assert ask(session, "How many things are there?").rstrip(".").isdigit()
    assert ask(session, "Describe the picture.")


def test_a_warm_answer_varies_and_a_cold_one_does_not(
    engine: TorchEngine, picture: Image.Image
) -> None:
    def answers(temperature: float) -> set[str]:
        found = set()
        for _ in range(6):
            session = ChatSession(engine, Sampling(24, temperature))
            session.set_image(picture)
            found.add(ask(session, "Describe the picture."))
        return found

    assert len(answers(0.0)) == 1
    assert len(answers(2.0)) > 1


def test_a_shelf_is_bounded_and_gives_each_its_own() -> None:
    class Owner:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = object.__hash__

    shelf: SessionCache[str] = SessionCache(2)
    one, two, three = Owner(), Owner(), Owner()
    shelf.put(one, "one")
    assert shelf.pop(two) is None
    assert shelf.pop(one) == "one"
    assert shelf.pop(one) is None
    shelf.put(one, "one")
    shelf.put(two, "two")
    assert shelf.put(three, "three") == ["one"]
    del two
    gc.collect()
    assert len(shelf) == 1


def test_turns_come_in_the_order_of_asking() -> None:
    turns, order = FairLock(), []

    def wait(number: int) -> None:
        with turns.acquire() as mine:
            assert mine
            order.append(number)

    with turns.acquire():
        threads = []
        for number in range(5):
            threads.append(threading.Thread(target=wait, args=(number,)))
            threads[-1].start()
            while len(turns._waiting) < number + 2:
                time.sleep(0.001)
        gone = threading.Event()
        gone.set()
        with turns.acquire(gone) as mine:
            assert not mine
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


class _Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


def test_words_never_end_within_a_character() -> None:
    text = "a \u00e9\u4e2d\U0001f600 b"
    pieces = StreamingDetokenizer(_Bytes())
    said = [pieces.push(byte) for byte in text.encode()] + [pieces.flush()]
    assert "".join(said) == text
    assert not any("\ufffd" in piece for piece in said)
    cut = StreamingDetokenizer(_Bytes())
    assert [cut.push(byte) for byte in "\U0001f600".encode()[:2]] + [cut.flush()] == ["", "", ""]


def test_words_are_whole_characters(engine: TorchEngine) -> None:
    tokenizer = engine.built.prompt.tokenizer
    text = "Two circles, a 3 and a square."
    words = StreamingDetokenizer(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [words.push(token) for token in ids]
    assert "".join(pieces) + words.flush() == tokenizer.decode(ids)
    assert len([piece for piece in pieces if piece]) > 3


def test_half_a_character_waits_for_its_rest(fixtures: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(fixtures / "phi3-tokenizer")
    ids = tokenizer("naïve 🦜 ok", add_special_tokens=False)["input_ids"]
    words = StreamingDetokenizer(tokenizer)
    pieces = [words.push(token) for token in ids]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "🦜" in "".join(pieces) + words.flush()
    assert "" in pieces  # it did wait


def test_the_picture_enters_where_its_slots_are(engine: TorchEngine, picture: Image.Image) -> None:
    slots = engine.encode_image(picture)
    ids = engine.built.prompt.render_for_completion(
        [Message("user", f"{IMAGE}\nHello.")], [len(slots)]
    )
    embedded = engine._decoding.embed(ids, [slots])[0]
    where = [i for i, token in enumerate(ids) if token == engine.built.prompt.image_id]
    assert torch.equal(embedded[where], slots)


def positions_read(engine: TorchEngine, session: ChatSession, monkeypatch: Any) -> tuple[int, str]:
    """Positions of the prompt that are computed for a question, and the answer."""
    read, usual = [], IncrementalDecoder.prefill

    def counted(self: Any, embedded: torch.Tensor, *places: Any) -> torch.Tensor:
        read.append(embedded.shape[1])
        return usual(self, embedded, *places)

    with monkeypatch.context() as patch:
        patch.setattr(IncrementalDecoder, "prefill", counted)
        said = ask(session, "Describe the picture.")
    return sum(one for one in read if one > 1), said


def test_one_image_object_is_read_once_for_all_and_equal_images_are_not(
    engine: TorchEngine, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two visitors of an example, one beside an answer in progress; the control has encoded the
    same image for itself, and shares nothing.
    """
    example = engine.encode_image(picture)
    first = about(engine, example)
    whole, said = positions_read(engine, first, monkeypatch)
    answers = [said]
    for other in (example, engine.encode_image(picture)):
        read, said = positions_read(engine, about(engine, other), monkeypatch)
        answers.append(said)
        shared = other is example
        assert read == whole - (engine.picture_tokens + 1) * shared  # and the user's tag
    beside = about(engine, engine.encode_image(picture))
    going_on = beside.ask("Describe the picture.")
    next(going_on)
    late = about(engine, beside.images[0].encoded)
    read, said = positions_read(engine, late, monkeypatch)
    assert read < whole - engine.picture_tokens
    answers += [said, beside.turns[0].answer if beside.turns else "".join(going_on)]
    assert len(set(answers[:4])) == 1


def test_of_anothers_question_nothing_is_used(
    engine: TorchEngine, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same question about the same example is read again, so that nobody can tell by the time
    what another asked.
    """
    example = engine.encode_image(picture)
    ask(about(engine, example), "Is there a red circle?")
    same = positions_read(engine, about(engine, example), monkeypatch)[0]
    ask(about(engine, example), "Describe the picture.")
    again = positions_read(engine, about(engine, example), monkeypatch)[0]
    assert same == again
