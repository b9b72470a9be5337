"""Conversations with pictures in any turn, over both local engines: whatever a visitor does, the
answer is that of a conversation that was computed anew, what was computed is not computed again,
and nobody gets another's.

llama.cpp is stood in for by a context whose logits are a digest of all that its sequence holds, so
one row that is wrong, missing or in another place gives another answer.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from phisense import Phi3WithProjector
from phisense.chat import ChatSession, Sampling
from phisense.chat.batching import Batcher
from phisense.chat.fair_lock import FairLock
from phisense.chat.kv_cache import SessionCache, common_prefix_length, shared_prefix_length
from phisense.chat.llama_engine import ImageEmbeddings, LlamaEngine
from phisense.chat.sampling import TokenSampler
from phisense.chat.session import ChatImage, Turn
from phisense.chat.torch_engine import TorchEngine
from phisense.conversations import IMAGE, Message
from phisense.errors import ChatError
from phisense.families import FAMILIES
from phisense.prompt import Prompt

from ..conftest import LONG
from ..several import drawn_pictures
from ..tiny import enlarge

QUESTIONS = ("What is it?", "And this one?", "Which is larger?", "Name both.", "Why?")
GREEDY = Sampling(max_new_tokens=5)
NO_TOKEN = 60  # ids below it are special tokens of the practice tokenizer, and bytes


class DigestContext:
    """Sequences of rows, as llama.cpp's, and logits that are drawn from a digest of the rows."""

    hidden_size, vocab_size, batch = 8, 700, 32

    def __init__(self, sequences: int) -> None:
        self.rows: list[list[bytes]] = [[] for _ in range(sequences)]
        self.computed = 0

    def decode_runs(self, runs: Any, *, stop: Any = None) -> np.ndarray:
        logits = []
        for sequence, start, new in runs:
            assert len(self.rows[sequence]) == start, "a position would be left out, or twice"
            self.rows[sequence] += [
                one.tobytes() if isinstance(new, np.ndarray) else b"%d" % one for one in new
            ]
            self.computed += len(new)
            digest = hashlib.sha256(b"|".join(self.rows[sequence])).digest()
            drawn = np.zeros(self.vocab_size, np.float32)
            drawn[NO_TOKEN + int.from_bytes(digest[:4], "big") % 400] = 1
            logits.append(drawn)
        return np.stack(logits)

    def truncate_to(self, sequence: int, start: int = 0) -> None:
        del self.rows[sequence][start:]

    def copy_from(self, source: int, sequence: int, length: int) -> None:
        self.rows[sequence] = self.rows[source][:length]


class DigestEngine(LlamaEngine):
    """`LlamaEngine` over a `DigestContext`."""

    def __init__(self, prompt: Prompt, window: int, sequences: int = 3) -> None:
        self.prompt, self.window, self.picture_tokens = prompt, window, 16
        self.context: Any = DigestContext(sequences)
        self._cache = SessionCache(sequences)
        self._free_sequences = deque(range(sequences))
        self._lock, self._seats, self.places = FairLock(), [], sequences
        self._image_keys = itertools.count(1)
        sampler = TokenSampler("")
        self._batcher = Batcher(
            self, prompt.tokenizer, prompt.stop_ids, lambda: sampler, self._lock
        )

    def encode_image(self, picture: Image.Image) -> ImageEmbeddings:
        pixels = np.asarray(picture.resize((16, 8)), np.float32)[..., 0].T.copy()
        return ImageEmbeddings(pixels, -next(self._image_keys))


Make = Callable[[], Any]


@pytest.fixture(scope="module")
def make_torch(parts_of: Callable[[str], tuple[str, str]]) -> Callable[[str], TorchEngine]:
    built: dict[str, Phi3WithProjector] = {}

    def make(family: str) -> TorchEngine:
        if family not in built:
            one = Phi3WithProjector.assemble(
                *parts_of(family), device="cpu", dtype=torch.float32, seed=3
            )
            enlarge(one.model.model.language_model, 6.0)
            built[family] = one
        return TorchEngine(built[family], family)

    return make


@pytest.fixture(
    params=[("torch", name) for name in FAMILIES] + [("llama", name) for name in FAMILIES],
    ids="-".join,
)
def make(request: pytest.FixtureRequest, make_torch: Callable[[str], TorchEngine]) -> Make:
    """A function that makes an engine with nothing in its cache."""
    kind, family = request.param
    prompt = make_torch(family).built.prompt
    if kind == "torch":
        return lambda: make_torch(family)
    return lambda: DigestEngine(prompt, window=512)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each answer the number of positions of its prompt that were left to compute."""
    found: list[int] = []
    for engine in (TorchEngine, LlamaEngine):

        def counted(self: Any, *given: Any, usual: Any = engine.enter) -> Any:
            seat = usual(self, *given)
            left = (
                seat.unread.shape[1]
                if isinstance(self, TorchEngine)
                else len(seat.keys) - len(seat.state.keys)
            )
            found.append(left)
            return seat

        monkeypatch.setattr(engine, "enter", counted)
    return found


def ask(session: ChatSession, question: str) -> str:
    return "".join(session.ask(question))


def alone(session: ChatSession, make: Make) -> ChatSession:
    """The same conversation with an engine that has computed nothing, and images of its own."""
    engine = make()

    def own(image: ChatImage) -> ChatImage:
        one = image.encoded
        if isinstance(one, torch.Tensor):
            return ChatImage(one.clone(), image.name)
        return ChatImage(ImageEmbeddings(one.embeddings, -next(engine._image_keys)), image.name)

    turns = [Turn(t.question, t.answer, tuple(map(own, t.images))) for t in session.turns]
    return ChatSession(engine, session.sampling, turns, [own(one) for one in session.added])


def prompt_keys(session: ChatSession, question: str) -> list[object]:
    """What the model reads for a question: a token, or at an image's places the image's name."""
    messages = [
        message
        for turn in session.turns
        for message in (
            Message("user", "\n".join([IMAGE] * len(turn.images) + [turn.question])),
            Message("assistant", turn.answer),
        )
    ]
    messages.append(Message("user", "\n".join([IMAGE] * len(session.added) + [question])))
    engine: Any = session.engine
    prompt = engine.prompt if isinstance(engine, LlamaEngine) else engine.built.prompt
    images = session.images
    ids = prompt.render_for_completion(messages, [engine.picture_tokens] * len(images))
    names = iter([str(id(one.encoded)) for one in images for _ in range(engine.picture_tokens)])
    return [next(names) if token == prompt.image_id else token for token in ids]


def test_an_added_picture_goes_on_where_the_conversation_was(make: Make, unread: list[int]) -> None:
    """Over turns with none, one or two new pictures: of an earlier prompt nothing is computed
    again. The control takes the first picture out, and nearly all is.
    """
    session = ChatSession(make(), GREEDY)
    pictures = iter(drawn_pictures(5, seed=1))
    before: list[object] = []
    for count, question in zip((0, 2, 0, 1), QUESTIONS, strict=False):
        for _ in range(count):
            session.add_image(next(pictures), str(len(session.images)))
        keys = prompt_keys(session, question)
        # the end of a prompt, where the answer begins, may be written otherwise in later ones
        kept = common_prefix_length(before, keys)
        assert kept >= len(before) - 10
        twin = alone(session, make)
        answer = ask(session, question)
        assert 0 < unread[-1] <= len(keys) - kept
        assert ask(twin, question) == answer
        assert unread[-1] == len(keys)
        before = keys
    session.remove_image(1)
    keys = prompt_keys(session, "Why?")
    twin = alone(session, make)
    answer = ask(session, "Why?")
    assert unread[-1] > 2 * session.engine.picture_tokens, "the control"
    assert ask(twin, "Why?") == answer


def test_the_order_of_pictures_matters(make: Make) -> None:
    """The control of the comparisons below: the engines do see which picture is where."""
    engine, others = make(), 0
    for seed in range(8):
        one, two = map(engine.encode_image, drawn_pictures(2, seed=seed))
        answers = set()
        for first, second in ((one, two), (two, one)):
            session = ChatSession(engine, GREEDY)
            session.add_encoded_image(first)
            session.add_encoded_image(second)
            answers.add(ask(session, "Which is larger?"))
        others += len(answers) == 2
    assert others >= 4


def shuffle(rng: random.Random, session: ChatSession, examples: Sequence[Any]) -> None:
    """One thing that a visitor does between two questions."""
    what = rng.choice(("add", "add", "add", "example", "twice", "remove", "undo", "clear", "new"))
    if what == "add":
        seed = rng.randrange(10**6)
        session.add_image(drawn_pictures(1, seed=seed)[0], str(seed))
    elif what == "example":
        at = rng.randrange(len(examples))
        session.add_encoded_image(examples[at], f"example {at}")
    elif what == "twice" and session.images:
        again = rng.choice(session.images)
        session.add_encoded_image(again.encoded, again.name)
    elif what == "remove" and session.images:
        session.remove_image(rng.randint(1, len(session.images)))
    elif what == "undo" and session.turns:
        session.truncate_to(rng.randrange(len(session.turns)))
    elif what == "clear":
        session.clear()
    elif what == "new" and len(session.images) > 4:
        session.set_image(None)


@pytest.mark.parametrize("seed", range(8 if LONG else 2))
def test_whatever_a_visitor_does_the_answer_is_that_of_a_fresh_engine(
    make: Make, unread: list[int], seed: int
) -> None:
    """Random conversations of three visitors, in turns, who share examples: pictures are added in
    any turn, some twice, taken out, turns undone, answers broken off.
    """
    rng = random.Random(f"visitors {seed}")
    engine = make()
    examples = [engine.encode_image(one) for one in drawn_pictures(2, seed=99)]
    visitors = [ChatSession(engine, GREEDY) for _ in range(3)]
    before: dict[int, list[object]] = {}
    seen, reused, several = 0, 0, 0
    for _ in range(40):
        session = rng.choice(visitors)
        for _ in range(rng.randint(0, 2)):
            shuffle(rng, session, examples)
        question = rng.choice(QUESTIONS)
        if rng.random() < 0.2:  # broken off
            pieces = session.ask(question)
            next(pieces, None)
            pieces.close()  # type: ignore[attr-defined]
            before.pop(id(session), None)
            continue
        twin = alone(session, make)
        keys = prompt_keys(session, question)
        several += len(session.images) > 1
        kept = common_prefix_length(before.get(id(session), []), keys)
        answer = ask(session, question)
        assert 0 < unread[-1] <= max(1, len(keys) - kept)
        reused += kept > 2 * engine.picture_tokens
        assert ask(twin, question) == answer
        assert session.turns == twin.turns
        assert len(session.images) == len(twin.images)
        assert bool(session.added) <= (not answer.strip())
        before[id(session)] = keys
        seen += 1
    assert seen > 20
    assert several > 5
    assert reused > 3


def test_visitors_at_once_get_what_they_would_get_alone(make: Make) -> None:
    """Three, each with pictures of his own and one that all share, in three turns, in threads."""
    script = [(number, turn) for number in range(3) for turn in range(3)]
    drawn = {at: drawn_pictures(1 + (at[0] + at[1]) % 2, seed=10 * at[0] + at[1]) for at in script}

    def converse(session: ChatSession, number: int, example: Any) -> list[str]:
        session.add_encoded_image(example)
        said = []
        for turn in range(3):
            for picture in drawn[number, turn]:
                session.add_image(picture)
            said.append(ask(session, QUESTIONS[number + turn]))
        return said

    def shown(engine: Any) -> Any:
        return engine.encode_image(drawn_pictures(1, seed=99)[0])

    alone_each = []
    for number in range(3):
        engine = make()
        alone_each.append(converse(ChatSession(engine, GREEDY), number, shown(engine)))
    engine = make()
    example = shown(engine)
    visitors = [ChatSession(engine, GREEDY) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(converse, visitors, range(3), [example] * 3))
    assert found == alone_each
    assert len({tuple(said) for said in found}) == 3


def test_of_anothers_words_nothing_is_used(make: Make, unread: list[int]) -> None:
    """Of an example that both were given only what lies before anything was typed is shared: the
    first image, if the conversation begins with it.
    """
    engine = make()
    example, other = (engine.encode_image(one) for one in drawn_pictures(2))
    prompt = engine.prompt if isinstance(engine, LlamaEngine) else engine.built.prompt
    visitors: list[ChatSession] = []  # one that is gone leaves nothing to share
    shareable = len(prompt.image_opening) + engine.picture_tokens

    def first(*images: Any, said: str = "") -> int:
        """Positions of a conversation's question that need not be computed."""
        session = ChatSession(engine, GREEDY)
        visitors.append(session)
        if said:
            session.turns = [Turn(said, "Hello.")]
        for image in images:
            session.add_encoded_image(image)
        whole = len(prompt_keys(session, "What is it?"))
        ask(session, "What is it?")
        return whole - unread[-1]

    own = [engine.encode_image(one) for one in drawn_pictures(3, seed=5)]
    assert first(example) == 0
    assert first(example) == shareable
    assert first(example, other) == shareable
    assert first(example, other) == shareable, "not the second"
    assert first(example, own[0]) == shareable
    assert first(own[1], example) == 0
    assert first(own[2], example) == 0, "not behind an image of one's own"
    assert first(example, said="Hi") == 0
    assert first(example, said="Hi") == 0, "not behind words, though both typed the same"


def test_what_two_prompts_share() -> None:
    opening, image = [1, 2], [-7] * 3
    mine = [*opening, *image, 5, 6, *[-8] * 3, 4]
    assert shared_prefix_length(mine, mine, opening) == 5
    assert shared_prefix_length(mine, mine[:4], opening) == 4, "as far as it was computed"
    assert shared_prefix_length(mine, mine[:2], opening) == 0
    assert shared_prefix_length(mine, [*opening, *[-9] * 3, 5], opening) == 0
    typed = [1, 2, 3, *image, 5]
    assert shared_prefix_length(typed, typed, opening) == 0
    assert shared_prefix_length([1, 2], [1, 2], opening) == 0
    assert shared_prefix_length([1, 2, 5], [1, 2, 5], opening) == 0


def test_where_it_looked_is_told_for_each_picture(make_torch: Callable[[str], TorchEngine]) -> None:
    """As the attention that transformers returns has it, over turns; the control exchanges the
    pictures.
    """
    engine = make_torch("phi3")
    built = engine.built
    one, two, three = map(engine.encode_image, drawn_pictures(3, seed=2))
    session = ChatSession(engine, GREEDY)
    session.add_encoded_image(one)
    session.add_encoded_image(two)
    ask(session, "Which is larger?")
    session.add_encoded_image(three)
    ask(session, "And now?")
    session.add_encoded_image(one)  # for a question that was not asked yet
    grids = session.attention_maps()
    assert [tuple(grid.shape) for grid in grids] == [(4, 4)] * 3
    assert float(sum(grid.sum() for grid in grids)) == pytest.approx(1, abs=1e-5)

    messages = [
        Message("user", f"{IMAGE}\n{IMAGE}\nWhich is larger?"),
        Message("assistant", session.turns[0].answer),
        Message("user", f"{IMAGE}\nAnd now?"),
        Message("assistant", session.turns[1].answer),
    ]
    ids, answered = built.prompt.render_answered(messages, [16] * 3)

    def wanted(*images: torch.Tensor) -> torch.Tensor:
        where = torch.tensor(ids) == built.prompt.image_id
        implementation = built.model.config.text_config._attn_implementation
        built.model.set_attn_implementation({"text_config": "eager"})
        try:
            with torch.inference_mode():
                layers = built.model.model.language_model(
                    inputs_embeds=built.embed(torch.tensor(ids), images)[None],
                    output_attentions=True,
                ).attentions
        finally:
            built.model.set_attn_implementation({"text_config": implementation})
        upper = torch.stack(layers[len(layers) // 2 :])[:, 0, :, len(ids) - answered - 1 :]
        weights = upper[..., where].mean((0, 1, 2))
        return weights / weights.sum()

    found = torch.cat([grid.flatten() for grid in grids])
    assert (found - wanted(one, two, three)).abs().max() < 1e-5
    assert (found - wanted(two, one, three)).abs().max() > 1e-4


def test_no_map_without_an_answer_about_a_picture(make_torch: Callable[[str], TorchEngine]) -> None:
    session = ChatSession(make_torch("phi3"), GREEDY)
    ask(session, "Hello?")
    session.add_image(drawn_pictures(1)[0])
    with pytest.raises(ChatError, match="no answer about a picture yet"):
        session.attention_maps()
