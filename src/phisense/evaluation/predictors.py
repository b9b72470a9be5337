"""Predictors: a model folder evaluated in batches in torch, or any chat engine, one question at a
time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ..chat.engine import Engine, Sampling
from ..conversations import IMAGE, Message
from ..errors import DataError
from ..model import Phi3WithProjector
from ..model.batch_generate import Query, batch_generate, likeliest_answers
from ..vision.image_io import open_image

_MAX_CACHED_BYTES = 1e9  # bytes of projected images kept for the next batches and conditions
ENCODE_BATCH_SIZE = 16  # images encoded together


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """A prompted question, the image that is shown with it, and a reference answer."""

    id: str
    text: str
    picture: Path | None
    reference: str

    @property
    def message(self) -> Message:
        return Message("user", self.text if self.picture is None else f"{IMAGE}\n{self.text}")


@dataclass(frozen=True, slots=True)
class EvalResponse:
    """An answer and, where the predictor computes it, the loss of the reference, summed over
    `tokens` tokens. `chosen` is the answer by content, where `text` fell out of the form.
    """

    text: str
    loss: float | None = None
    tokens: int | None = None
    chosen: str | None = None

    @property
    def counted(self) -> str:
        """The answer that is scored."""
        return self.text if self.chosen is None else self.chosen


class Predictor(Protocol):
    """Answers questions under a condition: a model in torch, or any chat engine."""

    @property
    def built(self) -> Phi3WithProjector | None:
        """The model in torch, whose arithmetic and attention maps a report records; None for one
        that runs elsewhere.
        """
        ...

    @property
    def batch_size(self) -> int:
        """The number of questions in a call of `answer`."""
        ...

    @property
    def about(self) -> dict[str, object]:
        """What the report records of the predictor: engine, device, dtype."""
        ...

    @property
    def identity(self) -> dict[str, object]:
        """What else identifies the predictor for resuming but is not published in the report: a
        server's address.
        """
        ...

    def prepare(self, pictures: Sequence[Path]) -> None:
        """Called first, with every image that will be shown, in the order of their use."""
        ...

    def answer(
        self, put: Sequence[EvalRequest], max_new_tokens: int, *, losses: bool
    ) -> list[EvalResponse]:
        """Greedy answers. Raises DataError for a prompt that exceeds the context window."""
        ...

    def choose(
        self, put: Sequence[EvalRequest], candidates: Sequence[Sequence[str]]
    ) -> list[str] | None:
        """For each question the likeliest of its candidates; None if the predictor computes no
        likelihoods.
        """
        ...


class BatchPredictor:
    """Batched generation in torch.

    Batches are padded on the left and positions are counted without the padding, so that an answer
    does not depend on its batch; each image of a batch is encoded once for all its questions.
    Images are always encoded in the same groups, whatever was asked before, so that a resumed
    evaluation is bitwise identical to an uninterrupted one.
    """

    def __init__(self, built: Phi3WithProjector, batch_size: int) -> None:
        self.built, self.batch_size = built, batch_size
        self._groups: dict[Path, tuple[Path, ...]] = {}
        self._cache: OrderedDict[tuple[Path, ...], dict[Path, torch.Tensor]] = OrderedDict()

    @property
    def identity(self) -> dict[str, object]:
        return {}

    def prepare(self, pictures: Sequence[Path]) -> None:
        for start in range(0, len(pictures), ENCODE_BATCH_SIZE):
            group = tuple(pictures[start : start + ENCODE_BATCH_SIZE])
            self._groups.update(dict.fromkeys(group, group))

    @property
    def about(self) -> dict[str, object]:
        dtype = str(self.built.model.lm_head.weight.dtype).removeprefix("torch.")
        held = "NF4, computing in " if getattr(self.built.model, "is_loaded_in_4bit", False) else ""
        return {
            "engine": "torch",
            "device": self.built.device.type,
            "dtype": held + dtype,
            "picture_tokens": self.built.image_tokens,
        }

    @torch.inference_mode()
    def answer(
        self, put: Sequence[EvalRequest], max_new_tokens: int, *, losses: bool
    ) -> list[EvalResponse]:
        asked = self._queries(put)
        for one, this in zip(put, asked, strict=True):
            _check_window(
                one,
                len(
                    self.built.prompt.render_for_completion(
                        this.messages, [len(s) for s in this.image_embeds]
                    )
                ),
                max_new_tokens,
                self.built.window,
            )
        answered = batch_generate(self.built, asked, max_new_tokens=max_new_tokens, losses=losses)
        return [
            EvalResponse(one.text, one.loss, one.tokens) if losses else EvalResponse(one.text)
            for one in answered
        ]

    @torch.inference_mode()
    def choose(
        self, put: Sequence[EvalRequest], candidates: Sequence[Sequence[str]]
    ) -> list[str] | None:
        return likeliest_answers(
            self.built, self._queries(put), candidates, batch_size=self.batch_size
        )

    def _queries(self, put: Sequence[EvalRequest]) -> list[Query]:
        slots = {
            one.picture: self._projected(one.picture) for one in put if one.picture is not None
        }
        return [
            Query(
                (one.message,),
                Message("assistant", one.reference),
                () if one.picture is None else (slots[one.picture],),
            )
            for one in put
        ]

    def _projected(self, path: Path) -> torch.Tensor:
        """The image tokens `(P', H)` of an image, from the cache or encoded together with its
        group.
        """
        group = self._groups[path]
        if group not in self._cache:
            slots = self.built.project([open_image(one, name=one.name) for one in group])
            self._cache[group] = dict(zip(group, slots, strict=True))
            if (
                sum(one.nbytes for seen in self._cache.values() for one in seen.values())
                > _MAX_CACHED_BYTES
            ):
                self._cache.popitem(last=False)
        return self._cache[group][path]


class EnginePredictor:
    """Asks an engine one question at a time. Questions about the same image follow each other, so
    an engine with a KV cache encodes the image once.
    """

    batch_size = 1
    built: Phi3WithProjector | None = None

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._last: tuple[Path, Any] | None = None

    @property
    def about(self) -> dict[str, object]:
        return {
            "engine": self.engine.kind,
            "served": self.engine.name,
            "picture_tokens": self.engine.picture_tokens,
        }

    @property
    def identity(self) -> dict[str, object]:
        return {} if self.engine.endpoint is None else {"whom": self.engine.endpoint}

    def prepare(self, pictures: Sequence[Path]) -> None:
        """Nothing to prepare: images are encoded one at a time."""

    def answer(
        self, put: Sequence[EvalRequest], max_new_tokens: int, *, losses: bool
    ) -> list[EvalResponse]:
        return [EvalResponse(self._ask(one, max_new_tokens)) for one in put]

    def choose(
        self, put: Sequence[EvalRequest], candidates: Sequence[Sequence[str]]
    ) -> list[str] | None:
        """None: an engine generates, and tells no likelihoods."""
        return None

    def _ask(self, put: EvalRequest, max_new_tokens: int) -> str:
        messages = (
            Message(
                "user",
                f"{IMAGE}\n" * (put.picture is not None)
                + self.engine.escape_special_tokens(put.text),
            ),
        )
        seen = [] if put.picture is None else [self._encoded(put.picture)]
        _check_window(
            put, self.engine.count_tokens(messages, seen), max_new_tokens, self.engine.window
        )
        pieces = self.engine.stream(
            messages, seen, Sampling(max_new_tokens=max_new_tokens), threading.Event(), self
        )
        return "".join(pieces).strip()

    def _encoded(self, path: Path) -> Any:
        if self._last is None or self._last[0] != path:
            self._last = path, self.engine.encode_image(open_image(path, name=path.name))
        return self._last[1]


def _check_window(put: EvalRequest, tokens: int, max_new_tokens: int, window: int) -> None:
    if tokens + max_new_tokens > window:
        raise DataError(
            f"question {put.id} does not fit into the window",
            got=f"{tokens} tokens and {max_new_tokens} for the answer",
            wanted=f"at most {window} together",
            do="Leave it out, or ask for shorter answers with --max-new-tokens",
        )
