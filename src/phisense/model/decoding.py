"""Incremental decoding of several conversations: KV caches are kept, and only new tokens go through
the model, one of each conversation in a step.

    buffer (layers, 2, places, heads, window, head_dim)      one place for each conversation

On a GPU the forward pass of a single conversation's token is captured once as a CUDA graph and
replayed: most of the time of such a step is otherwise spent in Python between kernels
(docs/benchmarks.md, "On a GPU"). A replay reads the same memory each time, so places have the
length of the context window, and a conversation that gives up its place is copied out. On a CPU
pages of a place that were never written take no memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .assembly import Phi3WithProjector

GRAPH_SPAN = 512  # tokens; a captured step attends to a multiple of this many


class IncrementalDecoder:
    """The language part of `built` with one KV cache buffer for `places` conversations, of which
    the first `lengths[place]` positions are in use.

    Not thread-safe.
    """

    def __init__(self, built: Phi3WithProjector, places: int = 1) -> None:
        text = built.model.config.text_config
        self.built = built
        self.lengths = [0] * places
        self.window = built.window
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._shape = (
            text.num_hidden_layers,
            2,
            places,
            text.num_key_value_heads,
            -(-self.window // GRAPH_SPAN) * GRAPH_SPAN,
            width,
        )
        self._captured: dict[tuple[int, int], _CapturedStep] = {}

    @functools.cached_property
    def buffer(self) -> torch.Tensor:
        """KV cache `(layers, 2, places, heads, window, head_dim)`.

        It is allocated on first use: on ZeroGPU no CUDA work is allowed before a GPU is assigned.
        On a CPU it is NumPy's zeros, pages of the system that take no memory before they are
        written; PyTorch writes its own.
        """
        dtype = self.built.model.lm_head.weight.dtype
        if self.built.device.type == "cpu":
            pages = np.zeros(self.nbytes * len(self.lengths), np.uint8)
            return torch.from_numpy(pages).view(dtype).view(self._shape)
        return torch.zeros(self._shape, device=self.built.device, dtype=dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of one place of the KV cache buffer."""
        size = int(self.built.model.lm_head.weight.element_size())
        return math.prod(self._shape) // len(self.lengths) * size

    @torch.inference_mode()
    def embed(self, ids: list[int], image_embeds: list[torch.Tensor]) -> torch.Tensor:
        """Input embeddings `(1, T, H)` of `ids`, with the image embeddings `(P', H)` at `<image>`
        positions.
        """
        wanted = torch.tensor([ids], device=self.buffer.device)
        return self.built.embed(wanted, image_embeds)

    @torch.inference_mode()
    def prefill(self, embedded: torch.Tensor, places: Sequence[int] = (0,)) -> torch.Tensor:
        """Append embeddings `(N, T, H)`, a row to each place; returns the last positions' logits
        `(N, V)` in float32.
        """
        device, count = self.buffer.device, embedded.shape[1]
        starts = torch.tensor([self.lengths[place] for place in places], device=device)
        positions = starts[:, None] + torch.arange(count, device=device)
        span = max(self.lengths[place] for place in places) + count
        seen = torch.arange(span, device=device) <= positions[:, :, None]
        cache = (
            _PlaceCache(self.buffer, places[0], span - count)
            if len(places) == 1
            else _PlacesCache(self.buffer, places, positions, span)
        )
        logits = self._forward(embedded, positions, seen[:, None], cache)
        for place in places:
            self.lengths[place] += count
        return logits

    @torch.inference_mode()
    def step(self, tokens: Mapping[int, int]) -> torch.Tensor:
        """Append one token to each place `{place: token}`, and return the logits `(N, V)` of the
        next ones, in their order; on CUDA through a captured graph.
        """
        if self.buffer.device.type == "cuda":
            logits = self._replay(tokens)
        elif len(tokens) == 1:
            ((place, token),) = tokens.items()
            return self.prefill(self.embed([token], []), [place])
        else:
            rows = max(tokens) + 1
            ids, positions = torch.tensor([tokens.get(i, 0) for i in range(rows)]), self._ends(rows)
            logits = self._forward_rows(ids, positions, int(positions.max()) + 1)
        for place in tokens:
            self.lengths[place] += 1
        return logits[list(tokens)]

    def _ends(self, rows: int) -> torch.Tensor:
        """The position `(rows,)` behind the last one in use of each place."""
        return torch.tensor([min(end, self.window - 1) for end in self.lengths[:rows]])

    def _forward_rows(self, ids: torch.Tensor, positions: torch.Tensor, span: int) -> torch.Tensor:
        """The logits `(R, V)` of one token in each of the first R places, from ids and positions
        `(R,)`, over the first `span` positions.

        There is a row for every place, so that keys and values are read where they lie. In a place
        that is not asked, what it writes lies behind the end, where the next token replaces it
        before anything attends to it.
        """
        embedded = self.built.model.get_input_embeddings()(ids[:, None])
        behind = torch.arange(span, device=positions.device)[None] > positions[:, None]
        hidden = torch.zeros(behind.shape, device=positions.device, dtype=embedded.dtype)
        hidden.masked_fill_(behind, float("-inf"))
        cache = _RowsCache(self.buffer[:, :, : len(ids)], positions, span)
        return self._forward(embedded, positions[:, None], hidden[:, None, None], cache)

    def _replay(self, tokens: Mapping[int, int]) -> torch.Tensor:
        """The logits of the first 1, 2, 4 or all places through a captured graph."""
        rows = min(1 << max(tokens).bit_length(), len(self.lengths))
        positions = self._ends(rows)
        span = (int(positions.max()) // GRAPH_SPAN + 1) * GRAPH_SPAN
        if (rows, span) not in self._captured:
            self._captured[rows, span] = _CapturedStep(self, positions, span)
        ids = torch.tensor([tokens.get(place, 0) for place in range(rows)])
        return self._captured[rows, span](ids, positions)

    @torch.inference_mode()
    def save(self, place: int = 0, length: int | None = None) -> torch.Tensor:
        """A copy of the KV cache of a place, `(layers, 2, heads, length, head_dim)`; all that is in
        use, or its first `length` positions.
        """
        end = self.lengths[place] if length is None else length
        return self.buffer[:, :, place, :, :end].clone()

    @torch.inference_mode()
    def load(self, state: torch.Tensor, length: int, place: int = 0) -> None:
        """Restore the first `length` positions of a state returned by `save`."""
        self.buffer[:, :, place, :, :length] = state[:, :, :, :length]
        self.lengths[place] = length

    def _forward(
        self,
        embedded: torch.Tensor,
        positions: torch.Tensor,
        attention_mask: torch.Tensor,
        cache: Any,
    ) -> torch.Tensor:
        """The logits `(B, V)` of each row's last position in float32."""
        hidden = self.built.model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits: torch.Tensor = self.built.model.lm_head(hidden[:, -1])
        return logits.float()


class _PlaceCache:
    """The `past_key_values` of one place: keeps new keys and values from position `start` on, and
    returns all up to there.
    """

    def __init__(self, buffer: torch.Tensor, place: int, start: int) -> None:
        self.mine = buffer[:, :, place : place + 1]
        self.start = start

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self.start + keys.shape[2]
        mine = self.mine[layer]
        mine[0, :, :, self.start : end], mine[1, :, :, self.start : end] = keys, values
        return mine[0, :, :, :end], mine[1, :, :, :end]


class _PlacesCache:
    """The `past_key_values` of some places: keeps new keys and values of each row at its positions
    `(N, T)`, and returns copies of the first `span` positions.
    """

    def __init__(
        self, buffer: torch.Tensor, places: Sequence[int], positions: torch.Tensor, span: int
    ) -> None:
        self.buffer, self.positions, self.span = buffer, positions, span
        self.places = torch.tensor(places, device=buffer.device)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mine = self.buffer[layer]
        for held, new in zip(mine, (keys, values), strict=True):
            held[self.places[:, None], :, self.positions] = new.transpose(1, 2)
        return mine[0][self.places, :, : self.span], mine[1][self.places, :, : self.span]


class _RowsCache:
    """The `past_key_values` of a step of several places: keeps the key and the value of each row at
    its position `(R,)`, and returns the first `span` positions of all rows.
    """

    def __init__(self, buffer: torch.Tensor, positions: torch.Tensor, span: int) -> None:
        self.buffer, self.positions, self.span = buffer, positions, span
        self.rows = torch.arange(len(positions), device=positions.device)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mine = self.buffer[layer]
        mine[0][self.rows, :, self.positions] = keys[:, :, 0]
        mine[1][self.rows, :, self.positions] = values[:, :, 0]
        return mine[0, :, :, : self.span], mine[1, :, :, : self.span]


class _CapturedStep:
    """`_forward_rows` of the first places as a CUDA graph, over the first `span` positions."""

    def __init__(self, decoding: IncrementalDecoder, positions: torch.Tensor, span: int) -> None:
        self.decoding, self.span = decoding, span
        device = decoding.buffer.device
        self.ids = torch.zeros(len(positions), dtype=torch.long, device=device)
        self.positions = positions.to(device)
        self.graph = torch.cuda.CUDAGraph()
        table = torch.arange(min(span, decoding.window), device=device)
        rotary = decoding.built.model.model.language_model.rotary_emb
        # Keep a reference: the graph reads this address, even if the tensor were freed.
        self.rotary_table = rotary(decoding.buffer, position_ids=table[None])
        with _precomputed_rotary(rotary, self.rotary_table):
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
        return self.decoding._forward_rows(self.ids, self.positions, self.span)

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        self.graph.replay()
        return self.logits


@contextmanager
def _precomputed_rotary(rotary: Any, table: tuple[torch.Tensor, torch.Tensor]) -> Iterator[None]:
    """LongRoPE depends on the sequence length, which a CUDA graph cannot branch on; inside this
    context a fixed table is used.

    Within the context window the result is the same.
    """
    rotary.forward = lambda _, position_ids: tuple(part[0, position_ids] for part in table)
    try:
        yield
    finally:
        del rotary.forward
