"""Inference engine that runs a model folder locally with PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from ..conversations import Message
from ..model import Phi3WithProjector, load_model
from ..model.attention_map import attention_map
from ..model.decoding import IncrementalDecoder
from .detokenize import StreamingDetokenizer
from .engine import Sampling
from .fair_lock import FairLock
from .kv_cache import SessionCache, common_prefix_length
from .sampling import TokenSampler

PREFILL_CHUNK = {"cpu": 64, "cuda": 1024}  # prompt tokens between two checks of `stop`
MAX_CACHE_BYTES = 4e9  # bytes of KV cache for all idle sessions


@dataclass(frozen=True, slots=True)
class _CachedConversation:
    """KV state of a conversation: its token ids, its images, and their keys and values."""

    ids: tuple[int, ...]
    images: tuple[torch.Tensor, ...]
    keys_and_values: torch.Tensor


class TorchEngine:
    """Generates for one session at a time; others wait in FIFO order.

    `encode_image` encodes and projects an image once. Later turns compute only new tokens: the KV
    state of the most recent sessions is cached, of more sessions the shorter the context window.
    """

    kind = "torch"
    endpoint = None

    def __init__(self, built: Phi3WithProjector, name: str) -> None:
        self.built = built
        self.name = name
        self._decoding = IncrementalDecoder(built)
        self._sampler = TokenSampler("Compute in float32, or run phisense merge again")
        self._cache: SessionCache[_CachedConversation] = SessionCache(
            max(2, min(256, int(MAX_CACHE_BYTES // self._decoding.nbytes)))
        )
        self._lock = FairLock()

    @classmethod
    def open(
        cls,
        folder: Path,
        device: str = "auto",
        picture_tokens: int | None = None,
        *,
        quantize: bool = False,
    ) -> TorchEngine:
        """Load a model folder onto `device`; `quantize` loads the language model's weights in NF4.

        Raises ArtifactError if the folder is damaged or not a model.
        """
        return cls(
            load_model(folder, device, image_tokens=picture_tokens, quantize=quantize, step="chat"),
            folder.name,
        )

    @property
    def where(self) -> str:
        """Device and number format."""
        weights = self.built.model.lm_head.weight
        dtype = str(weights.dtype).removeprefix("torch.")
        held = "NF4 and " if getattr(self.built.model, "is_loaded_in_4bit", False) else ""
        return f"torch on {self.built.device}, {held}{dtype}"

    @property
    def window(self) -> int:
        """Context length in tokens: prompt and answer together."""
        return self.built.window

    @property
    def picture_tokens(self) -> int:
        """Image tokens per image."""
        return self.built.image_tokens

    @torch.inference_mode()
    def encode_image(self, picture: Image) -> torch.Tensor:
        """Return the projected image embeddings, `(P', H)`."""
        with self._lock.acquire():
            return self.built.project([picture])[0]

    def count_tokens(self, messages: Sequence[Message], seen: Sequence[torch.Tensor]) -> int:
        """Number of prompt tokens, image tokens included."""
        return len(
            self.built.prompt.render_for_completion(messages, [len(slots) for slots in seen])
        )

    def escape_special_tokens(self, text: str) -> str:
        """Escape special tokens in a user's text, so that they are tokenized as plain text."""
        return self.built.prompt.escape_special_tokens(text)

    def stream(
        self,
        messages: Sequence[Message],
        seen: Sequence[torch.Tensor],
        sampling: Sampling,
        stop: threading.Event,
        owner: object,
    ) -> Iterator[str]:
        """Yield the answer in chunks of text.

        Sessions wait for each other; setting `stop` ends generation.
        """
        ids = self.built.prompt.render_for_completion(messages, [len(slots) for slots in seen])
        with self._lock.acquire(stop) as mine:
            if not mine:
                return
            logits = self._prefill(ids, seen, stop, owner)
            words = StreamingDetokenizer(self.built.prompt.tokenizer)
            try:
                if logits is not None:
                    yield from self._generate(logits, words, sampling, stop)
            finally:
                read = (*ids, *words.ids)[: self._decoding.length]
                self._cache.put(
                    owner, _CachedConversation(read, tuple(seen), self._decoding.save())
                )

    def attention_map(self, messages: Sequence[Message], seen: Sequence[torch.Tensor]) -> Any:
        """Return the attention over the image while the last of `messages` was generated, a grid
        `(rows, columns)`: see model/attention_map.py.
        """
        assert messages[-1].role == "assistant"
        ids, answered = self.built.prompt.render_answered(messages, [len(one) for one in seen])
        with self._lock.acquire():
            return attention_map(self.built, ids, seen[0], answered)

    def _prefill(
        self, ids: list[int], seen: Sequence[torch.Tensor], stop: threading.Event, owner: object
    ) -> torch.Tensor | None:
        """Compute the tokens that are not in the session's KV cache. Returns the next token's
        logits, or None if stopped before.
        """
        decoding = self._decoding
        kept = self._cache.pop(owner)
        same = 0 if kept is None else _reusable_length(kept, ids, seen, self.built.prompt.image_id)
        decoding.length = 0
        if kept is not None and same:
            decoding.load(kept.keys_and_values, same)
        logits = None
        for part in decoding.embed(ids, list(seen))[:, same:].split(
            PREFILL_CHUNK.get(self.built.device.type, 512), 1
        ):
            if stop.is_set():
                return None
            logits = decoding.prefill(part)
        return logits

    def _generate(
        self,
        logits: torch.Tensor,
        words: StreamingDetokenizer,
        sampling: Sampling,
        stop: threading.Event,
    ) -> Iterator[str]:
        stops = set(self.built.prompt.stop_ids)
        for left in reversed(range(sampling.max_new_tokens)):
            token = self._sampler.sample(logits, sampling)
            if token in stops:
                break
            if piece := words.push(token):
                yield piece
            if stop.is_set() or not left:
                break
            logits = self._decoding.step(token)
        if rest := words.flush():
            yield rest


def _reusable_length(
    kept: _CachedConversation, ids: Sequence[int], seen: Sequence[torch.Tensor], image: int
) -> int:
    """Number of leading `ids` that the cached state covers. At least the last token is recomputed,
    for its logits.
    """
    same = common_prefix_length(kept.ids, ids[:-1])
    if len(kept.images) != len(seen) or any(
        a is not b for a, b in zip(kept.images, seen, strict=True)
    ):
        return next((i for i in range(same) if ids[i] == image), same)
    return same
