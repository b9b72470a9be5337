"""Incremental decoding of one conversation: the KV cache is kept, and only new tokens go through
the model.

On a GPU the forward pass of a single token is captured once as a CUDA graph and replayed: most of
the time of such a step is otherwise spent in Python between kernels (docs/benchmarks.md, "On a
GPU"). A replay reads the same memory each time, so there is one buffer of the length of the context
window; a conversation's part of it is copied out when another conversation takes over.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .assembly import Phi3WithProjector

GRAPH_SPAN = 512  # tokens; a captured step attends to a multiple of this many


class IncrementalDecoder:
    """The language part of `built` with one KV cache buffer, of which the first `length` positions
    are in use.

    Not thread-safe.
    """

    def __init__(self, built: Phi3WithProjector) -> None:
        text = built.model.config.text_config
        self.built = built
        self.length = 0
        self.window = built.window
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        shape = (
            text.num_hidden_layers,
            2,
            1,
            text.num_key_value_heads,
            -(-self.window // GRAPH_SPAN) * GRAPH_SPAN,
            width,
        )
        self._shape = shape
        self._captured: dict[int, _CapturedStep] = {}
        self._eager_cache = _EagerCache(self)

    @functools.cached_property
    def buffer(self) -> torch.Tensor:
        """KV cache `(layers, 2, 1, heads, window, head_dim)`.

        It is allocated on first use: on ZeroGPU no CUDA work is allowed before a GPU is assigned.
        """
        return torch.zeros(
            self._shape, device=self.built.device, dtype=self.built.model.lm_head.weight.dtype
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the KV cache buffer."""
        return math.prod(self._shape) * int(self.built.model.lm_head.weight.element_size())

    @torch.inference_mode()
    def embed(self, ids: list[int], image_embeds: list[torch.Tensor]) -> torch.Tensor:
        """Input embeddings `(1, T, H)` of `ids`, with the image embeddings `(P', H)` at `<image>`
        positions.
        """
        wanted = torch.tensor([ids], device=self.buffer.device)
        return self.built.embed(wanted, image_embeds)

    @torch.inference_mode()
    def prefill(self, embedded: torch.Tensor) -> torch.Tensor:
        """Append embeddings `(1, T, H)` to the cache; returns the last position's logits `(V,)` in
        float32.
        """
        count, before = embedded.shape[1], self.length
        end = before + count
        positions = torch.arange(before, end, device=self.buffer.device)
        seen = torch.arange(end, device=self.buffer.device)[None] <= positions[:, None]
        logits = self._forward(embedded, positions[None], seen[None, None], self._eager_cache)
        self.length = end
        return logits

    @torch.inference_mode()
    def step(self, token: int) -> torch.Tensor:
        """As `prefill`, for one token; on CUDA through a captured graph."""
        if self.buffer.device.type != "cuda":
            return self.prefill(self.embed([token], []))
        span = (self.length // GRAPH_SPAN + 1) * GRAPH_SPAN
        if span not in self._captured:
            self._captured[span] = _CapturedStep(self, span)
        logits = self._captured[span](token, self.length)
        self.length += 1
        return logits

    @torch.inference_mode()
    def save(self) -> torch.Tensor:
        """A copy of the conversation's KV cache, `(layers, 2, 1, heads, length, head_dim)`."""
        return self.buffer[..., : self.length, :].clone()

    @torch.inference_mode()
    def load(self, state: torch.Tensor, length: int) -> None:
        """Restore the first `length` positions of a state returned by `save`."""
        self.buffer[..., :length, :] = state[..., :length, :]
        self.length = length

    def _forward(
        self,
        embedded: torch.Tensor,
        positions: torch.Tensor,
        attention_mask: torch.Tensor,
        cache: Any,
    ) -> torch.Tensor:
        hidden = self.built.model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits: torch.Tensor = self.built.model.lm_head(hidden[:, -1])
        return logits[0].float()


class _EagerCache:
    """The `past_key_values` of eager steps: appends keys and values, and returns all of them up to
    there.
    """

    def __init__(self, decoding: IncrementalDecoder) -> None:
        self.decoding = decoding

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.decoding.length
        end = start + keys.shape[2]
        mine = self.decoding.buffer[layer]
        mine[0, :, :, start:end], mine[1, :, :, start:end] = keys, values
        return mine[0, :, :, :end], mine[1, :, :, :end]


class _CapturedStep:
    """Forward pass of one token as a CUDA graph: attends to the buffer's first `span` positions,
    with the unused ones masked.
    """

    def __init__(self, decoding: IncrementalDecoder, span: int) -> None:
        self.decoding, self.span = decoding, span
        device = decoding.buffer.device
        self.token = torch.zeros(1, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.position.fill_(decoding.length)
        self.graph = torch.cuda.CUDAGraph()
        positions = torch.arange(min(span, decoding.window), device=device)
        # Keep a reference: the graph reads this address, even if the tensor were freed.
        self.rotary_table = decoding.built.model.model.language_model.rotary_emb(
            decoding.buffer, position_ids=positions[None]
        )
        with _precomputed_rotary(
            decoding.built.model.model.language_model.rotary_emb, self.rotary_table
        ):
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            # warm-up: kernels are selected, and their memory allocated, before the capture
            with torch.cuda.stream(beside):
                for _ in range(2):
                    self._run()
            torch.cuda.current_stream().wait_stream(beside)
            with torch.cuda.graph(self.graph):
                self.logits = self._run()

    def _run(self) -> torch.Tensor:
        embedded = self.decoding.built.model.get_input_embeddings()(self.token)
        behind = torch.arange(self.span, device=self.position.device) > self.position
        hidden = torch.zeros(
            1, 1, 1, self.span, device=self.position.device, dtype=embedded.dtype
        ).masked_fill_(behind, float("-inf"))
        return self.decoding._forward(embedded, self.position[None], hidden, self)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mine = self.decoding.buffer[layer]
        mine[0].index_copy_(2, self.position, keys)
        mine[1].index_copy_(2, self.position, values)
        return mine[0, :, :, : self.span], mine[1, :, :, : self.span]

    def __call__(self, token: int, position: int) -> torch.Tensor:
        self.token.fill_(token)
        self.position.fill_(position)
        self.graph.replay()
        return self.logits


@contextmanager
def _precomputed_rotary(rotary: Any, table: tuple[torch.Tensor, torch.Tensor]) -> Iterator[None]:
    """LongRoPE depends on the sequence length, which a CUDA graph cannot branch on; inside this
    context a fixed table is used.

    Within the context window the result is the same.
    """
    rotary.forward = lambda _, position_ids: tuple(part[:, position_ids[0]] for part in table)
    try:
        yield
    finally:
        del rotary.forward
