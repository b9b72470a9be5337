"""Continuous batching: the answers of several visitors are generated in the same steps.

    waiting --> prefill, a chunk a round, the oldest and those that can be computed with it
            --> one token a round, all at once --> ended: the place is free again

Who joins or leaves does so between two rounds. There is no thread of its own: whoever waits for a
piece of his answer computes the next round for all, if nobody does so yet, so that nothing is
computed when nobody listens, an exception comes out where somebody hears it, and a GPU that is lent
to one call (chat/zerogpu.py) is used within that call.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from .detokenize import StreamingDetokenizer
from .engine import Sampling
from .fair_lock import FairLock
from .sampling import TokenSampler

MAX_PLACES = 8  # answers that are generated at once, at most; more wait
MAX_CACHE_BYTES = 4e9  # bytes of KV cache of all answers in progress, unless one alone takes more
_POLL_SECONDS = 0.05  # between two looks at `stop`
# Waking every listener after every round makes them compete with the one who computes for Python's
# lock: a small model spent two thirds of its time so (docs/log.md). So they hear of several rounds
# at once, but of a first word and of an end immediately.
_BURST_SECONDS = 0.02
_READING_SHARE = 4.0  # reading prompts may take so many times as long as the answers' step
_AT_ONCE = threading.Event()
_AT_ONCE.set()

Seat = TypeVar("Seat")


def places_for(cache_bytes: float) -> int:
    """Answers that are generated at once, if the KV cache of one has up to so many bytes."""
    return max(1, min(MAX_PLACES, int(MAX_CACHE_BYTES // cache_bytes)))


class GenerationStopped(Exception):  # noqa: N818, no error: it was asked for
    """The computation was stopped before its end; the sequence is restored to its previous
    length.
    """


class BatchModel(Protocol[Seat]):
    """What computes. A seat is one answer's place and state; no two calls run at once."""

    @property
    def places(self) -> int:
        """Answers that fit at once."""
        ...

    def enter(self, ids: Sequence[int], images: Sequence[Any], owner: object) -> Seat:
        """A seat for a prompt of token ids with the embeddings of its images. What `owner` keeps of
        an earlier turn is taken over.
        """
        ...

    def prefill(
        self, seats: Sequence[Seat], stop: threading.Event | None
    ) -> dict[Seat, Any | None]:
        """Compute the next chunk of the first seat's prompt, and of those of the others that can be
        computed together with it. For each that was, the logits `(V,)` of the first token of its
        answer, or None while some of its prompt is left. Raises GenerationStopped if `stop` is set
        meanwhile.
        """
        ...

    def step(self, tokens: Sequence[tuple[Seat, int]]) -> Any:
        """Append one token to each seat; the next one's logits for each, `(N, V)`. As `prefill`, it
        changes no seat if it raises an error.
        """
        ...

    def leave(self, seat: Seat, *, sound: bool) -> None:
        """Free the place. Its state is kept for its owner if it is `sound`: no computation failed
        half-way.
        """
        ...


@dataclass(eq=False)
class _Answer(Generic[Seat]):
    """One answer from the question to its end. `token` is sampled and not yet computed;
    `left_behind` is set by a listener who left while others computed.
    """

    enter: Callable[[], Seat]
    sampling: Sampling
    stop: threading.Event
    words: StreamingDetokenizer
    left: int
    seat: Seat | None = None
    token: int | None = None
    ended: bool = False
    left_behind: bool = False
    error: BaseException | None = None
    pieces: deque[str] = field(default_factory=deque)


class Batcher(Generic[Seat]):
    """Generates the answers of many threads with one model. `lock` is held while it computes."""

    def __init__(
        self,
        model: BatchModel[Seat],
        tokenizer: Any,
        stop_ids: Sequence[int],
        sampler: Callable[[], TokenSampler],
        lock: FairLock,
    ) -> None:
        self.model = model
        self._tokenizer, self._stop_ids, self._sampler = tokenizer, frozenset(stop_ids), sampler
        self._lock = lock
        self._answers: list[_Answer[Seat]] = []  # unfinished, in the order of asking
        self._changed = threading.Condition()
        self._computing = False
        self._step_seconds = 0.0  # of the last step of the answers
        self._chunk_seconds = 0.0  # of the last chunk of a prompt

    @property
    def answering(self) -> int:
        """Answers that are being generated or wait for a place."""
        return len(self._answers)

    def stream(
        self,
        ids: Sequence[int],
        images: Sequence[Any],
        sampling: Sampling,
        stop: threading.Event,
        owner: object,
    ) -> Iterator[str]:
        """Yield the answer in chunks of text, until it ends or `stop` is set. Closing the iterator
        ends the generation, too. An error is raised here, and in no other answer.
        """
        mine: _Answer[Seat] = _Answer(
            lambda: self.model.enter(ids, images, owner),
            sampling,
            stop,
            StreamingDetokenizer(self._tokenizer),
            sampling.max_new_tokens,
        )
        with self._joined(mine):
            while (piece := self._next_piece(mine)) is not None:
                yield piece
        if mine.ended and (rest := mine.words.flush()):
            yield rest

    @contextmanager
    def _joined(self, mine: _Answer[Seat]) -> Iterator[None]:
        with self._changed:
            self._answers.append(mine)
        try:
            yield
        finally:
            # Stopped, closed or interrupted. Never wait here: a generator may be collected by the
            # thread that computes. The next round ends what this one cannot.
            mine.left_behind = True
            with self._lock.acquire(_AT_ONCE) as free:
                if free:
                    self._end(mine)

    def _next_piece(self, mine: _Answer[Seat]) -> str | None:
        """The next piece of text; None at the end. Computes rounds while nobody else does."""
        while True:
            with self._changed:
                while not (mine.pieces or mine.ended or mine.stop.is_set()) and self._computing:
                    self._changed.wait(_POLL_SECONDS)
                if mine.pieces:
                    return mine.pieces.popleft()
                if mine.error is not None:
                    raise mine.error
                if mine.ended or mine.stop.is_set():
                    return None
                self._computing = True
            try:
                with self._lock.acquire(mine.stop) as free:
                    if free:
                        self._compute_burst(mine)
            finally:
                with self._changed:
                    self._computing = False
                    self._changed.notify_all()

    def _compute_burst(self, mine: _Answer[Seat]) -> None:
        """Rounds until a listener must hear of them."""
        begun = time.monotonic()
        while not mine.ended and not mine.stop.is_set():
            ended_or_begun = self._compute_round()
            long = time.monotonic() - begun >= _BURST_SECONDS
            if ended_or_begun or long or self.answering == 1:
                return

    def _compute_round(self) -> bool:
        """Chunks of the oldest unfinished prompts, and one token of every answer; whether an answer
        began or ended.
        """
        for one in [one for one in self._answers if one.left_behind or one.stop.is_set()]:
            with self._failing([one]):
                self._end(one)
        seated = [one for one in self._answers if one.seat is not None]
        for one in self._answers[: self.model.places]:
            if one.seat is None and len(seated) < self.model.places:
                with self._failing([one]):
                    one.seat = one.enter()
                    seated.append(one)
        answering = [one for one in seated if one.token is not None]
        reading = [one for one in seated if one.token is None and not one.ended]
        self._read_prompts(reading, len(answering))
        self._answer_once(answering)
        return any(one.ended for one in seated) or any(one.token is not None for one in reading)

    def _read_prompts(self, reading: Sequence[_Answer[Seat]], answering: int) -> None:
        """Compute a chunk of the oldest prompt, beside it of others, and more chunks, while it
        takes no longer than the answers in progress may wait.
        """
        may_take = _READING_SHARE * self._step_seconds if answering else 0.0
        begun = time.monotonic()
        while left := [one for one in reading if one.token is None and not one.ended]:
            beside = int(may_take / self._chunk_seconds) if self._chunk_seconds else 1
            group = left[: max(1, beside)] if answering else left
            started = time.monotonic()
            read = self._apart_if_needed(group, self._read_chunk)
            self._chunk_seconds = (time.monotonic() - started) / max(1, len(read))
            for one, logits in read:
                if logits is not None:
                    with self._failing([one]):
                        self._take(one, logits)
            if time.monotonic() - begun >= may_take:
                return

    def _answer_once(self, answering: Sequence[_Answer[Seat]]) -> None:
        """Compute the next token of every answer."""
        if not answering:
            return
        begun = time.monotonic()
        found = self._apart_if_needed(answering, self._step)
        self._step_seconds = time.monotonic() - begun
        for one, logits in found:
            with self._failing([one]):
                self._take(one, logits)

    def _read_chunk(self, group: Sequence[_Answer[Seat]]) -> list[tuple[_Answer[Seat], Any | None]]:
        # One visitor's stop interrupts the reading of his prompt, not of several.
        stop = group[0].stop if len(group) == 1 else None
        found = self.model.prefill([one.seat for one in group if one.seat is not None], stop)
        return [(one, found[one.seat]) for one in group if one.seat in found]

    def _step(self, group: Sequence[_Answer[Seat]]) -> list[tuple[_Answer[Seat], Any]]:
        found = self.model.step([(one.seat, one.token) for one in group])  # type: ignore[misc]
        return list(zip(group, found, strict=True))

    def _apart_if_needed(
        self,
        group: Sequence[_Answer[Seat]],
        compute: Callable[[Sequence[_Answer[Seat]]], list[tuple[_Answer[Seat], Any]]],
    ) -> list[tuple[_Answer[Seat], Any]]:
        """What `compute` gives for a group; if it raises, for each of them alone, so that an error
        ends the answer that it comes of and no other.
        """
        if len(group) > 1:
            try:
                with suppress(Exception):
                    return compute(group)
            except BaseException as error:  # what was computed half-way is not known
                self._fail(group, error)
                raise
        found = []
        for one in group:
            with self._failing([one]):
                found += compute([one])
        return found

    def _take(self, one: _Answer[Seat], logits: Any) -> None:
        """Sample the answer's next token, and end it after its last."""
        one.token = token = self._sampler().sample(logits, one.sampling)
        if token not in self._stop_ids:
            one.left -= 1
            if piece := one.words.push(token):
                one.pieces.append(piece)
            if one.left > 0:
                return
        self._end(one)

    @contextmanager
    def _failing(self, answers: Sequence[_Answer[Seat]]) -> Iterator[None]:
        """End these answers with what is raised inside, which is raised in their own threads; an
        interruption of this thread is raised here, too.
        """
        try:
            yield
        except GenerationStopped:
            for one in answers:
                self._end(one)
        except BaseException as error:
            self._fail(answers, error)
            if not isinstance(error, Exception):
                raise

    def _fail(self, answers: Sequence[_Answer[Seat]], error: BaseException) -> None:
        for one in answers:
            one.error = error
            self._end(one, sound=False)

    def _end(self, one: _Answer[Seat], *, sound: bool = True) -> None:
        """Take the answer out and free its place; once."""
        if one.ended:
            return
        one.ended = True
        with self._changed:
            self._answers.remove(one)
        if one.seat is not None:
            self.model.leave(one.seat, sound=sound)
            one.seat = None
