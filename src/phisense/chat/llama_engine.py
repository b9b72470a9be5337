"""Inference engine for machines without a GPU: llama.cpp runs the language model, torch the vision
tower.

What a sequence's KV cache holds is tracked by one key per position (kv_cache.py). A turn computes
only what follows the longest common prefix of its prompt's keys and the cached ones.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from .. import artifacts
from ..conversations import Message
from ..cpu_limits import available_memory, physical_cores
from ..errors import ArtifactError, PartError
from ..families import context_window
from ..opening import validate_folder
from ..prompt import Prompt
from .batching import MAX_PLACES, Batcher
from .engine import Sampling
from .fair_lock import FairLock
from .kv_cache import (
    SessionCache,
    common_prefix_length,
    position_keys,
    shared_prefix_length,
)
from .llama_context import Embeddings, LlamaContext, Logits
from .llama_probe import require_llama_cpp
from .open_engine import GGUF_KIND

EXPORT_KIND = GGUF_KIND
MAX_CACHED_SESSIONS = 16  # sessions with a cached sequence, memory permitting
PREFILL_CHUNK = 256  # prompt positions between two tokens of the answers in progress
VISION_FOLDER = "vision"  # subfolder: a model folder whose language model has no layers


@dataclass(eq=False, slots=True)
class ImageEmbeddings:
    """Projected image embeddings `(P', H)`, the language model's input. `key` identifies the image
    in the KV cache.
    """

    embeddings: Embeddings
    key: int

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass(eq=False)
class _SequenceState:
    """A session's llama.cpp sequence, and the key of each cached position."""

    sequence: int
    keys: list[int] = field(default_factory=list)
    release: Callable[[], object] = lambda: None  # returns the sequence to the free list, once


@dataclass(eq=False, slots=True)
class _Seat:
    """An answer's sequence, and its prompt: token ids, the keys of all positions, and the
    embeddings of its images by key.
    """

    state: _SequenceState
    owner: object
    ids: Sequence[int]
    keys: list[int]
    vectors: dict[int, Embeddings]

    def next_run(self, most: int) -> tuple[int, Sequence[int] | Embeddings]:
        """The first position that is not computed, and from there on the token ids, or the
        embeddings of one image, that are computed in one call: no more than `most`.
        """
        begin, keys = len(self.state.keys), self.keys
        limit = min(len(keys), begin + most)
        kind = min(keys[begin], 0)
        end = next((i for i in range(begin, limit) if min(keys[i], 0) != kind), limit)
        if kind == 0:
            return begin, self.ids[begin:end]
        vectors = self.vectors[kind]
        # an image may stand in a prompt several times, even side by side
        first = next((i for i in range(begin, -1, -1) if keys[i] != kind), -1) + 1
        return begin, vectors[(begin - first) % len(vectors) :][: end - begin]


class LlamaEngine:
    """Generates for several sessions at once, as many as there are sequences, and at most
    `MAX_PLACES`; more wait, first come first served. A session keeps its sequence until more recent
    sessions need it.
    """

    kind = "llama"
    where = "llama.cpp on the CPU"
    endpoint = None
    attention_map = None

    def __init__(
        self,
        folder: Path,
        *,
        picture_tokens: int | None = None,
        threads: int | None = None,
        max_sessions: int | None = None,
    ) -> None:
        """Raises ArtifactError for a folder that `phisense export` did not write or finish,
        PartError if llama.cpp is missing or a file fails validation.
        """
        about, file = _read_export(folder)
        require_llama_cpp()
        import torch
        from transformers import AutoTokenizer

        from ..model.folder import check_tokenizer, open_model_config
        from ..model.projectors.image_tokens import count_image_tokens, nested_pool
        from ..parts import load_auto
        from .sampling import TokenSampler

        self.name = f"{about['name']} {about['quant']}"
        self._vision_folder = folder / VISION_FOLDER
        config, tokenizer = (
            open_model_config(self._vision_folder),
            load_auto(AutoTokenizer, self._vision_folder),
        )
        check_tokenizer(self._vision_folder, tokenizer, config)
        self._requested_image_tokens = picture_tokens
        self.picture_tokens = count_image_tokens(config, nested_pool(config, picture_tokens))
        self.window = context_window(config)
        self.prompt = Prompt(tokenizer)
        max_sessions = max_sessions or _affordable_sequences(
            file, about["bytes_per_position"] * self.window
        )
        self.context = LlamaContext(
            file, window=self.window, sequences=max_sessions, threads=threads or physical_cores()
        )
        self._check_fits(folder, config)
        self._cache: SessionCache[_SequenceState] = SessionCache(max_sessions)
        self._free_sequences = deque(range(max_sessions))
        self._lock = FairLock()
        self._image_keys = itertools.count(1)
        self._vision_model: Any = None
        generator = torch.Generator()
        generator.seed()  # otherwise every process draws the same
        self._sampler = TokenSampler("Run phisense export again", generator)
        self.places = min(MAX_PLACES, max_sessions)
        self._seats: list[_Seat] = []
        self._batcher: Batcher[_Seat] = Batcher(
            self, tokenizer, self.prompt.stop_ids, lambda: self._sampler, self._lock
        )

    @classmethod
    def open(
        cls, folder: Path, picture_tokens: int | None = None, threads: int | None = None
    ) -> LlamaEngine:
        """Open a folder that `phisense export` wrote.

        Raises as `__init__` does.
        """
        return cls(folder, picture_tokens=picture_tokens, threads=threads)

    def _check_fits(self, folder: Path, config: Any) -> None:
        """Raises PartError if the language model and the vision part belong to different models."""
        most = max(self.prompt.tokenizer.get_vocab().values())
        if (
            self.context.hidden_size != config.text_config.hidden_size
            or most >= self.context.vocab_size
        ):
            self.context.close()
            raise PartError(
                f"the files of {folder} are of different models",
                got=f"width {self.context.hidden_size} and {self.context.vocab_size} rows",
                wanted=f"width {config.text_config.hidden_size} and more than {most} rows",
                do="Run phisense export again",
            )

    def encode_image(self, picture: Image) -> ImageEmbeddings:
        """Encode and project an image. The vision tower is loaded for the first image."""
        import torch

        with self._lock.acquire():
            if self._vision_model is None:
                from ..model import load_model

                self._vision_model = load_model(
                    self._vision_folder, "cpu", image_tokens=self._requested_image_tokens
                )
            with torch.inference_mode():
                vectors = self._vision_model.project([picture])[0].float().numpy()
        return ImageEmbeddings(vectors, -next(self._image_keys))

    def count_tokens(self, messages: Sequence[Message], seen: Sequence[ImageEmbeddings]) -> int:
        """Number of prompt tokens, image tokens included."""
        return len(self.prompt.render_for_completion(messages, [len(one) for one in seen]))

    def escape_special_tokens(self, text: str) -> str:
        """Escape special tokens in a user's text, so that they are tokenized as plain text."""
        return self.prompt.escape_special_tokens(text)

    def stream(
        self,
        messages: Sequence[Message],
        seen: Sequence[ImageEmbeddings],
        sampling: Sampling,
        stop: threading.Event,
        owner: object,
    ) -> Iterator[str]:
        """Yield the answer in chunks of text; setting `stop` ends generation."""
        ids = self.prompt.render_for_completion(messages, [len(one) for one in seen])
        return self._batcher.stream(ids, seen, sampling, stop, owner)

    def enter(self, ids: Sequence[int], images: Sequence[ImageEmbeddings], owner: object) -> _Seat:
        """The owner's sequence, or a new one, with what its cells and this prompt have in
        common.
        """
        of_images = [(one.key, len(one)) for one in images]
        keys = position_keys(ids, self.prompt.image_id, of_images)
        state = self._assign_sequence(owner)
        if not state.keys and images:
            self._share_image(state, keys)
        # the last position is recomputed, for its logits
        held = min(common_prefix_length(state.keys, keys), len(keys) - 1)
        self.context.truncate_to(state.sequence, held)
        del state.keys[held:]
        seat = _Seat(state, owner, ids, keys, {one.key: one.embeddings for one in images})
        self._seats.append(seat)
        return seat

    def _share_image(self, state: _SequenceState, keys: Sequence[int]) -> None:
        """Copy the cells up to the end of the first image, if another session was given the same
        one.
        """

        def length(other: _SequenceState) -> int:
            return shared_prefix_length(keys[:-1], other.keys, self.prompt.image_opening)

        seated = (seat.state for seat in self._seats)
        found = next((one for one in seated if length(one)), None)
        if found is None:
            found = self._cache.find(lambda one: length(one) > 0)
        if found is not None:
            same = length(found)
            self.context.copy_from(found.sequence, state.sequence, same)
            state.keys[:] = keys[:same]

    def prefill(
        self, seats: Sequence[_Seat], stop: threading.Event | None
    ) -> dict[_Seat, Logits | None]:
        """Compute the next run of the first seat's prompt, text or a part of an image, and runs of
        the same kind of others, as many as a batch holds; the logits `(V,)` of a prompt's last
        position once nothing is left.
        """
        runs: dict[_Seat, tuple[int, Sequence[int] | Embeddings]] = {}
        room = self.context.batch
        for seat in seats:
            begin, new = seat.next_run(min(PREFILL_CHUNK, self.context.batch))
            first = next(iter(runs.values()), (begin, new))[1]
            if len(new) <= room and isinstance(new, np.ndarray) == isinstance(first, np.ndarray):
                runs[seat] = begin, new
                room -= len(new)
        logits = self.context.decode_runs(
            [(seat.state.sequence, begin, new) for seat, (begin, new) in runs.items()], stop=stop
        )
        for seat, (begin, new) in runs.items():
            seat.state.keys += seat.keys[begin : begin + len(new)]
        return {
            seat: row if len(seat.state.keys) == len(seat.keys) else None
            for seat, row in zip(runs, logits, strict=True)
        }

    def step(self, tokens: Sequence[tuple[_Seat, int]]) -> Logits:
        """Append one token to each seat's sequence; the next one's logits for each, `(N, V)`."""
        logits = self.context.decode_runs(
            [(seat.state.sequence, len(seat.state.keys), [token]) for seat, token in tokens]
        )
        for seat, token in tokens:
            seat.state.keys.append(token)
        return logits

    def leave(self, seat: _Seat, *, sound: bool) -> None:
        """Keep the sequence for its owner."""
        if not sound:  # what its cells hold is no longer known
            seat.state.keys.clear()
        self._seats.remove(seat)
        self._cache.put(seat.owner, seat.state)

    def _assign_sequence(self, owner: object) -> _SequenceState:
        """Return the owner's state, or a new one: in a free sequence, or in that of the least
        recently used session. There is one, since no more answers are in progress than sequences.
        """
        state = self._cache.pop(owner)
        if state is None:
            while not self._free_sequences and (gone := self._cache.pop_oldest()) is not None:
                gone.release()
            state = _SequenceState(self._free_sequences.popleft())
            # Whether evicted or collected with its owner, its sequence is free again.
            state.release = weakref.finalize(state, self._free_sequences.append, state.sequence)
            state.release.atexit = False
            self.context.truncate_to(state.sequence)
        return state


def _read_export(folder: Path) -> tuple[dict[str, Any], Path]:
    """Return the manifest's metadata and the GGUF file of an exported folder. Raises ArtifactError
    for other folders.
    """
    about = artifacts.read_manifest(folder, kind=EXPORT_KIND, verify=False)
    validate_folder(folder)
    name: Any = about.get("file")
    each = about.get("bytes_per_position")
    named = (
        isinstance(name, str)
        and Path(name).name == name
        and all(isinstance(about.get(key), str) for key in ("name", "quant"))
    )
    if not named or type(each) is not int or each <= 0:
        raise ArtifactError(
            f"{folder} does not say what it holds",
            got="a manifest of other values",
            do="Run phisense export again",
        )
    if not (folder / name).is_file():
        raise ArtifactError(
            f"{folder} lacks its model", got=f"no {name}", do="Run phisense export again"
        )
    return about, folder / name


def _affordable_sequences(file: Path, sequence_bytes: int) -> int:
    """Number of sequences that fit into half of the memory left after loading the model."""
    free = available_memory()
    return (
        1
        if free is None
        else int(
            min(MAX_CACHED_SESSIONS, max(1, (free - file.stat().st_size) // 2 // sequence_bytes))
        )
    )
