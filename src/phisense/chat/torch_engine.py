"""Inference engine that runs a model folder locally with PyTorch."""

from __future__ import annotations

import threading
from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image

from ..conversations import Message
from ..model import Phi3WithProjector, load_model
from ..model.attention_map import attention_map
from ..model.decoding import IncrementalDecoder
from .batching import MAX_CACHE_BYTES, Batcher, places_for
from .engine import Sampling
from .fair_lock import FairLock
from .kv_cache import (
    SessionCache,
    common_prefix_length,
    position_keys,
    shared_prefix_length,
)
from .sampling import TokenSampler

PREFILL_CHUNK = {"cpu": 64, "cuda": 1024}  # prompt tokens between two checks of `stop`


@dataclass(frozen=True, slots=True)
class _CachedConversation:
    """KV state of a conversation: the key of each position, its images, which the keys are of while
    they live, and the attention's keys and values.
    """

    keys: tuple[int, ...]
    images: tuple[torch.Tensor, ...]
    keys_and_values: torch.Tensor


@dataclass(eq=False, slots=True)
class _Seat:
    """An answer's place in the KV cache buffer. `keys` are those of the prompt's positions and of
    the answer's so far; the embeddings `unread` `(1, T, H)` are what is left of the prompt.
    """

    place: int
    owner: object
    keys: list[int]
    images: tuple[torch.Tensor, ...]
    unread: torch.Tensor


class TorchEngine:
    """Generates for up to `places` sessions at once, as many as their KV caches have room; more
    wait, first come first served.

    `encode_image` encodes and projects an image once. Later turns compute only new tokens: the KV
    state of the most recent sessions is cached, of more sessions the shorter the context window.
    """

    kind = "torch"
    endpoint = None

    def __init__(self, built: Phi3WithProjector, name: str) -> None:
        self.built = built
        self.name = name
        each = IncrementalDecoder(built).nbytes
        self.places = places_for(each)
        self._decoding = IncrementalDecoder(built, self.places)
        self._free = list(range(self.places))
        self._seats: dict[int, _Seat] = {}
        self._sampler = TokenSampler("Compute in float32, or run phisense merge again")
        self._cache: SessionCache[_CachedConversation] = SessionCache(
            max(2, min(256, int(MAX_CACHE_BYTES // each)))  # the same again for idle sessions
        )
        self._lock = FairLock()
        prompt = built.prompt
        self._batcher: Batcher[_Seat] = Batcher(
            self, prompt.tokenizer, prompt.stop_ids, lambda: self._sampler, self._lock
        )

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
        """Yield the answer in chunks of text; setting `stop` ends generation."""
        ids = self.built.prompt.render_for_completion(messages, [len(slots) for slots in seen])
        return self._batcher.stream(ids, seen, sampling, stop, owner)

    def attention_map(
        self, messages: Sequence[Message], seen: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return the attention over each image while the last of `messages` was generated, grids
        `(rows, columns)`: see model/attention_map.py.
        """
        assert messages[-1].role == "assistant"
        ids, answered = self.built.prompt.render_answered(messages, [len(one) for one in seen])
        with self._lock.acquire():
            return attention_map(self.built, ids, seen, answered)

    def enter(self, ids: Sequence[int], images: Sequence[torch.Tensor], owner: object) -> _Seat:
        """A free place, with what the owner's last turn and this prompt have in common."""
        # an image's identity is a key as long as it lives
        of_images = [(-id(image), len(image)) for image in images]
        keys = position_keys(ids, self.built.prompt.image_id, of_images)
        # at least the last position is computed, for its logits
        kept = self._cache.pop(owner)
        same = 0 if kept is None else common_prefix_length(keys[:-1], kept.keys)
        shared = self._shared_image(keys[:-1], longer_than=same)
        if shared is not None:
            kept, same = shared, len(shared.keys)
        decoding = self._decoding
        unread = decoding.embed(list(ids), list(images))[:, same:]
        place = self._free.pop(0)
        decoding.lengths[place] = 0
        if kept is not None and same:
            decoding.load(kept.keys_and_values, same, place)
        seat = self._seats[place] = _Seat(place, owner, keys, tuple(images), unread)
        return seat

    def _shared_image(self, keys: Sequence[int], longer_than: int) -> _CachedConversation | None:
        """The state up to the end of the first image, if another session was given the same one and
        has computed more than `longer_than` positions of it.
        """
        opening = self.built.prompt.image_opening

        def length(theirs: Sequence[int]) -> int:
            found = shared_prefix_length(keys, theirs, opening)
            return found if found > longer_than else 0

        for seat in self._seats.values():
            if same := length(seat.keys[: self._decoding.lengths[seat.place]]):
                state = self._decoding.save(seat.place, same)
                return _CachedConversation(tuple(keys[:same]), seat.images, state)
        found = self._cache.find(lambda one: length(one.keys) > 0)
        if found is None:
            return None
        same = length(found.keys)
        return _CachedConversation(tuple(keys[:same]), found.images, found.keys_and_values)

    def prefill(
        self, seats: Sequence[_Seat], stop: threading.Event | None
    ) -> dict[_Seat, torch.Tensor | None]:
        """Compute the next chunk of the first seat's prompt, and of those whose chunk is as long;
        the next token's logits after the last.
        """
        most = PREFILL_CHUNK.get(self.built.device.type, 512)
        chunk = min(most, seats[0].unread.shape[1])
        alike = [one for one in seats if min(most, one.unread.shape[1]) == chunk]
        logits = self._decoding.prefill(
            torch.cat([one.unread[:, :chunk] for one in alike]), [one.place for one in alike]
        )
        for one in alike:
            one.unread = one.unread[:, chunk:]
        return {
            one: None if one.unread.shape[1] else row
            for one, row in zip(alike, logits, strict=True)
        }

    def step(self, tokens: Sequence[tuple[_Seat, int]]) -> torch.Tensor:
        """Append one token to each seat; the next one's logits for each, `(N, V)`."""
        logits = self._decoding.step({seat.place: token for seat, token in tokens})
        for seat, token in tokens:
            seat.keys.append(token)
        return logits

    def leave(self, seat: _Seat, *, sound: bool) -> None:
        """Free the place, and cache its state for the owner's next turn."""
        try:
            if sound:
                read = tuple(seat.keys[: self._decoding.lengths[seat.place]])
                state = _CachedConversation(read, seat.images, self._decoding.save(seat.place))
                self._cache.put(seat.owner, state)
        finally:  # also if there is no memory for a copy
            del self._seats[seat.place]
            insort(self._free, seat.place)  # the lowest first: a step computes all rows between
