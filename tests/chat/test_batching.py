"""Continuous batching: every answer is the one that it would be alone, whoever comes, goes, stops
or fails beside it.
"""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from phisense.chat import ChatSession, Sampling
from phisense.chat.batching import MAX_PLACES, Batcher, GenerationStopped, places_for
from phisense.chat.fair_lock import FairLock
from phisense.chat.sampling import TokenSampler
from phisense.chat.torch_engine import TorchEngine
from phisense.malloc import resident_bytes
from phisense.model import load_model
from phisense.model.decoding import GRAPH_SPAN, IncrementalDecoder, _precomputed_rotary
from phisense.vision.image_io import open_image

END = 99


class _Seat(dict[str, Any]):
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


class Counting:
    """A model whose answer to the prompt `[n, length]` is n, n + 1, ..., `length` tokens. It notes
    who was computed together, and what is kept for whom; `broken` is called with each token.
    """

    def __init__(self, places: int = 3, chunks: int = 1) -> None:
        self.places, self.chunks = places, chunks
        self.rounds: list[tuple[int, ...]] = []
        self.kept: list[tuple[object, bool]] = []
        self.seated = 0
        self.reading: list[int] = []
        self.pause = self.reading_pause = 0.0
        self.broken: Callable[[int], object] = lambda token: None

    def enter(self, ids: Sequence[int], images: Sequence[Any], owner: object) -> _Seat:
        self.broken(-ids[0])
        self.seated += 1
        assert self.seated <= self.places
        return _Seat(next=ids[0], left=ids[1], owner=owner, chunks=self.chunks)

    def prefill(self, seats: Sequence[_Seat], stop: threading.Event | None) -> dict[_Seat, Any]:
        """Two at once at most."""
        time.sleep(self.pause + self.reading_pause)
        if stop is not None and stop.is_set():
            raise GenerationStopped
        found = {}
        for seat in seats[:2]:
            self.reading.append(seat["next"])
            seat["chunks"] -= 1
            found[seat] = None if seat["chunks"] else self._logits(seat)
        return found

    def step(self, tokens: Sequence[tuple[_Seat, int]]) -> list[torch.Tensor]:
        time.sleep(self.pause)
        self.rounds.append(tuple(token for _, token in tokens))
        for _, token in tokens:
            self.broken(token)
        return [self._logits(seat) for seat, _ in tokens]

    def leave(self, seat: _Seat, *, sound: bool) -> None:
        self.seated -= 1
        self.kept.append((seat["owner"], sound))

    def _logits(self, seat: _Seat) -> torch.Tensor:
        token = seat["next"] if seat["left"] else END
        seat["next"], seat["left"] = seat["next"] + 1, seat["left"] - 1
        return torch.nn.functional.one_hot(torch.tensor(token), 100).float()


class Words:
    """A tokenizer whose tokens are numbers."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(f"{one} " for one in ids)


def batcher(model: Any) -> Batcher[Any]:
    return Batcher(model, Words(), [END], lambda: TokenSampler("no"), FairLock())


def answer(first: int, length: int) -> str:
    return "".join(f"{first + i} " for i in range(length))


def stream(
    made: Batcher[Any], first: int, length: int, stop: threading.Event | None = None, most: int = 50
) -> Iterator[str]:
    ids = [first, length]
    return made.stream(ids, [], Sampling(most), stop or threading.Event(), f"owner {first}")


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each returns or raises, in threads of their own."""
    found: list[Any] = [None] * len(works)

    def run(place: int, work: Callable[[], Any]) -> None:
        try:
            found[place] = work()
        except BaseException as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=one) for one in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "an answer hangs"
    return found


def test_those_who_ask_at_once_share_steps_and_each_gets_its_own() -> None:
    model = Counting(places=3)
    model.pause = 0.002
    made = batcher(model)
    asked = [(10 * i, 3 + i) for i in range(7)]
    found = at_once(*(lambda one=one: "".join(stream(made, *one)) for one in asked))  # type: ignore[misc]
    assert found == [answer(*one) for one in asked]
    assert max(map(len, model.rounds)) == 3
    assert model.seated == 0
    assert made.answering == 0
    alone = sum(length for _, length in asked)
    assert len(model.rounds) < alone


def test_places_are_given_in_the_order_of_asking() -> None:
    model = Counting(places=1)
    made = batcher(model)
    threads = []
    with made._lock.acquire():  # nothing is computed before all have asked
        for number in range(10, 90, 10):
            threads.append(threading.Thread(target=lambda n=number: list(stream(made, n, 2))))  # type: ignore[misc]
            threads[-1].start()
            while made.answering < len(threads):
                time.sleep(0.001)
    for thread in threads:
        thread.join(30)
    assert model.reading == list(range(10, 90, 10))


def test_who_comes_later_joins_and_a_long_prompt_holds_up_nobody() -> None:
    """Between two chunks of a prompt that take longer than a token every answer gets one."""
    model = Counting(places=2)
    model.reading_pause = 0.005
    made = batcher(model)
    first = stream(made, 1, 40)
    next(first)
    model.chunks = 10
    late = stream(made, 60, 3)
    said = "".join(late)
    assert said == answer(60, 3)
    assert model.reading.count(60) == 10
    before = model.rounds.index(next(one for one in model.rounds if 60 in one))
    assert model.rounds[:before] == [(token,) for token in range(1, 11)]
    assert model.rounds[before] == (11, 60)
    assert "".join(first) == answer(2, 39)


@pytest.mark.parametrize("where", ["enter", "prefill", "sample"])
def test_an_error_of_one_is_raised_to_him_alone(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Counting(places=3)
    model.pause = 0.002
    made = batcher(model)
    if where == "sample":
        usual = TokenSampler.sample

        def sample(self: TokenSampler, logits: Any, sampling: Sampling) -> int:
            token = usual(self, logits, sampling)
            return 1 // 0 if token == 22 else token

        monkeypatch.setattr(TokenSampler, "sample", sample)
    elif where == "enter":
        model.broken = lambda token: 1 / (token + 20)
    else:
        read = model.prefill

        def prefill(seats: Any, stop: Any) -> Any:
            return 1 / 0 if any(one["next"] == 20 for one in seats) else read(seats, stop)

        monkeypatch.setattr(model, "prefill", prefill)
    one, other, broken = at_once(
        lambda: "".join(stream(made, 1, 9)),
        lambda: "".join(stream(made, 40, 9)),
        lambda: "".join(stream(made, 20, 9)),
    )
    assert [one, other] == [answer(1, 9), answer(40, 9)]
    assert isinstance(broken, ZeroDivisionError)
    assert model.seated == made.answering == 0
    assert ("owner 20", True) not in model.kept, "a broken state was kept"
    assert "".join(stream(made, 20, 1)) if where == "sample" else True


def test_a_step_that_one_breaks_goes_on_without_him() -> None:
    model = Counting(places=3)
    made = batcher(model)
    model.broken = lambda token: 1 / (token - 5)
    model.pause = 0.002
    found = at_once(
        lambda: list(stream(made, 1, 30)),
        lambda: "".join(stream(made, 40, 30)),
        lambda: "".join(stream(made, 70, 20)),
    )
    assert isinstance(found[0], ZeroDivisionError)
    assert found[1:] == [answer(40, 30), answer(70, 20)]
    assert model.seated == made.answering == 0
    assert ("owner 1", False) in model.kept


def test_whoever_leaves_or_stops_touches_no_other() -> None:
    """200 visitors who read on, close, stop before or within, or pause, over three places."""
    model = Counting(places=3, chunks=2)
    made = batcher(model)
    rng = random.Random(0)

    def visit(first: int, how: str, length: int) -> bool:
        stop, pieces = threading.Event(), []
        said = stream(made, first, length, stop)
        if how == "stopped before":
            stop.set()
        with suppress(StopIteration):
            for _ in range(rng.randrange(1, 5)):
                pieces += [next(said)]
        if how == "closes":
            said.close()  # type: ignore[attr-defined]
        elif how == "stops":
            stop.set()
            pieces += list(said)
        elif how == "slow":
            time.sleep(0.01)
            pieces += list(said)
        elif how == "collected":
            del said
            gc.collect()
        else:
            pieces += list(said)
        whole = answer(first, length)
        if how in ("reads", "slow"):
            return "".join(pieces) == whole
        return whole.startswith("".join(pieces))

    hows = ("reads", "reads", "slow", "closes", "stops", "stopped before", "collected")
    visits = [(rng.randrange(50), rng.choice(hows), rng.randrange(1, 12)) for _ in range(200)]
    for start in range(0, len(visits), 20):
        found = at_once(
            *(lambda one=one: visit(*one) for one in visits[start : start + 20])  # type: ignore[misc]
        )
        assert found == [True] * 20
    assert list(stream(made, 1, 1)), "the last round ends what was left behind"
    assert model.seated == made.answering == 0
    assert not made._lock._waiting


def test_an_interruption_ends_all_and_comes_out() -> None:
    model = Counting(places=2)

    def interrupted(token: int) -> None:
        if token == 3:
            raise KeyboardInterrupt

    model.broken = interrupted
    with pytest.raises(KeyboardInterrupt):
        list(stream(batcher(model), 1, 9))
    assert model.kept == [("owner 1", False)]


def test_a_limit_on_tokens_is_kept() -> None:
    assert ["".join(stream(batcher(Counting()), 1, 9, most=most)) for most in (1, 4)] == [
        answer(1, 1),
        answer(1, 4),
    ]


def test_as_many_places_as_have_room() -> None:
    assert [places_for(one) for one in (1.0, 1e9, 1.6e9, 9e9)] == [MAX_PLACES, 4, 2, 1]


@pytest.fixture(scope="module")
def engine(model: Path) -> TorchEngine:
    return TorchEngine(load_model(model, "cpu", torch.float32), "practice")


def test_eight_visitors_are_answered_as_each_alone(engine: TorchEngine, world: Path) -> None:
    """Two turns each, in float32, about pictures of their own; some steps are shared."""
    pictures = [open_image(world / "data" / "images" / f"heldout-0000{i}.jpg") for i in range(8)]
    questions = ("Describe the picture.", "How many things are there?")

    def talk(picture: Image.Image) -> list[str]:
        session = ChatSession(engine)
        session.set_image(picture)
        return ["".join(session.ask(question)) for question in questions]

    alone = [talk(picture) for picture in pictures]
    sizes = []
    usual = engine.step

    def counted(tokens: Any) -> Any:
        sizes.append(len(tokens))
        return usual(tokens)

    engine.step = counted  # type: ignore[method-assign]
    try:
        together = at_once(*(lambda one=one: talk(one) for one in pictures))  # type: ignore[misc]
    finally:
        del engine.step  # type: ignore[method-assign]
    assert together == alone
    assert len({tuple(one) for one in alone}) > 4
    assert max(sizes) > 4
    assert sorted(engine._free) == list(range(engine.places))


def test_a_step_of_many_is_the_steps_of_each(engine: TorchEngine) -> None:
    """Logits to 2e-5, whichever places are asked; the places between keep what they hold."""
    decoding = IncrementalDecoder(engine.built, 5)
    prompts = {0: [5, 6, 7], 2: [9] * 40, 4: [11, 12]}
    read = {
        place: decoding.prefill(decoding.embed(ids, []), [place])[0]
        for place, ids in prompts.items()
    }
    kept = decoding.save(2)
    tokens = {4: int(read[4].argmax()), 0: int(read[0].argmax())}
    together = decoding.step(tokens)
    assert torch.equal(kept, decoding.save(2))
    assert decoding.lengths == [4, 0, 40, 0, 3]
    for logits, (place, token) in zip(together, tokens.items(), strict=True):
        single = IncrementalDecoder(engine.built)
        single.prefill(single.embed(prompts[place], []))
        alone = single.step({0: token})[0]
        assert float((alone - logits).abs().max()) <= 2e-5
        other = single.step({0: token})[0]  # the control: a position further
        assert float((other - logits).abs().max()) > 1e-3
    again = decoding.step({2: 3})[0]
    single = IncrementalDecoder(engine.built)
    single.prefill(single.embed([9] * 40, []))
    assert float((single.step({0: 3})[0] - again).abs().max()) <= 2e-5


def test_prompts_that_are_read_together_are_those_read_alone(engine: TorchEngine) -> None:
    """Behind beginnings of different lengths, to 2e-5; and the cached state is the same."""
    together, rng = IncrementalDecoder(engine.built, 4), random.Random(0)
    begun = {3: 7, 1: 0, 2: 30}
    texts = {place: [rng.randrange(20, 500) for _ in range(16)] for place in begun}
    for place, length in begun.items():
        if length:
            together.prefill(together.embed([40 + place] * length, []), [place])
    rows = torch.cat([together.embed(texts[place], []) for place in begun])
    found = together.prefill(rows, list(begun))
    for logits, (place, length) in zip(found, begun.items(), strict=True):
        alone = IncrementalDecoder(engine.built)
        if length:
            alone.prefill(alone.embed([40 + place] * length, []))
        expected = alone.prefill(alone.embed(texts[place], []))[0]
        assert float((expected - logits).abs().max()) <= 2e-5
        assert float((alone.save() - together.save(place)).abs().max()) <= 2e-5
        assert float((found.roll(1, 0)[list(begun).index(place)] - logits).abs().max()) > 1e-3
    assert together.lengths == [0, 16, 46, 23]


def test_places_take_no_memory_before_they_are_used(engine: TorchEngine) -> None:
    """The control writes to all of them."""
    decoding = IncrementalDecoder(engine.built, 64)
    before = resident_bytes()
    size = decoding.buffer.nbytes
    assert not decoding.buffer[:, :, -1].any()
    decoding.prefill(decoding.embed([5] * 40, []), [3])
    assert size > 100e6
    assert resident_bytes() - before < size / 4
    decoding.buffer.fill_(1)
    assert resident_bytes() - before > size / 2


def test_what_a_gpu_records_is_what_is_computed(engine: TorchEngine) -> None:
    """A recorded step's arithmetic, without the recording, which needs a GPU: a fixed table of
    rotations and a fixed span over rows of different lengths. The control: a position further.
    """
    decoding = IncrementalDecoder(engine.built, 4)
    for place, length in ((0, 9), (2, 40)):
        decoding.prefill(decoding.embed([30 + place] * length, []), [place])
    rotary = engine.built.model.model.language_model.rotary_emb
    ids, positions = torch.tensor([7, 0, 8, 0]), decoding._ends(4)
    with torch.inference_mode():
        table = rotary(decoding.buffer, position_ids=torch.arange(GRAPH_SPAN)[None])
        with _precomputed_rotary(rotary, table):
            recorded = decoding._forward_rows(ids, positions, GRAPH_SPAN)
            other = decoding._forward_rows(ids, positions + 1, GRAPH_SPAN)
    together = decoding.step({0: 7, 2: 8})
    assert float((recorded[[0, 2]] - together).abs().max()) <= 2e-5
    assert float((other[[0, 2]] - together).abs().max()) > 1e-3


def test_a_state_that_cannot_be_kept_ends_nobody_elses_answer() -> None:
    """As without memory for a copy: the visitor who stopped is gone, the other goes on."""
    model = Counting(places=2)
    usual = model.leave

    def leave(seat: _Seat, *, sound: bool) -> None:
        usual(seat, sound=sound)
        if seat["owner"] == "owner 50":
            raise MemoryError

    model.leave = leave  # type: ignore[method-assign]
    made, stop = batcher(model), threading.Event()
    gone = stream(made, 50, 30, stop)
    assert next(gone) == "50 "
    stop.set()
    assert "".join(stream(made, 1, 9)) == answer(1, 9)
    assert model.seated == 0
