"""One conversation, computed as it grows: what has been read stays as keys and values, and only what is new goes through the model.

On a GPU a single token's way through the model is recorded once as a CUDA graph and replayed: most of the time of such a step is otherwise
spent in Python between kernels (docs/benchmarks.md, "On a GPU"). A replay reads the same memory each time, so there is one buffer, as long
as the window; a conversation's share of it is copied out when another has its turn.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .assembly import Phi3WithProjector

SPAN = 512  # tokens; a recorded step attends to a multiple of so many


class Decoding:
    """The language part of `built` with one buffer of keys and values; `length` of its tokens are a conversation's. Not for two threads."""

    def __init__(self, built: Phi3WithProjector) -> None:
        text = built.model.config.text_config
        self.built = built
        self.length = 0
        self.window = built.window
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        shape = (text.num_hidden_layers, 2, 1, text.num_key_value_heads, -(-self.window // SPAN) * SPAN, width)
        self._shape = shape
        self._steps: dict[int, _Step] = {}
        self._write = _Eager(self)

    @functools.cached_property
    def buffer(self) -> torch.Tensor:
        """`(layers, 2, 1, heads, window, width)`, made when it is first needed: on a lent GPU nothing may be computed before."""
        return torch.zeros(self._shape, device=self.built.device, dtype=self.built.model.lm_head.weight.dtype)

    @property
    def nbytes(self) -> int:
        return math.prod(self._shape) * int(self.built.model.lm_head.weight.element_size())

    @torch.inference_mode()
    def embed(self, ids: list[int], slots: list[torch.Tensor]) -> torch.Tensor:
        """Ids, with the vectors of pictures `(P', H)` at `<image>`, as they enter the language part: `(1, T, H)`."""
        wanted = torch.tensor(ids, device=self.buffer.device)
        found: torch.Tensor = self.built.model.get_input_embeddings()(wanted)
        if slots:
            found[wanted == self.built.prompt.image_id] = torch.cat([one.to(found) for one in slots])
        return found.unsqueeze(0)

    @torch.inference_mode()
    def read(self, embedded: torch.Tensor) -> torch.Tensor:
        """Puts `(1, T, H)` behind what was read; the logits `(V,)` of its last position, in float32."""
        count, before = embedded.shape[1], self.length
        end = before + count
        positions = torch.arange(before, end, device=self.buffer.device)
        seen = torch.arange(end, device=self.buffer.device)[None] <= positions[:, None]
        logits = self._forward(embedded, positions[None], seen[None, None], self._write)
        self.length = end
        return logits

    @torch.inference_mode()
    def step(self, token: int) -> torch.Tensor:
        """As `read`, for one token."""
        if self.buffer.device.type != "cuda":
            return self.read(self.embed([token], []))
        span = (self.length // SPAN + 1) * SPAN
        if span not in self._steps:
            self._steps[span] = _Step(self, span)
        logits = self._steps[span](token, self.length)
        self.length += 1
        return logits

    @torch.inference_mode()
    def save(self) -> torch.Tensor:
        """A copy of the conversation's keys and values, `(layers, 2, 1, heads, length, width)`."""
        return self.buffer[..., : self.length, :].clone()

    @torch.inference_mode()
    def load(self, kept: torch.Tensor, length: int) -> None:
        """Goes on from the first `length` tokens of what `save` gave."""
        self.buffer[..., :length, :] = kept[..., :length, :]
        self.length = length

    def _forward(self, embedded: torch.Tensor, positions: torch.Tensor, seen: torch.Tensor, write: Any) -> torch.Tensor:
        hidden = self.built.model.model.language_model(
            inputs_embeds=embedded, attention_mask=seen, position_ids=positions, past_key_values=write, use_cache=True
        ).last_hidden_state
        logits: torch.Tensor = self.built.model.lm_head(hidden[:, -1])
        return logits[0].float()


class _Eager:
    """What the model takes for its cache: writes behind what was read, gives back all up to there."""

    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.decoding.length
        end = start + keys.shape[2]
        mine = self.decoding.buffer[layer]
        mine[0, :, :, start:end], mine[1, :, :, start:end] = keys, values
        return mine[0, :, :, :end], mine[1, :, :, :end]


class _Step:
    """One token's way through the model, recorded: attention over the buffer's first `span` tokens, those not yet read masked away."""

    def __init__(self, decoding: Decoding, span: int) -> None:
        self.decoding, self.span = decoding, span
        device = decoding.buffer.device
        self.token, self.at = torch.zeros(1, 1, dtype=torch.long, device=device), torch.zeros(1, dtype=torch.long, device=device)
        self.at.fill_(decoding.length)
        self.graph = torch.cuda.CUDAGraph()
        positions = torch.arange(min(span, decoding.window), device=device)
        # Held here: a recording reads it where it was, and would go on reading there if it were freed.
        self.rotations = decoding.built.model.model.language_model.rotary_emb(decoding.buffer, position_ids=positions[None])
        with _rotations_from_a_table(decoding.built.model.model.language_model.rotary_emb, self.rotations):
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):  # kernels are chosen, and their memory taken, before anything is recorded
                for _ in range(2):
                    self._run()
            torch.cuda.current_stream().wait_stream(beside)
            with torch.cuda.graph(self.graph):
                self.logits = self._run()

    def _run(self) -> torch.Tensor:
        embedded = self.decoding.built.model.get_input_embeddings()(self.token)
        behind = torch.arange(self.span, device=self.at.device) > self.at
        hidden = torch.zeros(1, 1, 1, self.span, device=self.at.device, dtype=embedded.dtype).masked_fill_(behind, float("-inf"))
        return self.decoding._forward(embedded, self.at[None], hidden, self)

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        mine = self.decoding.buffer[layer]
        mine[0].index_copy_(2, self.at, keys)
        mine[1].index_copy_(2, self.at, values)
        return mine[0, :, :, : self.span], mine[1, :, :, : self.span]

    def __call__(self, token: int, at: int) -> torch.Tensor:
        self.token.fill_(token)
        self.at.fill_(at)
        self.graph.replay()
        return self.logits


@contextmanager
def _rotations_from_a_table(rotary: Any, table: tuple[torch.Tensor, torch.Tensor]) -> Iterator[None]:
    """Long-rope asks how long the sequence is, which a recording cannot answer; within the window the answer never matters."""
    rotary.forward = lambda _, position_ids: tuple(part[:, position_ids[0]] for part in table)
    try:
        yield
    finally:
        del rotary.forward
