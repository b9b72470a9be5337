"""The engine that runs the model folder here, in torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from ..conversations import Message
from ..model import Phi3WithProjector, load_model
from .engine import Sampling

PATIENCE = 120.0  # seconds to wait for the next piece before giving up


class TorchEngine:
    """One generation at a time; others wait for the lock. A picture is encoded and projected once, by `see`."""

    def __init__(self, built: Phi3WithProjector, name: str) -> None:
        self.built = built
        self.name = name
        self._one_at_a_time = threading.Lock()

    @classmethod
    def open(cls, folder: Path, device: str = "auto", picture_tokens: int | None = None) -> TorchEngine:
        return cls(load_model(folder, device, picture_tokens=picture_tokens), folder.name)

    @property
    def window(self) -> int:
        return self.built.window

    @property
    def picture_tokens(self) -> int:
        return self.built.slots

    @torch.inference_mode()
    def see(self, picture: Image) -> torch.Tensor:
        """`(P', H)`."""
        with self._one_at_a_time:
            return self.built.project([picture])[0]

    def count(self, messages: Sequence[Message], seen: Sequence[torch.Tensor]) -> int:
        return len(self.built.prompt.ask(messages, [len(slots) for slots in seen]))

    def defuse(self, text: str) -> str:
        return self.built.prompt.defuse(text)

    def stream(
        self, messages: Sequence[Message], seen: Sequence[torch.Tensor], sampling: Sampling, stop: threading.Event, owner: object
    ) -> Iterator[str]:
        with self._one_at_a_time:
            batch = self.built.slotted([messages], [seen], supervised=False)
            del batch["labels"]
            tokenizer: Any = self.built.prompt.tokenizer
            streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=PATIENCE, skip_special_tokens=True)
            gone = threading.Event()
            made = _Generation(self.built.model, batch, sampling, streamer, (stop, gone))
            made.start()
            try:
                yield from streamer
            finally:  # also when whoever listens has gone: the thread must not go on for nobody
                gone.set()
                made.join()
            if made.error is not None:
                raise made.error


class _Generation(threading.Thread):
    def __init__(
        self, model: Any, batch: dict[str, Any], sampling: Sampling, streamer: TextIteratorStreamer, stops: Sequence[threading.Event]
    ) -> None:
        super().__init__(daemon=True)
        self.model, self.batch, self.sampling, self.streamer = model, batch, sampling, streamer
        self.stopping = StoppingCriteriaList([_Stopped(stops)])
        self.error: Exception | None = None

    def run(self) -> None:
        warm = self.sampling.temperature > 0
        how = {"do_sample": True, "temperature": self.sampling.temperature, "top_p": self.sampling.top_p} if warm else {"do_sample": False}
        try:
            with torch.inference_mode():
                self.model.generate(
                    **self.batch,
                    **how,
                    max_new_tokens=self.sampling.max_new_tokens,
                    streamer=self.streamer,
                    stopping_criteria=self.stopping,
                )
        except Exception as error:  # carried to the thread that listens
            self.error = error
            self.streamer.end()


class _Stopped(StoppingCriteria):
    def __init__(self, stops: Sequence[threading.Event]) -> None:
        self.stops = stops

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), any(stop.is_set() for stop in self.stops), device=input_ids.device)
